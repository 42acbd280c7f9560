"""Rotary position embeddings over a grid of patches (Su et al., 2021; Heo et al., ECCV 2024)."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vitx.ops import Array, Ops

_REFERENCE_GRID = 16  # side of the grid in whose cells EVA-02 counts positions


class Rotation(NamedTuple):
    """Cosine and sine (N, d) for `vitx.ops.rotate`; `neighbours`: channels 2i and 2i + 1 turn together, not halves."""

    cosine: Array
    sine: Array
    neighbours: bool

    def at(self, places: Array) -> "Rotation":
        """The rotation of the tokens at places (B, K), whose tables are (B, K, d)."""
        return self._replace(cosine=self.cosine[places], sine=self.sine[places])

    def __call__(self, x: Array, ops: Ops) -> Array:
        """Turns queries or keys x (B, H, Q, d) of the first Q tokens.

        Neighbours move to the two halves first, in queries as in keys, which leaves their products as they are.
        """
        batch, heads, count, width = x.shape
        if self.neighbours:
            x = x.reshape(batch, heads, count, width // 2, 2).transpose(0, 1, 2, 4, 3)
            x = x.reshape(batch, heads, count, width)
        return ops.rotate(x, self.cosine[..., :count, :], self.sine[..., :count, :])


def rotation(
    kind: str, base: float, grid: tuple[int, int], prefix: int, width: int, dtype: np.dtype
) -> Rotation:
    """The rotation of prefix tokens, by nothing, and of the patches of a grid (h, w).

    `width` is the number of channels of a head, a multiple of 4.

    Patch (y, x) turns channel pair j of the first half of the pairs by y f_j, of the second by x f_j, with
    f_j = base^(-4 j / width). Coordinates are 2 pi (2 (i + 0.5) / n - 1) in DINOv3, 16 i / n in EVA-02.
    """
    frequencies = base ** (-4 * np.arange(width // 4) / width)
    axes = []
    for side in grid:
        cells = np.arange(side, dtype=np.float64)
        if kind == "dinov3":
            axes.append(2 * math.pi * (2 * (cells + 0.5) / side - 1))
        else:
            axes.append(_REFERENCE_GRID * cells / side)
    coordinates = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2, 1)  # (N, 2, 1)
    angles = (coordinates * frequencies).reshape(len(coordinates), -1)  # (N, width / 2)
    angles = np.concatenate([np.zeros((prefix, width // 2)), angles])
    cosine, sine = np.cos(angles), np.sin(angles)
    return Rotation(
        jnp.asarray(np.concatenate([cosine, cosine], 1), dtype),
        jnp.asarray(np.concatenate([-sine, sine], 1), dtype),
        kind == "eva",
    )
