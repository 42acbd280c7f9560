"""Affinities between pixels without training, from features of any backbone.

An affinity of all pairs of an image's N pixels is (..., N, N): symmetric, in [0, 1], with a unit diagonal.
"""

import jax
import jax.numpy as jnp
from jax import lax

from vitx.pseudomasks.affinity import inside, offsets, widen

Array = jax.Array


def cosine_affinities(features: Array) -> Array:
    """Cosine similarity of features (..., H, W, C), its positive part: (..., N, N). Zero vectors are like nothing."""
    pixels = _pixels(features)
    norms = jnp.linalg.norm(pixels, axis=-1, keepdims=True)
    unit = pixels / jnp.where(norms > 0, norms, 1)
    cosine = jnp.einsum("...ic,...jc->...ij", unit, unit, precision="highest")
    return _unit_diagonal(jnp.clip(cosine, 0, 1))


def all_affinities(features: Array) -> Array:
    """exp(-mean_c |f_i - f_j|) of all pairs (..., N, N) of features (..., H, W, C); `affinities` has the near ones."""
    pixels = _pixels(features)

    def one(origin: Array) -> Array:
        return jnp.exp(-jnp.abs(pixels - origin[..., None, :]).mean(-1))  # (..., N)

    # One pixel at a time: all differences at once would take N^2 C.
    return jnp.moveaxis(lax.map(one, jnp.moveaxis(pixels, -2, 0)), 0, -2)


def near_pairs(affinity: Array, grid: tuple[int, int], radius: int, everywhere: bool) -> Array:
    """The pairs inside a radius: (..., N, N) -> (..., P, H, W), as `vitx.pseudomasks.affinity.affinities` has them."""
    height, width = grid
    square = affinity.reshape(*affinity.shape[:-2], height, width, height, width)
    moves = offsets(radius)
    found = []
    for dy, dx in moves.tolist():
        y, x = jnp.arange(height)[:, None], jnp.arange(width)
        found.append(
            square[..., y, x, jnp.minimum(y + dy, height - 1), jnp.clip(x + dx, 0, width - 1)]
        )
    pairs = jnp.where(jnp.asarray(inside(grid, radius)), jnp.stack(found, -3), 0)
    if everywhere:
        return pairs
    reach = radius - 1
    return widen(pairs[..., : height - reach, reach : width - reach], reach)


def _pixels(features: Array) -> Array:
    return features.reshape(*features.shape[:-3], -1, features.shape[-1])


def _unit_diagonal(affinity: Array) -> Array:
    return jnp.where(jnp.eye(affinity.shape[-1], dtype=bool), 1, affinity)
