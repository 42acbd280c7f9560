"""Model-parameter randomisation: a map must change when the model forgets (Adebayo et al., NeurIPS 2018)."""

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.scipy.stats import rankdata
from jax.typing import ArrayLike

from vitx.models.tuning import layer_of
from vitx.models.vit import VisionTransformer
from vitx.ops import Array


def randomised(model: VisionTransformer, layer: int | Array, seed: int = 0) -> VisionTransformer:
    """The model with random parameters from `layer` up: normal numbers with the mean and deviation of each tensor.

    Args:
      model: stays as it is.
      layer: 0 for all, N for block N (from 1) and what is above it, depth + 1 for what is above the blocks alone.
      seed: of the numbers.
    """
    graph, state = nnx.split(model)
    key, depth = jax.random.key(seed), len(model.blocks)

    def drawn(path: tuple[Any, ...], value: Array) -> Array:
        names = [getattr(entry, "key", None) for entry in path]
        own = jax.random.fold_in(key, zlib.crc32(repr(names).encode()))
        noise = jax.random.normal(own, value.shape, jnp.float32).astype(value.dtype)
        random = value.mean() + value.std() * noise
        return jnp.where(layer_of(names, depth) < layer, value, random)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(drawn, state))


def randomisation_curve(
    model: Any,
    explain: Callable[[Any, Array], Array],
    images: Array,
    trained: Array | None = None,
    seed: int = 0,
) -> Array:
    """Rank correlation of maps with the trained model's, as layer after layer is randomised from the top.

    Args:
      model: a trained `VisionTransformer`.
      explain: (model, images (B, H, W, 3)) -> maps (B, ..., h, w) of fixed classes.
      images: normalised.
      trained: explain(model, images), where it is at hand.
      seed: of the numbers.

    Returns:
      (depth + 2, B, ...): above the blocks alone, then from each block up, last everything. 0 is best, 1 means that
      the map does not depend on these layers.
    """
    ranks = _centred_ranks(explain(model, images) if trained is None else trained)

    def from_layer(layer: Array) -> Array:
        return _cosine(ranks, _centred_ranks(explain(randomised(model, layer, seed), images)))

    return lax.map(from_layer, jnp.arange(len(model.blocks) + 1, -1, -1))


def rank_correlation(maps: ArrayLike, others: ArrayLike) -> Array:
    """Spearman's correlation of each map (..., h, w) with the other of its place, (...); NaN where one is constant."""
    return _cosine(_centred_ranks(maps), _centred_ranks(others))


def _centred_ranks(maps: ArrayLike) -> Array:
    """Ranks less their mean, (..., h, w) -> (..., h * w)."""
    maps = jnp.asarray(maps)
    ranks = rankdata(maps.reshape(*maps.shape[:-2], -1), axis=-1)
    return ranks - ranks.mean(-1, keepdims=True)


def _cosine(first: Array, second: Array) -> Array:
    size = jnp.linalg.norm(first, axis=-1) * jnp.linalg.norm(second, axis=-1)
    return jnp.where(size > 0, (first * second).sum(-1) / size, jnp.nan)
