"""Opens files of tensors: recognises the format by the contents, reads one tensor at a time, executes nothing."""

import contextlib
import importlib
import pickle
import re
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError, safe_open

from vitx.runtime.files import check_array, check_members, first_line, parse_json
from vitx.runtime.paths import as_path, get, is_remote

FOLDER_FILES: Final = ("model.safetensors", "pytorch_model.bin")
BESIDE: Final = ("config.json", "preprocessor_config.json")
_WRAPPERS: Final = ("state_dict", "model_state_dict", "model", "net")
_LARGEST_JSON: Final = 2**24  # bytes; ImageNet-21k's names of classes take 2 MB
_HEADERS: Final[dict[tuple[int, int], Callable[..., Any]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_DAMAGED: Final = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, RuntimeError)


@dataclass(frozen=True)
class Tensor:
    """A tensor that is still in its file: its shape, and a function that reads it."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    def reshape(self, *shape: int) -> "Tensor":
        """The same numbers in another shape."""
        return Tensor(shape, lambda: self.read().reshape(shape))

    def transpose(self, *axes: int) -> "Tensor":
        """The same numbers with other axes."""
        return Tensor(tuple(self.shape[a] for a in axes), lambda: self.read().transpose(axes))


def concatenate(tensors: list[Tensor]) -> Tensor:
    """Tensors stacked along their first axis."""
    rows = sum(tensor.shape[0] for tensor in tensors)
    shape = (rows, *tensors[0].shape[1:])
    return Tensor(shape, lambda: np.concatenate([t.read() for t in tensors]))


@dataclass(frozen=True)
class Checkpoint:
    """A file's tensors by name, its metadata, and the JSON files beside it.

    `metadata` is the safetensors header's; `config` and `processor` are the contents of config.json
    and preprocessor_config.json.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: Mapping[str, str]
    config: Mapping[str, Any]
    processor: Mapping[str, Any]


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens a checkpoint on this machine; only PyTorch's pickles are read already here.

    Args:
      path: a .safetensors, .pth/.pt/.bin or .npz file, or a folder with one of `FOLDER_FILES`.

    Raises:
      FileNotFoundError: if there is nothing at `path`.
      ValueError: for a file that is damaged, holds objects, has another format or is not a regular
        file; the caller adds the path.
    """
    try:
        path = find_file(Path(path))
        with path.open("rb") as file:
            start = file.read(16)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    metadata: Mapping[str, str] = {}
    if not start:
        raise ValueError("the file is empty")
    if start[8:9] == b"{":
        tensors, metadata = _open_safetensors(path)
    elif start[:2] == b"PK":
        tensors = _open_zip(path)
    elif start[:1] == b"\x80":
        tensors = _open_torch(path)
    elif start.startswith(b"version https:"):
        raise ValueError("a Git LFS pointer, not the weights: fetch the file itself")
    else:
        raise ValueError("damaged, or no .safetensors, PyTorch or .npz file")
    if not tensors:
        raise ValueError("the file holds no tensors")
    beside = (_read_json(path.parent / name) for name in BESIDE)
    return Checkpoint(path, tensors, metadata, *beside)


@contextlib.contextmanager
def on_disk(path: str | Path) -> Iterator[Path]:
    """A local path for `open_checkpoint`: `path` itself, or a temporary copy of a file in a bucket.

    The JSON files beside it are copied too.

    Raises:
      FileNotFoundError, ValueError: as `open_checkpoint`.
    """
    path = as_path(path)
    if not is_remote(path):
        yield path
        return
    path = find_file(path)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, path.parent.name)  # file and folder names may imply mean and std
        folder.mkdir()
        for name in (path.name, *BESIDE):
            with contextlib.suppress(FileNotFoundError):
                (folder / name).write_bytes(get(path.parent / name))
        yield folder / path.name


def find_file(path: Path) -> Path:
    """The checkpoint at a path: the file itself, or one of `FOLDER_FILES` in a folder.

    Raises:
      FileNotFoundError: if there is nothing at `path`.
      ValueError: for a folder without a checkpoint, and for devices, FIFOs and sockets, which might
        never end; the caller adds the path.
    """
    if path.is_dir():
        found = [path / name for name in FOLDER_FILES if (path / name).is_file()]
        if not found:
            raise ValueError(f"the folder has no checkpoint, which is {' or '.join(FOLDER_FILES)}")
        return found[0]
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or folder")
    if not path.is_file():
        raise ValueError("not a regular file: copy its contents into one")
    return path


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


def _open_safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    def read(name: str) -> np.ndarray:
        # Mapping the file for one tensor at a time keeps its pages from piling up in memory.
        with safe_open(path, "np") as file:
            try:
                return file.get_tensor(name)
            except (TypeError, AttributeError, KeyError) as error:
                raise ValueError(f"tensor {name} has an unsupported type: {error}") from error

    try:
        with safe_open(path, "np") as file:
            names = list(file.keys())
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"damaged or no .safetensors file: {error}") from error
    return {name: Tensor(shape, partial(read, name)) for name, shape in shapes.items()}, metadata


def _open_zip(path: Path) -> dict[str, Tensor]:
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(archive)
            names = archive.namelist()
            if names and all(name.endswith(".npy") for name in names):
                return dict(_open_array(path, archive, name) for name in names)
    except _DAMAGED as error:
        raise ValueError(f"damaged: {first_line(error)}") from error
    if any(name.endswith("data.pkl") for name in names):
        return _open_torch(path)
    raise ValueError("a zip archive, but neither PyTorch's nor an .npz file")


def _open_array(path: Path, archive: zipfile.ZipFile, member: str) -> tuple[str, Tensor]:
    name = member.removesuffix(".npy")

    def read() -> np.ndarray:
        try:
            with np.load(path, allow_pickle=False) as file:
                return file[name]
        except _DAMAGED as error:
            raise ValueError(f"{name} is damaged: {first_line(error)}") from error

    try:
        with archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            shape, _, dtype = _HEADERS[version](file)
        check_array(archive.getinfo(member), shape, dtype)
    except _DAMAGED as error:
        raise ValueError(f"{name}: {first_line(error)}") from error
    if dtype.hasobject:
        raise ValueError(f"{name} is an array of objects, which is refused")
    return name, Tensor(shape, read)


def _open_torch(path: Path) -> dict[str, Tensor]:
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        raise ValueError(
            "a PyTorch file, and torch is missing: install vitx[torch], or give a .safetensors file"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd pickles, which the error below reports
            value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ValueError(
            f"refused, as it holds {found[1]}, which may run code: only plain tensors are read"
            if found
            else "damaged, or refused as it holds more than plain tensors"
        ) from error
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"damaged or no PyTorch file: {first_line(error)}") from error
    while isinstance(value, dict) and (
        inner := [value[key] for key in _WRAPPERS if isinstance(value.get(key), dict)]
    ):
        value = inner[0]
    if not isinstance(value, dict):
        raise ValueError(f"the file holds a {type(value).__name__}, not tensors by name")

    def read(tensor: Any) -> np.ndarray:
        half = tensor.dtype == torch.bfloat16  # NumPy has no such type
        return (tensor.float() if half else tensor).detach().numpy()

    return {
        str(name): Tensor(tuple(tensor.shape), partial(read, tensor))
        for name, tensor in value.items()
        if isinstance(tensor, torch.Tensor)
    }
