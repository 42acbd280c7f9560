"""Variants of a model that share its weights: at another image size, or with other attributes; and its tokens."""

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from vitx.models.convnet import ConvNet
from vitx.models.levels import Backbone, StemAlone
from vitx.models.vit import VisionTransformer
from vitx.ops import Array

Classifier = VisionTransformer | ConvNet
M = TypeVar("M", VisionTransformer, ConvNet, Classifier, Backbone)
Module = TypeVar("Module", bound=nnx.Module)


def variant(model: Module, **attributes: Any) -> Module:
    """A model with the same weights, arrays that are not copied, and some other attributes."""
    other = nnx.merge(*nnx.split(model))
    for name, value in attributes.items():
        setattr(other, name, value)
    return other


def at_size(model: M, size: tuple[int, int]) -> M:
    """The model for images of another size: positions resampled to its grid, all other weights shared.

    Args:
      model: a `VisionTransformer`, or a `ConvNet` or a hybrid's stem, which have no positions.
      size: (H, W) in pixels; of a transformer multiples of the side of a token's cell (`cell`).

    Returns:
      A model, or `model` itself where it has that size.

    Raises:
      ValueError: for a size that is no multiple of the cell.
    """
    preprocess = dataclasses.replace(model.preprocess, size=size)
    if preprocess.size == model.preprocess.size:
        return model
    if isinstance(model, ConvNet):
        return model.at_size(preprocess.size)
    side = cell(model)
    if any(length % side for length in preprocess.size):
        raise ValueError(f"size {preprocess.size} is not a multiple of the cell, {side} pixels")
    if isinstance(model, StemAlone):
        return variant(model, preprocess=preprocess)
    grid = (preprocess.size[0] // side, preprocess.size[1] // side)
    design, changed = model.design, {"preprocess": preprocess, "grid": grid}
    if model.pos_embed is not None:
        table, entries = model.pos_embed[...], design.position_prefix
        table = resample_positions(table, entries, model.grid, grid, design.resampling)
        changed["pos_embed"] = nnx.Param(table)
    return variant(model, **changed)


def tokens(model: VisionTransformer, images: ArrayLike) -> Array:
    """The model's tokens after the final norm, where it has one.

    Args:
      model: a `VisionTransformer`.
      images: normalised, (B, H, W, 3).

    Returns:
      (B, P + N, D): first `model.prefix_tokens` tokens (class token, distillation token, registers), then the patches
      in row order.

    Raises:
      ValueError: for images of another shape.
    """
    size, images = model.preprocess.size, jnp.asarray(images)
    if images.ndim != 4 or images.shape[1:] != (*size, 3):
        raise ValueError(f"images must be (B, {size[0]}, {size[1]}, 3), not {images.shape}")
    return _tokens(variant(model, queries=None), images)


@jax.jit
def _tokens(model: VisionTransformer, images: Array) -> Array:
    encoded, _ = model.encode(model.embed(model.features(images)))
    return model.normed(encoded)


def cell(model: Backbone) -> int:
    """Side in pixels of the square of the image that a patch token, or a cell of a CNN's last map, covers."""
    if isinstance(model, ConvNet):
        return model.stride
    if isinstance(model, StemAlone):
        return model.stem.stride
    return model.preprocess.size[0] // model.grid[0]


def resample_positions(
    table: Array,
    prefix: int,
    old: tuple[int, int],
    new: tuple[int, int],
    kind: str = "antialias",
) -> Array:
    """Position embedding (1, P + h w, D) of a grid (h, w) for another grid; the P entries of prefix tokens stay.

    Args:
      table: of any float type, in which it is computed.
      prefix: P.
      old: (h, w).
      new: the other grid.
      kind: "antialias": bicubic with antialias, as in timm and in DINOv2 with registers. "bicubic": without antialias,
        by Keys' kernel with a = -0.75, as transformers resamples those of DINOv2, CLIP and SigLIP.
    """
    first, cells = table[:, :prefix], table[:, prefix:].reshape(1, *old, -1)
    if kind == "antialias":
        cells = jax.image.resize(cells, (1, *new, cells.shape[-1]), "cubic", antialias=True)
    else:
        rows, columns = (
            jnp.asarray(_keys_weights(n, o), table.dtype) for n, o in zip(new, old, strict=True)
        )
        cells = jnp.einsum("yh,xw,bhwd->byxd", rows, columns, cells, precision="highest")
    return jnp.concatenate([first, cells.reshape(1, new[0] * new[1], -1)], axis=1)


def _keys_weights(new: int, old: int, a: float = -0.75) -> np.ndarray:
    """Weights (new, old) of cubic convolution between cell centres, the border repeated (Keys, 1981)."""
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    taps = np.floor(centres).astype(int)[:, None] + np.arange(-1, 3)  # (new, 4)
    x = np.abs(centres[:, None] - taps)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    weights = np.zeros((new, old))
    rows = np.broadcast_to(np.arange(new)[:, None], taps.shape)
    np.add.at(weights, (rows, taps.clip(0, old - 1)), np.where(x <= 1, near, far))
    return weights
