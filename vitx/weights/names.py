"""Recognises whose names a file's tensors have, see `schemes`, and gives them timm's names."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from vitx.weights.layout import AXES
from vitx.weights.schemes import REFUSED, SCHEMES, Scheme
from vitx.weights.tensor import Tensor

_PREFIXES: Final = ("module.", "model.", "_orig_mod.", "timm_model.")


@dataclass(frozen=True)
class Named:
    """Tensors under timm's names with PyTorch's axes; AffinityNet's keep [Re]'s names, CNNs have vitx's.

    `original` has the names and axes of the file, without prefixes such as "module.".
    """

    tensors: dict[str, Tensor]
    scheme: Scheme
    original: dict[str, Tensor]


def recognise(tensors: dict[str, Tensor]) -> Named:
    """Renames a file's tensors, except unknown ones; ValueError for an architecture that vitx does not have."""
    for prefix in _PREFIXES:
        while all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    for pattern, what in REFUSED:
        if found := _first(pattern, tensors):
            raise ValueError(f"this is {what} (tensor {found}), which vitx does not have")
    scheme = next((scheme for scheme in SCHEMES if _first(scheme.mark, tensors)), None)
    if scheme is None:
        some = ", ".join(list(tensors)[:3])
        raise ValueError(
            f"no names of a Vision Transformer or CNN that vitx knows; the first tensors are {some}"
        )
    renamed = {}
    for old, tensor in tensors.items():
        name = scheme.timm_name(old)
        if name is None or (name == "reg_token" and 0 in tensor.shape):
            continue
        if scheme.flax:
            tensor = _pytorch_axes(old, tensor)
        elif name != old and name in ("cls_token", "pos_embed") and len(tensor.shape) < 3:
            # CLIP's and SigLIP's are without the axis of the batch, and of the one token.
            ones = (1,) * (3 - len(tensor.shape))
            tensor = tensor.reshape(*ones, *tensor.shape)
        renamed[name] = tensor
    _join_attention(renamed)
    _join_mlp(renamed)
    _split_pooling(renamed)
    if scheme.convert is not None:
        scheme.convert(renamed)
    return Named(renamed, scheme, tensors)


def _first(pattern: str, names: Iterable[str]) -> str | None:
    return next(filter(re.compile(pattern).search, names), None)


def _join_attention(tensors: dict[str, Tensor]) -> None:
    """Joins queries, keys and values to one projection, where all three exist with equal shapes.

    Where keys alone have no bias, those of queries and values become q_bias and v_bias.
    """
    for query in [n for n in tensors if re.fullmatch(r"blocks\.\d+\.attn\.q\.(weight|bias)", n)]:
        names = [query.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        if not _join(tensors, names, query.replace(".attn.q.", ".attn.qkv.")):
            _, key, value = names
            if query.endswith("bias") and key not in tensors and value in tensors:
                block = query.removesuffix("q.bias")
                tensors[f"{block}q_bias"] = tensors.pop(query)
                tensors[f"{block}v_bias"] = tensors.pop(value)


def _join_mlp(tensors: dict[str, Tensor]) -> None:
    """Joins the two halves of a gated MLP's first layer; one alone is a plain MLP's."""
    for up in [n for n in tensors if re.fullmatch(r"blocks\.\d+\.mlp\.up\.(weight|bias)", n)]:
        joined, gate = up.replace(".up.", ".fc1."), up.replace(".up.", ".gate.")
        if gate not in tensors:
            tensors[joined] = tensors.pop(up)
        _join(tensors, [gate, up], joined)


def _join(tensors: dict[str, Tensor], names: list[str], joined: str) -> bool:
    """Joins tensors along the first axis, where all exist with equal shapes; returns whether they do."""
    shapes = {tensors[name].shape if name in tensors else () for name in names}
    if len(shapes) > 1 or () in shapes:
        return False
    (shape,) = shapes
    parts = [tensors.pop(name) for name in names]
    tensors[joined] = Tensor((len(parts) * shape[0], *shape[1:]), partial(_concatenated, parts))
    return True


def _split_pooling(tensors: dict[str, Tensor]) -> None:
    """Splits the joint projection of SigLIP's pooling into timm's two: the probe's, and that of keys and values."""
    for kind in ("weight", "bias"):
        joined = tensors.get(f"attn_pool.qkv.{kind}")
        if joined is not None and joined.shape and joined.shape[0] % 3 == 0:
            del tensors[f"attn_pool.qkv.{kind}"]
            width = joined.shape[0] // 3
            tensors[f"attn_pool.q.{kind}"] = joined.rows(0, width)
            tensors[f"attn_pool.kv.{kind}"] = joined.rows(width, 3 * width)


def _concatenated(parts: list[Tensor]) -> np.ndarray:
    return np.concatenate([part.read() for part in parts])


def _pytorch_axes(name: str, tensor: Tensor) -> Tensor:
    """A tensor of Flax with PyTorch's axes; one with unexpected axes stays, and will not fit."""
    leaf, shape = name.rpartition("/")[2], tensor.shape
    if leaf in ("scale", "bias"):  # biases by heads, GroupNorms over (1, 1, 1, C)
        return tensor.reshape(math.prod(shape))
    if leaf == "kernel" and len(shape) == 3:  # (heads, d, width) or (width, heads, d)
        rows = shape[0] * shape[1] if name.endswith("/out/kernel") else shape[0]
        tensor = tensor.reshape(rows, math.prod(shape) // max(rows, 1))
    if leaf == "kernel" and (axes := AXES.get(len(tensor.shape))):
        return tensor.transpose(*axes)
    return tensor
