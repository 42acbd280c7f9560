"""Average precision of rankings, in NumPy and float64."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_LARGEST_INT = 2**53  # beyond it float64 merges neighbouring integers


def average_precision(
    scores: ArrayLike, targets: ArrayLike, valid: ArrayLike | None = None
) -> Array:
    """Average precision along the last axis: sum over thresholds of recall gained x precision.

    Equal scores form one threshold, so the order within ties does not matter; nothing is
    interpolated.

    Args:
        scores: (..., M) real, higher means more likely positive; not NaN.
        targets: (..., M) bool, or 0 and 1.
        valid: (..., M) bool, entries that take part; by default all.

    Returns:
        (...) fractions, 0 where there is no positive.

    Raises:
        ValueError: scores are not real numbers, or targets are not 0 or 1.
    """
    scores, targets = real_numbers("scores", scores), _binary("targets", targets)
    valid = np.ones(scores.shape, bool) if valid is None else np.asarray(valid, bool)
    # Invalid entries come last and weigh nothing.
    order = np.argsort(-np.where(valid, scores, -np.inf), axis=-1)
    ranked = np.take_along_axis(scores, order, -1)
    hits = np.cumsum(np.take_along_axis(targets & valid, order, -1), -1)  # (..., M)
    precision = hits / np.maximum(np.cumsum(np.take_along_axis(valid, order, -1), -1), 1)

    threshold_ends = np.ones(scores.shape, bool)
    threshold_ends[..., :-1] = ranked[..., 1:] != ranked[..., :-1]
    reached = np.where(threshold_ends, hits, 0)
    before = np.zeros_like(hits)
    before[..., 1:] = np.maximum.accumulate(reached, -1)[..., :-1]
    gained = np.where(threshold_ends, hits - before, 0)
    return divide((gained * precision).sum(-1), hits[..., -1])


def average_precision_multilabel(scores: ArrayLike, labels: ArrayLike) -> tuple[Array, float]:
    """Average precision of each class over images, and its mean.

    Args:
        scores: (N, C) logits or probabilities.
        labels: (N, C) multi-hot, 0 or 1.

    Returns:
        (C,) values, NaN for a class without positives, and the mean over the other classes.

    Raises:
        ValueError: shapes differ, a score is not a number, a label is not 0 or 1, or no class has a
            positive.
    """
    scores, positive = real_numbers("scores", scores), _binary("multi-hot labels", labels)
    if scores.ndim != 2 or scores.shape != positive.shape:
        raise ValueError(f"scores {scores.shape} and labels {positive.shape} must both be (N, C)")
    if np.isnan(scores).any():
        raise ValueError("the scores hold NaN: the classifier has diverged")
    present = positive.any(0)
    if not present.any():
        raise ValueError(f"no class has a positive among {len(scores)} images")
    per_class = np.where(present, average_precision(scores.T, positive.T), np.nan)  # (C,)
    return per_class, float(per_class[present].mean())


def real_numbers(name: str, values: ArrayLike) -> Array:
    """Values in float64; ValueError where they are no real numbers, or lose their order in float64."""
    found = unmasked(name, values)
    if found.dtype != np.longdouble and not np.can_cast(found.dtype, np.float64):
        raise ValueError(f"{name} must be real numbers, not {found.dtype}")
    if found.dtype.kind in "iu" and ((found > _LARGEST_INT) | (found < -_LARGEST_INT)).any():
        raise ValueError(f"{name} hold integers beyond 2^53, which float64 does not tell apart")
    return found.astype(np.float64)


def unmasked(name: str, values: ArrayLike) -> np.ndarray:
    """Values as an array; ValueError for a masked array, whose mask would be lost."""
    if np.ma.isMaskedArray(values):
        raise ValueError(f"{name} must not be a masked array: fill in or leave out its values")
    return np.asarray(values)


def divide(numerator: ArrayLike, denominator: ArrayLike) -> Array:
    """Quotients, and 0 where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, np.float64), denominator)
    return np.divide(numerator, denominator, out=np.zeros(numerator.shape), where=denominator != 0)


def _binary(name: str, values: ArrayLike) -> NDArray[np.bool_]:
    found = unmasked(name, values)
    positive = found == 1
    if not (positive | (found == 0)).all():
        raise ValueError(f"{name} must be 0 or 1")
    return positive
