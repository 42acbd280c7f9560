"""Checkpoints by their names on the Hugging Face hub, such as "timm/vit_base_patch16_224.augreg_in21k"."""

import contextlib
import importlib
import os
import re
import warnings
from pathlib import Path
from typing import Final

from vitx.runtime.files import first_line

_NAME: Final = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
_SUFFIXES: Final = (".safetensors", ".json", ".bin", ".pth", ".pt", ".npz", ".tar", ".ckpt")
# One file of weights, or its shards; never a pickle.
_WEIGHTS: Final[tuple[str, ...]] = ("model.safetensors", "model.safetensors.index.json")
CONFIG: Final = "config.json"
PROCESSORS: Final = ("preprocessor_config.json", "processor_config.json")
"""Either; the second one is of newer versions of transformers, which save the image processor inside it."""
_WANTED: Final = (*_WEIGHTS, "model-*-of-*.safetensors", CONFIG, *PROCESSORS)


def is_hub_name(path: str | os.PathLike[str]) -> bool:
    """Whether a text may be a name on the hub: OWNER/NAME or OWNER/NAME@REVISION, without a file's suffix.

    No path into a folder that is here, unless it has a revision.
    """
    text = os.fspath(path)
    named = _NAME.fullmatch(text) is not None and ".." not in text
    here = Path(text).parts[:1] and Path(text).parts[0] in os.listdir()
    return named and not text.endswith(_SUFFIXES) and ("@" in text or not here)


def fetched(path: str | os.PathLike[str]) -> Path:
    """The folder of a checkpoint in the hub's local cache, fetched where files of it are not there yet.

    A name without a revision is looked up on the hub until the cache has its files: later calls need no network. Where
    it lacks no more than JSON files and the hub is not reached, a warning says so.

    Raises:
      FileNotFoundError: in one line, with the command that fetches it by hand: huggingface_hub is not installed, the
        hub is not reached, or it has no such model, or none in .safetensors.
    """
    text = os.fspath(path)
    found = _NAME.fullmatch(text)
    assert found
    name, revision = found.groups()
    try:
        snapshot = importlib.import_module("huggingface_hub").snapshot_download
    except ImportError:
        raise _absent(
            name, revision, 'huggingface_hub is not installed: pip install "vitx[hub]"'
        ) from None
    options = {"revision": revision, "allow_patterns": list(_WANTED)}
    local, (weights, lacking) = None, (_WEIGHTS[:1], _WEIGHTS[:1])
    with contextlib.suppress(Exception):  # of the hub, of the disk: nothing is there
        local = Path(snapshot(name, **options, local_files_only=True))
        weights, lacking = _files(local)
    if local and not lacking:
        return local
    try:
        folder = Path(snapshot(name, **options, local_files_only=False))
    except Exception as error:  # of the hub, of requests, of the disk
        reason = f"the hub does not give it ({type(error).__name__}: {first_line(error):.300})"
        if local:
            reason += f"; its local cache lacks {', '.join(lacking)}"
        if not local or set(weights).intersection(lacking):
            raise _absent(name, revision, reason, weights) from error
        warnings.warn(f"{name}: {reason}, so that usual settings take its place", stacklevel=2)
        return local
    weights, lacking = _files(folder)
    if absent := [file for file in weights if file in lacking]:
        either = " or ".join(_WEIGHTS if absent == list(_WEIGHTS[:1]) else absent[:1])
        raise _absent(name, revision, f"the hub has no {either} of it", weights)
    return folder


def _files(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The files of the weights of a checkpoint, and what a folder of the cache lacks of it.

    The cache may hold a part: of a download that was stopped, or what other programs wanted.
    """
    weights, index = _WEIGHTS[:1], folder / _WEIGHTS[1]
    if index.is_file() and not (folder / _WEIGHTS[0]).is_file():
        named = re.findall(r'"(\w[\w.-]*\.safetensors)"', index.read_text(errors="replace"))
        weights = (index.name, *sorted(set(named)))
    lacking = [name for name in (*weights, CONFIG) if not (folder / name).is_file()]
    # Hugging Face's configs have a model_type; timm's do not, and have no file beside them.
    own = CONFIG not in lacking and b'"model_type"' in (folder / CONFIG).read_bytes()
    if own and not any((folder / name).is_file() for name in PROCESSORS):
        lacking.append(PROCESSORS[0])
    return weights, tuple(lacking)


def _absent(
    name: str, revision: str | None, reason: str, weights: tuple[str, ...] = _WEIGHTS[:1]
) -> FileNotFoundError:
    folder = f"weights/{name.split('/')[1]}"
    files = ",".join((CONFIG, PROCESSORS[0], *weights))
    url = f"https://huggingface.co/{name}/resolve/{revision or 'main'}/{{{files}}}"
    return FileNotFoundError(
        f"{name}: there is no such file or folder here, and as a name on the Hugging Face hub: {reason}. By hand: "
        f"curl -fL --create-dirs --output-dir {folder} --remote-name-all '{url}', then give {folder} "
        "(timm's have no preprocessor_config.json)"
    )
