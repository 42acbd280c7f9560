"""Resizing by its definition, in loops."""

import numpy as np


def bilinear(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """torch's Upsample, align_corners=False: a loop over the pixels of maps (h, w)."""
    out = np.zeros(size)
    for row in range(size[0]):
        for column in range(size[1]):
            y = max((row + 0.5) * maps.shape[0] / size[0] - 0.5, 0)
            x = max((column + 0.5) * maps.shape[1] / size[1] - 0.5, 0)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, maps.shape[0] - 1), min(left + 1, maps.shape[1] - 1)
            upper = maps[top, left] * (1 - (x - left)) + maps[top, right] * (x - left)
            lower = maps[bottom, left] * (1 - (x - left)) + maps[bottom, right] * (x - left)
            out[row, column] = upper * (1 - (y - top)) + lower * (y - top)
    return out
