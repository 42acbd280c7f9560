"""Bootstrap intervals for figures that are computed over a set of images."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_TAIL = (1 - 0.95) / 2


def bootstrap_interval(
    statistic: Callable[[Array], Mapping[str, Array]],
    count: int,
    *,
    samples: int = 1000,
) -> dict[str, Array]:
    """95 % intervals by the percentile bootstrap over images, from a fixed seed.

    Args:
        statistic: weights (S, N), how often each image was drawn, to named figures (S, ...); for
            example `SegmentationCounts.scores`.
        count: N, the number of images.
        samples: how many times the images are drawn, with replacement.

    Returns:
        For each figure (2, ...): the lower and the upper end. Samples in which a figure is NaN do not count for it.
    """
    generator = np.random.default_rng(0)
    chunks = []
    # Chunks bound the memory: 50,000 images x 1,000 samples would be 400 MB.
    for start in range(0, samples, 50):
        draws = generator.integers(count, size=(min(50, samples - start), count))
        weights = np.stack([np.bincount(row, minlength=count) for row in draws]).astype(np.float64)
        chunks.append(statistic(weights))
    tails = _TAIL, 1 - _TAIL
    return {
        name: _quantiles(np.concatenate([chunk[name] for chunk in chunks]), tails)
        for name in chunks[0]
    }


def _quantiles(values: Array, levels: tuple[float, float]) -> Array:
    """Quantiles (2, ...) of the samples that are known; NaN where none is."""
    if not np.isnan(values).any():
        return np.quantile(values, levels, 0)
    unknown = np.isnan(values).all(0)
    found = np.nanquantile(np.where(unknown, 0, values), levels, 0)
    return np.where(unknown, np.nan, found)
