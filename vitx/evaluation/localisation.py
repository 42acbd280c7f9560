"""How well a map finds an object whose mask is known: pointing game and energy."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def pointing_game(maps: ArrayLike, masks: ArrayLike, tolerance: int = 15) -> NDArray[np.bool_]:
    """Whether a map's greatest value lies on the object, or within `tolerance` pixels of it (Zhang et al., IJCV 2018).

    Args:
      maps: (N, H, W); of equal values the first in row order counts.
      masks: bool (N, H, W).
      tolerance: in pixels, Euclidean; 0 for on the object alone.

    Returns:
      (N,), False where there is no object.
    """
    maps, masks = np.asarray(maps), np.asarray(masks, bool)
    hits = np.zeros(len(maps), bool)
    for number, (one, mask) in enumerate(zip(maps, masks, strict=True)):
        row, column = np.unravel_index(one.argmax(), one.shape)
        rows, columns = np.nonzero(mask)
        distances = (rows - row) ** 2 + (columns - column) ** 2
        hits[number] = bool(len(rows)) and distances.min() <= tolerance**2
    return hits


def energy_inside(maps: ArrayLike, masks: ArrayLike) -> NDArray[np.float64]:
    """The share of a map's positive part that lies on the object (Wang et al., CVPR-W 2020).

    Args:
      maps: (N, H, W).
      masks: bool (N, H, W).

    Returns:
      (N,) in [0, 1]; NaN for a map without a positive value.
    """
    positive = np.maximum(np.asarray(maps, np.float64), 0)
    total = positive.sum((1, 2))
    inside = (positive * np.asarray(masks, bool)).sum((1, 2))
    return np.divide(inside, total, out=np.full(len(total), np.nan), where=total > 0)
