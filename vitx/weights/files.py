"""Opens files of tensors: recognises the format by the contents, and executes nothing."""

import contextlib
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError, safe_open

from vitx.runtime.files import check_members, first_line, parse_json
from vitx.runtime.paths import as_path, get, is_remote
from vitx.weights.hub import CONFIG, PROCESSORS, fetched, is_hub_name
from vitx.weights.pickled import pytorch_tensors
from vitx.weights.tensor import Tensor

FOLDER_FILES: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# How the names of indices of shards end.
_INDICES: Final = (".safetensors.index.json", ".bin.index.json")
_SUFFIXES: Final = (".safetensors", ".bin", ".pth", ".pt", ".npz", ".tar")
_LARGEST_JSON: Final = 2**24  # bytes; ImageNet-21k's names of classes take 2 MB


@dataclass(frozen=True)
class Checkpoint:
    """A local file's tensors by name, its safetensors metadata, and the contents of the JSON files beside it."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: Mapping[str, str]
    config: Mapping[str, Any]
    processor: Mapping[str, Any]


@contextlib.contextmanager
def open_checkpoint(path: str | Path, which: str | None = None) -> Iterator[Checkpoint]:
    """Opens a file, or a folder with one of `FOLDER_FILES`, here, in a bucket or by its name on the hub.

    Tensors are read inside `with`. `which` is one of `pickled.WHICH`, for a file with weights of several models. A
    ValueError or OSError raised inside `with` becomes a ValueError with the path in front.
    """
    try:
        source = find_file(as_path(path))
        with contextlib.ExitStack() as stack:
            if is_remote(source):
                source = _copy(source, Path(stack.enter_context(tempfile.TemporaryDirectory())))
            open_it = _open_shards if _is_index(source) else _open
            tensors, metadata = open_it(source, which)
            if not tensors:
                raise ValueError("the file holds no tensors")
            config, processor = map(_read_json, beside(source.parent))
            inner = processor.get("image_processor")
            yield Checkpoint(
                source, tensors, metadata, config, inner if isinstance(inner, dict) else processor
            )
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def find_file(path: Path) -> Path:
    """The file itself, or one of `FOLDER_FILES` in a folder; the caller adds the path to a ValueError."""
    if path.is_dir():
        found = [path / name for name in FOLDER_FILES if (path / name).is_file()]
        if not found:
            others = sorted(p.name for p in path.iterdir() if p.suffix in _SUFFIXES)
            have = f"; it has {listed(others, 3)}: give a file itself" if others else ""
            raise ValueError(
                f"the folder has no checkpoint, which is {' or '.join(FOLDER_FILES)}{have}"
            )
        return found[0]
    if not path.exists():
        if is_hub_name(path):
            return find_file(fetched(path))
        raise FileNotFoundError(f"{path}: there is no such file or folder")  # nor a name on the hub
    if not path.is_file():  # a device or FIFO might never end
        raise ValueError("not a regular file: copy its contents into one")
    return path


def beside(folder: Path) -> tuple[Path, Path]:
    """The JSON files in a folder, of a checkpoint's configuration and of its image processor; either may be absent."""
    processors = [folder / name for name in PROCESSORS]
    found = next((path for path in processors if path.is_file()), processors[0])
    return folder / CONFIG, found


def parts_of(path: Path) -> list[Path]:
    """The file of a checkpoint, and after an index of shards these shards; ValueError for an index of another form."""
    return [path, *(path.parent / name for name in _shards(path))] if _is_index(path) else [path]


def listed(items: Sequence[str], most: int = 12) -> str:
    """The items with commas, or the first of them and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def _copy(source: Path, scratch: Path) -> Path:
    folder = scratch / source.parent.name  # file and folder names may imply mean and std
    folder.mkdir()
    for name in (source.name, CONFIG, *PROCESSORS):
        with contextlib.suppress(FileNotFoundError):
            (folder / name).write_bytes(get(source.parent / name))
    for part in parts_of(folder / source.name)[1:]:
        part.write_bytes(get(source.parent / part.name))
    return folder / source.name


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        if (size := path.stat().st_size) > _LARGEST_JSON:
            raise ValueError(f"it has {size:,} bytes")
        value = parse_json(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name} beside it is damaged: {error}") from error
    return value if isinstance(value, dict) else {}


def _is_index(path: Path) -> bool:
    return path.name.endswith(_INDICES)


def _shards(path: Path) -> dict[str, list[str]]:
    """The files that an index of shards names, which are beside it, and the tensors in each."""
    weights = _read_json(path).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise ValueError(f"{path.name} has no weight_map, which says where each tensor is")
    shards: dict[str, list[str]] = {}
    kind = path.name.removesuffix(".index.json")
    kind = kind[kind.rindex(".") :]
    for tensor, name in weights.items():
        if not isinstance(name, str) or not re.fullmatch(rf"[\w][\w.-]*{kind}", name):
            raise ValueError(f"{path.name}: {name!r:.100} is no name of a {kind} file beside it")
        shards.setdefault(name, []).append(tensor)
    return shards


def _open_shards(path: Path, which: str | None) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    tensors: dict[str, Tensor] = {}
    for name, expected in _shards(path).items():
        try:
            found, _ = _open(find_file(path.parent / name), which)
        except FileNotFoundError:
            raise ValueError(f"its shard {name} is missing") from None
        except ValueError as error:
            raise ValueError(f"its shard {name}: {error}") from error
        if absent := [tensor for tensor in expected if tensor not in found]:
            raise ValueError(f"its shard {name} does not hold {listed(absent, 3)}")
        tensors |= {tensor: found[tensor] for tensor in expected}
    return tensors, {}


def _open(path: Path, which: str | None) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    with path.open("rb") as file:
        start = file.read(16)
    if not start:
        raise ValueError("the file is empty")
    if start.startswith(b"version https:"):
        raise ValueError("a Git LFS pointer, not the weights: fetch the file itself")
    if start[8:9] == b"{":
        opened = _open_safetensors(path)
    elif start.startswith(b"PK") and (arrays := _open_npz(path)) is not None:
        opened = arrays, {}
    elif start.startswith((b"PK", b"\x80")):
        return pytorch_tensors(path, which), {}
    else:
        raise ValueError("damaged, or no .safetensors, PyTorch or .npz file")
    if which is not None:
        raise ValueError(f"it has the weights of one model: leave out which={which!r}")
    return opened


def _open_safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    def read(name: str) -> np.ndarray:
        # Mapping the file for one tensor at a time keeps its pages from piling up in memory.
        with safe_open(path, "np") as file:
            try:
                return file.get_tensor(name)
            except (TypeError, AttributeError) as error:
                raise ValueError(f"tensor {name} has an unsupported type: {error}") from error

    try:
        with safe_open(path, "np") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            tensors = {name: Tensor(shape, partial(read, name)) for name, shape in shapes.items()}
            return tensors, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"damaged or no .safetensors file: {error}") from error


def _open_npz(path: Path) -> dict[str, Tensor] | None:
    """The arrays of an .npz file; None for a .zip file of PyTorch's."""
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(archive)
            names = archive.namelist()
        if names and all(name.endswith(".npy") for name in names):
            with np.load(path, allow_pickle=False) as arrays:
                return {n: Tensor(a.shape, partial(np.asarray, a)) for n, a in arrays.items()}
    except Exception as error:  # a damaged archive may raise anything
        raise ValueError(f"damaged or refused: {first_line(error)}") from error
    if any(name.endswith("data.pkl") for name in names):
        return None
    raise ValueError("a zip archive, but neither PyTorch's nor an .npz file")
