"""Checkpoints by their names on the Hugging Face hub, such as "timm/vit_base_patch16_224.augreg_in21k"."""

import importlib
import os
import re
from pathlib import Path
from typing import Any, Final

from vitx.runtime.files import first_line

_NAME: Final = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
_SUFFIXES: Final = (".safetensors", ".json", ".bin", ".pth", ".pt", ".npz", ".tar", ".ckpt")
# One file of weights, or its shards; never a pickle.
_WEIGHTS: Final = ("model.safetensors", "model.safetensors.index.json")
_WANTED: Final = (
    *_WEIGHTS,
    "model-*-of-*.safetensors",
    "config.json",
    "preprocessor_config.json",
)


def is_hub_name(path: str | os.PathLike[str]) -> bool:
    """Whether a text may be a name on the hub: OWNER/NAME or OWNER/NAME@REVISION, without a file's suffix.

    No path into a folder that is here, unless it has a revision.
    """
    text = os.fspath(path)
    named = _NAME.fullmatch(text) is not None and ".." not in text
    here = Path(text).parts[:1] and Path(text).parts[0] in os.listdir()
    return named and not text.endswith(_SUFFIXES) and ("@" in text or not here)


def fetched(path: str | os.PathLike[str]) -> Path:
    """The folder of a checkpoint in the hub's local cache, fetched if it is not there yet.

    A name without a revision is looked up on the hub once: later calls read the cache, and need no network.

    Raises:
      FileNotFoundError: in one line, with the command that fetches it by hand: huggingface_hub is not installed, the
        hub is not reached, or it has no such model, or none in .safetensors.
    """
    text = os.fspath(path)
    found = _NAME.fullmatch(text)
    assert found
    name, revision = found.groups()
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise _absent(
            name, revision, 'huggingface_hub is not installed: pip install "vitx[hub]"'
        ) from None
    for local in (True, False):
        folder = _snapshot(hub, name, revision, local)
        if folder and any((folder / weights).is_file() for weights in _WEIGHTS):
            return folder
    raise _absent(name, revision, f"the hub has no {' or '.join(_WEIGHTS)} of it")


def _snapshot(hub: Any, name: str, revision: str | None, local: bool) -> Path | None:
    """The folder of a model's files; None where only local ones count, and there are none."""
    try:
        return Path(
            hub.snapshot_download(
                name, revision=revision, allow_patterns=list(_WANTED), local_files_only=local
            )
        )
    except Exception as error:  # of the hub, of requests, of the disk
        if local:
            return None
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise _absent(name, revision, f"the hub does not give it ({reason:.300})") from error


def _absent(name: str, revision: str | None, reason: str) -> FileNotFoundError:
    folder = f"weights/{name.split('/')[1]}"
    files = "{config.json,preprocessor_config.json,model.safetensors}"
    url = f"https://huggingface.co/{name}/resolve/{revision or 'main'}/{files}"
    return FileNotFoundError(
        f"{name}: there is no such file or folder here, and as a name on the Hugging Face hub: {reason}. By hand: "
        f"curl -fL --create-dirs --output-dir {folder} --remote-name-all '{url}', then give {folder} "
        "(timm's have no preprocessor_config.json)"
    )
