"""The order in which pixels are removed, and their number: exact, also at ties."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from vitx.ops import Array


def pixel_counts(pixels: int, fractions: Sequence[float]) -> tuple[int, ...]:
    """floor(pixels * fraction), as the decimals are meant: 0.3 is 3/10, not a float below it."""
    return tuple(
        int(pixels * Fraction(fraction).limit_denominator(1_000_000)) for fraction in fractions
    )


def are_increasing(fractions: Sequence[float]) -> bool:
    """Whether there are fractions, in [0, 1], each larger than the one before."""
    inside = all(0 <= fraction <= 1 for fraction in fractions)
    return bool(fractions) and inside and all(a < b for a, b in pairwise(fractions))


def rankable(heatmaps: ArrayLike) -> Array:
    """Heatmaps (..., H, W) as JAX arrays of the same order.

    64-bit values that differ may be equal in 32 bits, and XLA sorts subnormal values as zeros: without 64-bit mode each
    such map's values are replaced by their ranks.

    Raises:
        ValueError: They are no real numbers, or not finite; values are not checked inside a `jit`.
    """
    heatmaps = heatmaps if isinstance(heatmaps, Array) else np.asarray(heatmaps)
    require_rankable(heatmaps)
    if isinstance(heatmaps, Array):
        return heatmaps
    fits = heatmaps.dtype.itemsize <= jnp.result_type(float).itemsize
    if fits and not (jnp.issubdtype(heatmaps.dtype, jnp.floating) and _any_subnormal(heatmaps)):
        return jnp.asarray(heatmaps)
    rows = heatmaps.reshape(-1, np.prod(heatmaps.shape[-2:], dtype=int))
    ranks = [np.unique(row, return_inverse=True)[1] for row in rows]
    return jnp.asarray(np.array(ranks, np.int32).reshape(heatmaps.shape))


def _any_subnormal(values: np.ndarray) -> bool:
    magnitude = np.abs(values.astype(np.float64))
    return bool(((magnitude > 0) & (magnitude < np.finfo(np.float32).tiny)).any())


def require_rankable(heatmaps: Array | np.ndarray) -> None:
    """ValueError where heatmaps (N, ..., H, W) are no real numbers, or not finite."""
    if heatmaps.dtype.kind not in "biuf" and not jnp.issubdtype(heatmaps.dtype, jnp.floating):
        raise ValueError(f"heatmaps must be real numbers, not {heatmaps.dtype}")
    if not isinstance(heatmaps, jax.core.Tracer):
        finite = np.isfinite(np.asarray(heatmaps)).all(tuple(range(1, heatmaps.ndim)))
        if not finite.all():
            raise ValueError(f"heatmap {finite.argmin()} is not finite")


def removal_ranks(heatmaps: Array, direction: str) -> Array:
    """Each pixel's place in the order of removal: (..., H, W) -> int32 (..., H, W), 0 first.

    "positive" removes the highest values first, "negative" the lowest. Among equal values the
    lower (row-major) index goes first in both, so the order is the same on every device and in
    every run.
    """
    *batch, height, width = heatmaps.shape
    keys = heatmaps.reshape(-1, height * width)  # (b, N)
    # Not the order of -keys, which wraps where they are whole numbers.
    order = jnp.argsort(keys, axis=-1, stable=True, descending=direction == "positive")
    places = jnp.arange(height * width, dtype=jnp.int32)
    ranks = jax.vmap(lambda row: jnp.zeros_like(places).at[row].set(places, unique_indices=True))(
        order
    )
    return ranks.reshape(*batch, height, width)
