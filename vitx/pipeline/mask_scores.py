"""How good seeds, the CRF's masks and refined masks are, against the masks of a dataset that has some."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vitx import parallel
from vitx.data import loader
from vitx.evaluation.metrics import by_class, confusion_matrix, mean_iou, per_class_iou
from vitx.pipeline.artifacts import ALPHAS, crf_folders, read_mask, read_seed_maps, seeded
from vitx.pseudomasks.seeds import seed_mask
from vitx.runtime.experiment import Run
from vitx.runtime.progress import progress
from vitx.runtime.workdir import StageFolder

PUBLISHED_BACKGROUND = 0.2
FROM_TRUTH = (
    "Which classes an image shows is taken from its ground-truth label, for seeds and masks and on val too: "
    "these figures measure pseudo-masks, not a segmentation network."
)
EXTREMES = 12  # worst and best images to name
BACKGROUNDS = tuple(round(0.05 * step, 2) for step in range(13))  # of the curve: 0 to 0.6


def score(run: Run, stage: StageFolder, split: str, background: float) -> dict[str, Any]:
    """Scores of the masks of "train" or "val", fractions.

    Args:
      run: with all stages before `stage` done.
      stage: that holds the refined masks.
      split: "train" or "val".
      background: of the seeds' masks.

    Returns:
      {} where no image has a mask. Else images (those with a mask) and, with miou and iou by class name each, seeds,
      crf_low and crf_high (the seeds after the CRF at either alpha) and masks (refined); seeds has miou_at_0.2 too.
      backgrounds: the seeds' miou by background score. worst and best: [id, miou] of refined masks. All use the classes
      that an image's ground-truth label names.
    """
    source = seeded(run, split)
    tables, curve, by_image = _confusions(run, stage, split, background)
    if not tables["masks"].any():
        return {}
    figures: dict[str, Any] = {
        name: {
            "miou": float(mean_iou(table)),
            "iou": by_class(source.classes, per_class_iou(table)),
        }
        for name, table in tables.items()
    }
    figures["seeds"]["miou_at_0.2"] = figures.pop("published")["miou"]
    order = [int(place) for place in np.argsort(by_image)[: np.isfinite(by_image).sum()]]
    ranked = [[source.identifier(place), float(by_image[place])] for place in order]
    return figures | {
        "images": len(ranked),
        "backgrounds": [
            {"background": level, "miou": float(mean_iou(table))}
            for level, table in zip(BACKGROUNDS, curve, strict=True)
        ],
        "worst": ranked[:EXTREMES],
        "best": ranked[: -EXTREMES - 1 : -1],
    }


def _confusions(
    run: Run, stage: StageFolder, split: str, background: float
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Confusion matrices (C, C) by kind of mask, those of seed masks by background, and each image's mIoU or NaN."""
    source, seeds, labels = seeded(run, split), run.finished("seeds"), run.finished("labels")
    count = len(source.classes)
    names = ("seeds", "published", *(f"crf_{name}" for name in ALPHAS), "masks")
    tables = {name: np.zeros((count, count), np.int64) for name in names}
    curve = np.zeros((len(BACKGROUNDS), count, count), np.int64)
    mine = parallel.share(range(len(source)))
    by_image = np.full(max(len(mine), 1), np.nan)
    with progress(len(mine), f"scores {split}") as bar:
        for row, example in enumerate(loader.read_ahead(source, mine)):
            if example.mask is not None:
                size = example.size
                seed_maps, classes = read_seed_maps(seeds, split, example.id, size=size)
                found = stored_masks(labels, stage, split, example.id)
                levels = (background, PUBLISHED_BACKGROUND, *BACKGROUNDS)
                found["seeds"], found["published"], *others = seed_mask(
                    seed_maps, classes, thresholds(levels)
                )
                for name, mask in found.items():
                    tables[name] += confusion_matrix(mask, example.mask, count)
                for table, mask in zip(curve, others, strict=True):
                    table += confusion_matrix(mask, example.mask, count)
                own = confusion_matrix(found["masks"], example.mask, count)
                by_image[row] = mean_iou(own) if own.any() else np.nan
            bar.advance()
            run.stop.check()
    (by_image,) = parallel.gather_shares([by_image], len(source))
    tables, curve = parallel.sum_over_processes((tables, curve))
    return tables, curve, by_image


def stored_masks(
    labels: StageFolder, masks: StageFolder, split: str, identifier: str
) -> dict[str, np.ndarray]:
    """The masks of an image that the stages `labels` and `masks` wrote."""
    folders = crf_folders(split).items()
    found = {kind: read_mask(labels, folder, identifier) for kind, folder in folders}
    return found | {"masks": read_mask(masks, split, identifier)}


def thresholds(backgrounds: Sequence[float]) -> np.ndarray:
    """Several background scores for one `seed_mask` of an image, (L, 1, 1)."""
    return np.array(backgrounds, np.float32)[:, None, None]
