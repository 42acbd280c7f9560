"""How well a map finds an object whose mask is known: pointing game and energy."""

import jax.numpy as jnp
from jax.typing import ArrayLike

from vitx.ops import Array


def pointing_game(maps: ArrayLike, masks: ArrayLike, tolerance: int = 15) -> Array:
    """Whether a map's greatest value lies on the object, or within `tolerance` pixels of it (Zhang et al., IJCV 2018).

    Args:
      maps: (N, H, W); of equal values the first in row order counts.
      masks: bool (N, H, W).
      tolerance: in pixels, Euclidean; 0 for on the object alone.

    Returns:
      bool (N,), False where there is no object.
    """
    maps, masks = jnp.asarray(maps), jnp.asarray(masks, bool)
    place = maps.reshape(len(maps), -1).argmax(-1)[:, None, None]
    rows, columns = jnp.indices(maps.shape[1:])
    row, column = place // maps.shape[2], place % maps.shape[2]
    near = (rows[None] - row) ** 2 + (columns[None] - column) ** 2 <= tolerance**2
    return (masks & near).any((1, 2))


def energy_inside(maps: ArrayLike, masks: ArrayLike) -> Array:
    """The share of a map's positive part that lies on the object (Wang et al., CVPR-W 2020).

    Args:
      maps: (N, H, W).
      masks: bool (N, H, W).

    Returns:
      (N,) in [0, 1]; NaN for a map without a positive value.
    """
    maps, masks = jnp.asarray(maps), jnp.asarray(masks, bool)
    positive = jnp.where(maps > 0, maps, 0)
    total, inside = positive.sum((1, 2)), jnp.where(masks, positive, 0).sum((1, 2))
    return jnp.where(total > 0, inside / total, jnp.nan)
