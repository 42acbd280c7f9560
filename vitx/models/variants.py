"""Variants of a model that share its weights: at another image size, or with other attributes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vitx.models.vit import VisionTransformer
from vitx.ops import Array


def variant(model: VisionTransformer, **attributes: Any) -> VisionTransformer:
    """A model with the same weights, arrays that are not copied, and some other attributes."""
    other = nnx.merge(*nnx.split(model))
    for name, value in attributes.items():
        setattr(other, name, value)
    return other


def at_size(model: VisionTransformer, size: tuple[int, int]) -> VisionTransformer:
    """The model for images of another size: positions resampled to its grid, all other weights shared.

    Args:
      model: a `VisionTransformer`.
      size: (H, W) in pixels, multiples of the side of a token's cell (`cell`).

    Returns:
      A model, or `model` itself where it has that size.

    Raises:
      ValueError: for a size that is no multiple of the cell.
    """
    preprocess = dataclasses.replace(model.preprocess, size=size)
    if preprocess.size == model.preprocess.size:
        return model
    side = cell(model)
    if any(length % side for length in preprocess.size):
        raise ValueError(f"size {preprocess.size} is not a multiple of the cell, {side} pixels")
    grid = (preprocess.size[0] // side, preprocess.size[1] // side)
    table = resample_positions(model.pos_embed[...], model.prefix_tokens, model.grid, grid)
    return variant(model, preprocess=preprocess, grid=grid, pos_embed=nnx.Param(table))


def cell(model: VisionTransformer) -> int:
    """Side in pixels of the square of the image that a patch token covers."""
    return model.preprocess.size[0] // model.grid[0]


def resample_positions(
    table: Array, prefix: int, old: tuple[int, int], new: tuple[int, int]
) -> Array:
    """Position embedding (1, P + h w, D) of a grid (h, w) for another grid, as in timm.

    Bicubic with antialias, in the table's type; the P entries of prefix tokens stay.
    """
    first, cells = table[:, :prefix], table[:, prefix:].reshape(1, *old, -1)
    cells = jax.image.resize(cells, (1, *new, cells.shape[-1]), "cubic", antialias=True)
    return jnp.concatenate([first, cells.reshape(1, new[0] * new[1], -1)], axis=1)
