"""Bootstrap intervals for figures that are computed over a set of images."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def bootstrap_interval(
    statistic: Callable[[Array], Mapping[str, Array]],
    count: int,
    *,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Array]:
    """Percentile bootstrap over images.

    Args:
        statistic: weights (S, N), how often each image was drawn, to named figures (S, ...); for
            example `SegmentationCounts.scores`.
        count: N, the number of images.
        samples: how many times the images are drawn anew, with replacement.
        level: coverage of the interval.
        seed: the draws follow from it.

    Returns:
        For each figure (2, ...): the lower and the upper end.
    """
    generator = np.random.default_rng(seed)
    chunks = []
    # Chunks bound the memory: 50,000 images x 1,000 samples would be 400 MB.
    for start in range(0, samples, 50):
        draws = generator.integers(count, size=(min(50, samples - start), count))
        weights = np.stack([np.bincount(row, minlength=count) for row in draws]).astype(np.float64)
        chunks.append(statistic(weights))
    tail = (1 - level) / 2
    return {
        name: np.quantile(np.concatenate([chunk[name] for chunk in chunks]), (tail, 1 - tail), 0)
        for name in chunks[0]
    }
