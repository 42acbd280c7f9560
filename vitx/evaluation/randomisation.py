"""Model-parameter randomisation: a map must change when the model forgets (Adebayo et al., NeurIPS 2018)."""

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from vitx.models.tuning import layer_of
from vitx.models.vit import VisionTransformer
from vitx.ops import Array


def randomised(model: VisionTransformer, layer: int, seed: int = 0) -> VisionTransformer:
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
        if layer_of(names, depth) < layer:
            return value
        own = jax.random.fold_in(key, zlib.crc32(repr(names).encode()))
        noise = jax.random.normal(own, value.shape, jnp.float32).astype(value.dtype)
        return value.mean() + value.std() * noise

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(drawn, state))


def randomisation_curve(
    model: VisionTransformer,
    explain: Callable[[VisionTransformer, Array], ArrayLike],
    images: Array,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Rank correlation of maps with the trained model's, as layer after layer is randomised from the top.

    Args:
      model: trained.
      explain: (model, images (B, H, W, 3)) -> maps (B, h, w) of fixed classes.
      images: normalised.
      seed: of the numbers.

    Returns:
      (depth + 2, B): above the blocks alone, then from each block up, last everything. 0 is best, 1 means that the map
      does not depend on these layers.
    """
    trained = explain(model, images)
    layers = range(len(model.blocks) + 1, -1, -1)
    return np.stack(
        [
            rank_correlation(trained, explain(randomised(model, layer, seed), images))
            for layer in layers
        ]
    )


def rank_correlation(maps: ArrayLike, others: ArrayLike) -> NDArray[np.float64]:
    """Spearman's correlation of each map (N, h, w) with the other of its place, (N,); NaN where one is constant."""
    first, second = (
        rankdata(np.asarray(m).reshape(len(np.asarray(m)), -1), axis=1) for m in (maps, others)
    )
    first, second = (x - x.mean(1, keepdims=True) for x in (first, second))
    size = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    product = (first * second).sum(1)
    return np.divide(product, size, out=np.full(len(size), np.nan), where=size > 0)
