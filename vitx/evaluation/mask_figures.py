"""Figures of label masks over a set of images: IoU by class and its mean, with bootstrap intervals over the images.

Three counts an image and class are all that these need, so that a thousand resampled sets cost one product.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitx.evaluation.bootstrap import bootstrap_interval
from vitx.evaluation.metrics import by_class, confusion_matrix, mean_of_present, region_iou

Array = NDArray[np.float64]


def region_counts(prediction: ArrayLike, truth: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """Pixels by class (3, num_classes): in both masks, in the truth, in the prediction.

    Arguments and errors are those of `confusion_matrix`.
    """
    table = confusion_matrix(prediction, truth, num_classes)
    return np.stack([table.diagonal(), table.sum(1), table.sum(0)])


def mask_figures(counts: ArrayLike, classes: Sequence[str]) -> dict[str, Any]:
    """Figures of a set of images, fractions.

    Args:
        counts: (N, 3, C) of `region_counts`, a row for each image, each with a pixel of the truth that counts.
        classes: the C names.

    Returns:
        miou, interval (its 95 % bootstrap interval over the images), and by class name iou and intervals, None for a
        class absent from the truth. A resampled set without a class does not count for that class's interval.
    """
    counts = np.asarray(counts, np.float64)
    present = counts[:, 1].sum(0) > 0  # (C,)

    def statistic(weights: Array) -> dict[str, Array]:
        iou = region_iou(np.tensordot(weights, counts[..., present], 1))  # (S, classes present)
        return {"miou": mean_of_present(iou), "iou": iou}

    iou, intervals = region_iou(counts.sum(0)), bootstrap_interval(statistic, len(counts))
    names = [classes[place] for place in np.flatnonzero(present).tolist()]
    by_name = dict(zip(names, intervals["iou"].T.tolist(), strict=True))
    return {
        "miou": float(mean_of_present(iou)),
        "interval": intervals["miou"].tolist(),
        "iou": by_class(classes, iou),
        "intervals": {name: by_name.get(name) for name in classes},
    }
