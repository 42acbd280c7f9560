"""Reads PyTorch's files without running what is in them, and picks a model where they hold several."""

import importlib
import re
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from vitx.weights.tensor import Tensor

_MODEL: Final = ("state_dict", "model_state_dict", "model", "net")
_KEYS: Final = {
    "ema": ("state_dict_ema", "model_ema", "ema_state_dict", "ema"),
    "model": _MODEL,
    "teacher": ("teacher",),
    "student": ("student",),
}
WHICH: Final = tuple(_KEYS)
"""The models that a training script may write into one file: its running mean, the trained one, DINO's two."""
_AS_A_FILE: Final = (
    'for `vitx train`, vitx.save(vitx.load(FILE, which=...), "one.safetensors") makes a file of one'
)


def pytorch_tensors(path: Path, which: str | None = None) -> dict[str, Tensor]:
    """The tensors by name in a .pth, .pt, .bin or .tar file; `which` chooses among `WHICH` where it has several.

    Raises:
      ValueError: torch is missing, the file is damaged, or holds objects or no tensors by name; it has several models
        and no running mean, or not the one that is asked for.
    """
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        raise ValueError(
            "a PyTorch file, and torch is missing: install vitx[torch], or give a .safetensors file"
        ) from None
    try:
        with warnings.catch_warnings(action="ignore"):  # about odd pickles, reported below
            value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ValueError(
            f"refused, as it holds {found[1]}, which may run code: only plain tensors are read"
            if found
            else "damaged, or no PyTorch file of plain tensors"
        ) from error
    if isinstance(value, dict):
        value = _backbone(_chosen(value, which))
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


def _chosen(value: Mapping[str, Any], which: str | None) -> Mapping[str, Any]:
    """The innermost dict of a model; of several the running mean, as timm reads it, which a warning says."""
    found = {kind: key for kind, keys in _KEYS.items() if (key := _first(value, keys)) is not None}
    if which is not None and which not in found:
        raise ValueError(
            f"it has no weights of which={which!r}, but those of {', '.join(found) or 'one model'}"
        )
    if not found:
        return value
    kind = which or next(iter(found))
    if which is None and len(found) > 1:
        options = " or ".join(f"which={name!r}" for name in found)
        if kind != "ema":
            raise ValueError(f"it has the weights of several models: give {options}; {_AS_A_FILE}")
        warnings.warn(
            f"it has the weights of several models: those of {found['ema']!r} are read, the running mean, as timm "
            f"does; vitx.load takes {options}; {_AS_A_FILE}",
            stacklevel=2,
        )
    inner = value[found[kind]]
    return _chosen(inner, None) if _first(inner, _MODEL) is not None else inner


def _first(value: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    return next((key for key in keys if isinstance(value.get(key), dict)), None)


def _backbone(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without the heads of self-distillation that DINO trains beside a backbone."""
    prefix = r"^(module\.)?(backbone\.)"
    if not any(re.match(r"(module\.)?head\.last_layer\.", str(name)) for name in state):
        return state
    return {
        re.sub(prefix, "", str(name)): tensor
        for name, tensor in state.items()
        if re.match(prefix, str(name))
    }
