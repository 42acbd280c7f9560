"""Stage `seeds`: for every image-level label of an image, a cue of where it is."""

import sys
from typing import Any

import numpy as np

from vitx import parallel, processes, weights
from vitx.data import loader
from vitx.ops import Array
from vitx.pipeline.artifacts import (
    SPLITS,
    count_cues,
    missing_batches,
    padded_classes,
    seeded,
    write_cues,
)
from vitx.pseudomasks.seeds import class_cues
from vitx.runtime.experiment import Run
from vitx.runtime.progress import progress
from vitx.runtime.workdir import Stage, write_json


def width_of(labels: np.ndarray) -> int:
    """How many classes to explain for each image of a batch, from its multi-hot labels (B, C).

    The most that one shows, or the next power of two: few shapes to compile, and the batch alone decides.
    """
    most = max(1, int(labels.sum(1).max()))
    return min(1 << (most - 1).bit_length(), labels.shape[1])


def make_seeds(run: Run, stage: Stage) -> None:
    """Writes `<split>/<id>.npz` for each image: classes (K,), and cues (K, H, W) at the input size; counts flat ones.

    Which classes an image shows is taken from its labels, on val too.
    """
    config = run.config.seeds
    model = weights.load_classifier(run.finished("classifier").folder)

    def cues_of(model: Any, images: Array, classes: Array) -> Array:
        return class_cues(
            model,
            images,
            classes,
            size=model.preprocess.size,
            start_layer=config.start_layer,
            root=config.root,
            rules=config.rules,
        )

    cue = parallel.per_example(cues_of, mode=run.config.parallel)
    spread = parallel.replicate(model, parallel.local_mesh())
    for split in SPLITS:
        source = seeded(run, split)
        batches = loader.evaluation_batches(
            source, preprocess=model.preprocess, batch_size=config.batch_size
        )
        missing, images, done = missing_batches(stage, batches, ".npz", split)
        with progress(images, f"seeds {split}", start=done) as bar:
            for batch in loader.read_ahead(batches, missing):
                classes = padded_classes(batch["labels"], width_of(batch["labels"]))
                cues = cue(spread, batch["image"], classes)
                for row in np.flatnonzero(batch["valid"]):
                    write_cues(stage, split, batch["id"][row], cues[row], classes[row])
                bar.advance(int(batch["valid"].sum()))
                run.stop.check()
    _count(run, stage)


def _count(run: Run, stage: Stage) -> None:
    """Counts cues and flat ones of all images, each process its share, and writes `scores.json`."""
    processes.barrier()  # all cues are there
    counts = {}
    for split in SPLITS:
        source = seeded(run, split)
        mine = processes.share(range(len(source)))
        cues = flat = 0
        with progress(len(mine), f"cues {split}") as bar:
            for place in mine:
                found = count_cues(stage, split, source.identifier(place))
                cues, flat = cues + found[0], flat + found[1]
                bar.advance()
                run.stop.check()
        cues, flat = map(int, processes.total((np.array(cues), np.array(flat))))
        counts[split] = {"cues": cues, "flat": flat}
        if flat and processes.is_first():
            print(
                f"seeds {split}: {flat} of {cues} cues have no contrast, and point to nothing",
                file=sys.stderr,
            )
    if processes.is_first():
        write_json(stage.folder / "scores.json", counts)
