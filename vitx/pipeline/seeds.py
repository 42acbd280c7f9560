"""Stage `seeds`: for every image-level label of an image, a seed map of where it is."""

import functools
import math
import sys
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vitx import parallel, weights
from vitx.data import loader
from vitx.models.variants import Classifier, at_size, cell
from vitx.ops import Array
from vitx.pipeline.artifacts import (
    SCORES,
    SPLITS,
    count_seed_maps,
    missing_batches,
    read_scores,
    seeded,
    write_seed_maps,
)
from vitx.pseudomasks.attention import KINDS
from vitx.pseudomasks.seeds import class_seed_maps
from vitx.relevance.explain import METHODS, RULES
from vitx.relevance.registry import REGISTRY
from vitx.runtime.experiment import Run, Stage
from vitx.runtime.files import write_json
from vitx.runtime.options import POSITIVE, Wanted, among, candidates, number, several
from vitx.runtime.progress import progress
from vitx.runtime.workdir import StageFolder


def width_of(labels: np.ndarray) -> int:
    """How many classes to explain for each image of a batch, from its multi-hot labels (B, C).

    The most that one image shows, or the next power of two: few shapes to compile, and the batch alone decides.
    """
    most = max(1, int(labels.sum(1).max()))
    return min(1 << (most - 1).bit_length(), labels.shape[1])


def padded_classes(labels: np.ndarray, width: int) -> np.ndarray:
    """Multi-hot labels (B, C) -> class indices int32 (B, width), -1 where an image has fewer."""
    classes = np.full((len(labels), width), -1, np.int32)
    for row, hot in enumerate(labels):
        present = np.flatnonzero(hot)
        classes[row, : len(present)] = present
    return classes


def scaled_size(model: Classifier, scale: float) -> tuple[int, int]:
    """The model's input size times a scale, rounded to whole cells, at least one."""
    side = cell(model)
    height, width = (
        max(1, math.floor(length * scale / side + 0.5)) * side for length in model.preprocess.size
    )
    return height, width


def make_seeds(run: Run, stage: StageFolder) -> None:
    """Writes `<split>/<id>.npz` for each image: classes (K,), seed maps (K, H, W) at the input size; counts flat ones.

    An image's labels name its classes, on val too. Seed maps are the mean over `seeds.scales` of the input.
    """
    config = run.config.seeds
    model = weights.load_classifier(run.finished("classifier").folder)

    def seed_maps_of_batch(model_at: Any, images: Array, classes: Array) -> Array:
        return class_seed_maps(
            model_at,
            images,
            classes,
            size=model.preprocess.size,
            start_layer=config.start_layer,
            root=config.root,
            rules=config.rules,
            method=config.method,
            contrast=config.contrast,
            refine=config.refine,
        )

    seed_map = parallel.per_example(seed_maps_of_batch, mode=run.config.parallel)
    mesh = parallel.local_mesh()
    spread = parallel.replicate(model, mesh)  # once: all scales share its weights
    models = [
        parallel.replicate(at_size(spread, scaled_size(model, scale)), mesh)
        for scale in config.scales
    ]
    for split in SPLITS:
        source = seeded(run, split)
        scales = [
            loader.evaluation_batches(
                source, preprocess=scaled.preprocess, batch_size=config.batch_size
            )
            for scaled in models
        ]
        missing, images, done = missing_batches(stage, scales[0], ".npz", split)
        with progress(images, f"seeds {split}", start=done) as bar:
            read = (loader.read_ahead(batches, missing) for batches in scales)
            for batch, *others in zip(*read, strict=True):
                classes = padded_classes(batch["labels"], width_of(batch["labels"]))
                inputs = [each["image"] for each in (batch, *others)]
                maps = [seed_map(*pair, classes) for pair in zip(models, inputs, strict=True)]
                seed_maps = functools.reduce(np.add, maps) / len(maps)
                for row in np.flatnonzero(batch["valid"]):
                    write_seed_maps(stage, split, batch["id"][row], seed_maps[row], classes[row])
                bar.advance(int(batch["valid"].sum()))
                run.stop.check()
    _count(run, stage)


def _count(run: Run, stage: StageFolder) -> None:
    """Counts seed maps and flat ones of all images, each process its share, and writes `scores.json`."""
    parallel.barrier()  # all seed maps are written
    counts = {}
    for split in SPLITS:
        source = seeded(run, split)
        mine = parallel.share(range(len(source)))
        total = flat = 0
        with progress(len(mine), f"seed maps {split}") as bar:
            for place in mine:
                found = count_seed_maps(stage, split, source.identifier(place))
                total, flat = total + found[0], flat + found[1]
                bar.advance()
                run.stop.check()
        total, flat = map(int, parallel.sum_over_processes((np.array(total), np.array(flat))))
        counts[split] = {"cues": total, "flat": flat}
        if flat and parallel.is_first_process():
            print(
                f"seeds {split}: {flat} of {total} seed maps have no contrast, and point to nothing",
                file=sys.stderr,
            )
    if parallel.is_first_process():
        write_json(stage.folder / SCORES, counts)


def _check_model(config: ConfigDict, model: Classifier) -> None:
    if "seeds" not in config:
        return
    seeds, blocks = config.seeds, len(model.attention_shapes())
    try:
        REGISTRY[seeds.method].require(model)
    except ValueError as error:
        raise ValueError(f"config.seeds.method: {error}") from None
    if blocks and seeds.start_layer >= blocks:
        raise ValueError(
            f"config.seeds.start_layer {seeds.start_layer} must be less than the model's {blocks} blocks"
        )
    if seeds.refine and not blocks:
        raise ValueError(
            f"config.seeds.refine={seeds.refine} spreads maps along attention, which a CNN does not have"
        )
    if seeds.refine and REGISTRY[seeds.method].gives_pixels(model):
        raise ValueError(
            f"config.seeds.refine={seeds.refine} wants maps on the token grid; those of method {seeds.method} are of "
            "pixels on this model"
        )


STAGE = Stage(
    "seeds",
    make_seeds,
    needs=["classifier"],
    keys=["seeds"],
    ignores=["seeds.background"],  # of the seed masks, which stage `masks` scores
    options={
        "seeds.root": POSITIVE,
        "seeds.rules": among(RULES),
        "seeds.method": among(METHODS),
        "seeds.scales": several(number(0, 4, above=True)),
        "seeds.refine": Wanted(
            lambda value: value in ("", *KINDS), f"empty, or one of {', '.join(KINDS)}"
        ),
        "seeds.background": candidates(number(0, 1)),
    },
    check_model=_check_model,
    splits=["seeds.train_split", "data.val_split"],
    scores=lambda run: {"cues": read_scores(run, "seeds")},
)
