"""Scores of segmentation: pixel accuracy, IoU, average precision, F1, confusion matrices.

Everything here is NumPy in float64, vectorised over images, so the numbers do not depend on the
device's precision. Functions return fractions in [0, 1]. The definitions are in docs/protocol.md,
"ImageNet-Segmentation (Table 3)".
"""

import dataclasses
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitx.data.palette import IGNORED
from vitx.evaluation.average_precision import (
    average_precision,
    divide,
    real_numbers,
    unmasked,
)

Array = NDArray[np.float64]

SCORE_BINS = 100  # resolution of the pooled precision-recall curve


@dataclasses.dataclass(frozen=True)
class SegmentationCounts:
    """Counts that the scores of foreground maps are computed from, a row for each image.

    Attributes:
        correct: (N,) pixels labelled correctly.
        labelled: (N,) pixels that are not ignored.
        intersection: (N, 2) pixels of background, foreground in both the prediction and the truth.
        union: (N, 2) pixels of background, foreground in either.
        ap: (N,) average precision of the ranking of (1 - R, R), 0 where no pixel is labelled.
        histogram: (N, 2, SCORE_BINS) background, foreground pixels by their score R.
    """

    correct: NDArray[np.int64]
    labelled: NDArray[np.int64]
    intersection: NDArray[np.int64]
    union: NDArray[np.int64]
    ap: Array
    histogram: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ap)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Joins the counts of several batches, in order."""
        if not parts:
            raise ValueError("no segmentation counts to join: score at least one batch")
        tables = [part.arrays() for part in parts]
        return cls(
            **{name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields by name, to be stored; `SegmentationCounts(**arrays)` reads them back."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def scores(self, weights: ArrayLike | None = None) -> dict[str, Array]:
        """Scores over all images.

        Args:
            weights: (..., N) how often each image counts; by default once.

        Returns:
            pixel_accuracy, miou, map, mf1, each of shape (...), and iou (..., 2) of background and
            foreground. Accuracy and IoU come from pixel counts over all images; map and mf1 are
            means over the images that have labelled pixels.

        Raises:
            ValueError: no pixel is labelled.
        """
        if not self.labelled.sum():
            raise ValueError(
                f"no labelled pixel in {len(self)} images: every mask value is ignored"
            )
        weights = (
            np.ones(len(self)) if weights is None else np.asarray(weights, np.float64)
        )  # (..., N)
        iou = divide(weights @ self.intersection, weights @ self.union)  # (..., 2)
        usable = weights * (self.labelled > 0)
        foreground, union = self.intersection[:, 1], self.union[:, 1]
        f1 = divide(
            2.0 * foreground, foreground + union
        )  # the sizes of both regions add to intersection + union
        return {
            "pixel_accuracy": divide(weights @ self.correct, weights @ self.labelled),
            "iou": iou,
            "miou": iou.mean(-1),
            "map": divide(usable @ self.ap, usable.sum(-1)),
            "mf1": divide(usable @ f1, usable.sum(-1)),
        }

    def precision_recall(self) -> dict[str, Array]:
        """Precision and recall of `R >= threshold` for the foreground, pixels of all images pooled.

        Returns:
            threshold, precision, recall, each (SCORE_BINS,); the precision is 1 where nothing is
            selected.
        """
        pooled = self.histogram.sum(0)  # (2, SCORE_BINS)
        background, foreground = pooled[:, ::-1].cumsum(-1)[:, ::-1]
        selected = background + foreground
        return {
            "threshold": np.arange(SCORE_BINS) / SCORE_BINS,
            "precision": np.where(selected > 0, divide(foreground, selected), 1.0),
            "recall": divide(foreground, foreground[0]),
        }


def segmentation_counts(
    maps: ArrayLike, masks: ArrayLike, threshold: float | None = None
) -> SegmentationCounts:
    """Counts for raw maps against foreground masks.

    Each map is brought to [0, 1] by its own minimum and maximum (ignored pixels included, as
    published); pixels above its mean, or above `threshold`, are foreground. The average precision
    ranks both channels, 1 - R against background and R against foreground, together; for a
    constant map both are 0.

    Args:
        maps: (N, H, W) finite real relevance at pixel resolution, any scale.
        masks: (N, H, W) ints or bools: 0 background, 1 foreground, -1 or 255 ignored.
        threshold: in [0, 1], of all maps; None: each map's mean.

    Raises:
        ValueError: shapes differ, there is no map, one is not finite or not real, or a mask is not
            of integers or has another value.
    """
    maps, masks = real_numbers("maps", maps), _labels("masks", masks)
    if maps.ndim != 3 or maps.shape != masks.shape:
        raise ValueError(f"maps {maps.shape} and masks {masks.shape} must both be (N, H, W)")
    if not maps.size:
        raise ValueError(f"maps {maps.shape} are empty")
    if not np.isfinite(maps).all():
        broken = np.flatnonzero(~np.isfinite(maps).all((1, 2)))
        raise ValueError(f"the map of image {broken[0]} of the batch is not finite")
    count = len(maps)
    maps, masks = maps.reshape(count, -1), masks.reshape(count, -1).astype(np.int64)  # (N, P)
    valid = (masks != -1) & (masks != IGNORED)
    if (unknown := masks[valid & (masks != 0) & (masks != 1)]).size:
        raise ValueError(
            f"mask value {unknown[0]}: foreground masks hold 0, 1, and -1 or 255 for ignored"
        )

    low, high = maps.min(1, keepdims=True), maps.max(1, keepdims=True)
    varied = high > low
    scores = divide(maps - low, high - low)  # (N, P), all 0 where the map is constant
    limit = scores.mean(1, keepdims=True) if threshold is None else threshold
    predicted, truth = scores > limit, masks == 1
    regions = [((~predicted) & valid, ~truth & valid), (predicted & valid, truth & valid)]
    channels = np.stack([np.where(varied, 1.0 - scores, 0.0), scores], 1)  # (N, 2, P)
    return SegmentationCounts(
        correct=((predicted == truth) & valid).sum(1),
        labelled=valid.sum(1),
        intersection=np.stack([(p & t).sum(1) for p, t in regions], 1),
        union=np.stack([(p | t).sum(1) for p, t in regions], 1),
        ap=average_precision(
            channels.reshape(count, -1),
            np.concatenate([~truth, truth], 1),
            np.concatenate([valid, valid], 1),
        ),
        histogram=_score_histogram(scores, truth, valid),
    )


def segmentation_scores(maps: ArrayLike, masks: ArrayLike) -> dict[str, Array]:
    """Scores of raw maps (N, H, W) against masks in {0, 1, and -1 or 255 for ignored}.

    See `segmentation_counts` for the protocol and the errors, `SegmentationCounts.scores` for the
    values.
    """
    return segmentation_counts(maps, masks).scores()


def confusion_matrix(
    prediction: ArrayLike, truth: ArrayLike, num_classes: int
) -> NDArray[np.int64]:
    """Pixel counts (num_classes, num_classes): rows are the truth, columns the prediction.

    Args:
        prediction: ints of any shape, in [0, num_classes) wherever the truth counts.
        truth: ints of the same shape; labels outside [0, num_classes), such as 255, are ignored.
        num_classes: C, background included.

    Raises:
        ValueError: shapes differ, labels are not integers, or a counted prediction is out of range.
    """
    prediction, truth = _labels("prediction", prediction), _labels("truth", truth)
    if prediction.shape != truth.shape:
        raise ValueError(
            f"prediction {prediction.shape} and truth {truth.shape} must have one shape"
        )
    valid = (truth >= 0) & (truth < num_classes)
    rows, columns = truth[valid].astype(np.int64), prediction[valid].astype(np.int64)
    if columns.size and (columns.min() < 0 or columns.max() >= num_classes):
        raise ValueError(f"predicted class {columns.max()} is outside [0, {num_classes})")
    counts = np.bincount(rows * num_classes + columns, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def per_class_iou(confusion: ArrayLike) -> Array:
    """Intersection over union: (..., C, C) -> (..., C), NaN for a class absent from the truth."""
    confusion = np.asarray(confusion, np.float64)
    intersection = np.diagonal(confusion, axis1=-2, axis2=-1)  # (..., C)
    return region_iou(np.stack([intersection, confusion.sum(-1), confusion.sum(-2)], -2))


def region_iou(counts: ArrayLike) -> Array:
    """Intersection over union (..., C), NaN for a class absent from the truth.

    `counts` (..., 3, C) are pixels by class: in both masks, in the truth, in the prediction.
    """
    both, truth, predicted = np.moveaxis(np.asarray(counts, np.float64), -2, 0)
    return np.where(truth > 0, divide(both, truth + predicted - both), np.nan)


def mean_of_present(iou: ArrayLike) -> Array:
    """The mean over the classes that are not NaN: (..., C) -> (...); 0 where all are."""
    iou = np.asarray(iou, np.float64)
    present = ~np.isnan(iou)
    return divide(np.where(present, iou, 0.0).sum(-1), present.sum(-1))


def by_class(names: Sequence[str], values: ArrayLike) -> dict[str, float | None]:
    """Figures (C,) by class name, for JSON: None where a class does not occur (NaN)."""
    figures = np.asarray(values).tolist()
    return {n: None if np.isnan(v) else v for n, v in zip(names, figures, strict=True)}


def mean_iou(confusion: ArrayLike) -> Array:
    """Mean of `per_class_iou` over the classes present in the truth: (..., C, C) -> (...).

    Raises:
        ValueError: a matrix has no counted pixel at all.
    """
    iou = per_class_iou(confusion)  # (..., C)
    if np.isnan(iou).all(-1).any():
        raise ValueError("the confusion matrix is empty: no pixel of the truth was counted")
    return mean_of_present(iou)


def _labels(name: str, values: ArrayLike) -> np.ndarray:
    """Labels, which are integers or bools."""
    found = unmasked(name, values)
    if found.dtype.kind not in "biu":
        raise ValueError(f"{name} must be integers, not {found.dtype}")
    return found


def _score_histogram(
    scores: Array, truth: NDArray[np.bool_], valid: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Scores (N, P) in [0, 1] -> counts (N, 2, SCORE_BINS) of background and foreground pixels."""
    rows = np.arange(len(scores))[:, None] * 2 + truth
    columns = np.minimum((scores * SCORE_BINS).astype(np.int64), SCORE_BINS - 1)
    cells = (rows * SCORE_BINS + columns)[valid]
    return np.bincount(cells, minlength=len(scores) * 2 * SCORE_BINS).reshape(-1, 2, SCORE_BINS)
