"""Which images go through the pipeline, and the files in which its stages keep what they make of each."""

from pathlib import Path

import numpy as np

from vitx import processes
from vitx.data import pipeline
from vitx.stages import Run
from vitx.workdir import Stage, read_npz, write_npz

SPLITS = ("train", "val")
ALPHAS = ("low", "high")  # of the background, under which the CRF's masks are kept


def seeded(run: Run, split: str) -> pipeline.Source:
    """The images of "train" or "val" that get seeds and masks."""
    config = run.config
    return run.source(config.seeds.train_split if split == "train" else config.data.val_split)


def missing_batches(
    stage: Stage, batches: pipeline.EvaluationBatches, suffix: str, split: str
) -> tuple[list[int], int, int]:
    """This process's batches that lack the file of an image, how many images it has, and how many lie in other batches.

    Batches are whole, so that an image's bits do not depend on when the run was stopped.
    """
    finished, missing, images, left = stage.items_done(suffix, split), [], 0, 0
    for number in processes.share(range(len(batches))):
        images += len(batches.places(number))
        if not finished.issuperset(batches.ids(number)):
            missing.append(number)
            left += len(batches.places(number))
    return missing, images, images - left


def padded_classes(labels: np.ndarray, width: int) -> np.ndarray:
    """Multi-hot labels (B, C) -> class indices int32 (B, width), -1 where an image has fewer."""
    classes = np.full((len(labels), width), -1, np.int32)
    for row, hot in enumerate(labels):
        present = np.flatnonzero(hot)
        classes[row, : len(present)] = present
    return classes


def cue_file(seeds: Stage, split: str, identifier: str) -> Path:
    """The file of one image's cues in the folder of stage `seeds`."""
    return seeds.item(identifier, ".npz", split)


def write_cues(path: Path, cues: np.ndarray, classes: np.ndarray) -> None:
    """Writes the cues (K, H, W) of the classes (K,) that are not padding, in half precision.

    Raises:
      FloatingPointError: where a cue is not finite.
    """
    if not np.isfinite(cues).all():
        raise FloatingPointError(f"seeds: a cue is not finite, {path} is not written")
    present = classes >= 0
    write_npz(path, {"cues": cues[present].astype(np.float16), "classes": classes[present]})


def read_cues(
    seeds: Stage, split: str, identifier: str, width: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Cues float32 (K, H, W) and classes (K,) of an image, to K = `width` padded with zeros and -1."""
    file = read_npz(cue_file(seeds, split, identifier))
    count, *size = file["cues"].shape
    width = count if width is None else width
    cues = np.zeros((width, *size), np.float32)
    classes = np.full(width, -1, np.int32)
    cues[:count], classes[:count] = file["cues"], file["classes"]
    return cues, classes


def count_cues(seeds: Stage, split: str, identifier: str) -> tuple[int, int]:
    """How many cues an image has, and how many of them are flat: zero everywhere, of no contrast."""
    cues = read_npz(cue_file(seeds, split, identifier))["cues"]
    return len(cues), int((~cues.any((1, 2))).sum())


def crf_file(labels: Stage, alpha: str, split: str, identifier: str) -> Path:
    """The file of one image's mask by the CRF, of "low" or "high" alpha, in the folder of stage `labels`."""
    return labels.item(identifier, ".png", f"{alpha}/{split}")


def pool_factor(image_size: int, grid: int) -> int:
    """Pixels of the model's input along a cell of AffinityNet's grid, 8 as published.

    Raises:
      ValueError: where the grid does not divide the input.
    """
    if grid < 1 or image_size % grid:
        raise ValueError(f"config.affinity.grid {grid} must divide model.image_size {image_size}")
    return image_size // grid
