"""Stage `seeds`: for every image-level label of an image, a seed map of where it is."""

import functools
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from vitx.pseudomasks.seeds import NORMALISATIONS, class_seed_maps, over_maximum
from vitx.relevance.checks import RULES
from vitx.relevance.explain import METHODS
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


def scaled_size(
    model: Classifier, scale: float, size: tuple[int, int] | None = None
) -> tuple[int, int]:
    """A size, by default the model's input size, times a scale, rounded to whole cells, at least one."""
    side = cell(model)
    height, width = (
        max(1, math.floor(length * scale / side + 0.5)) * side
        for length in size or model.preprocess.size
    )
    return height, width


def input_groups(
    config: ConfigDict, model: Classifier, source: loader.Source
) -> Mapping[tuple[int, int], list[int] | None]:
    """The places of a source's images by the input size, all at the model's, or each at its own in whole cells.

    None stands for all places. A group of images shares its compiled programs.
    """
    if not config.own_size:
        return {model.preprocess.size: None}
    groups: dict[tuple[int, int], list[int]] = {}
    for place in range(len(source)):
        groups.setdefault(scaled_size(model, 1.0, source.size(place)), []).append(place)
    return groups


def make_seeds(run: Run, stage: StageFolder) -> None:
    """Writes `<split>/<id>.npz` for each image: classes (K,), seed maps (K, H, W) at the input size; counts flat ones.

    An image's labels name its classes, on val too. Seed maps are the mean over `seeds.scales` of the input, or with
    `seeds.normalise=maximum` the sum over its maximum.
    """
    config = run.config.seeds
    model = weights.load_classifier(run.finished("classifier").folder)
    sized = _Sized(run, model)
    for split in SPLITS:
        source = seeded(run, split)
        groups = [
            _Group(config, *sized(size), source, places)
            for size, places in input_groups(config, model, source).items()
        ]
        found = [missing_batches(stage, group.scales[0], ".npz", split) for group in groups]
        images, done = (sum(counts) for counts in zip(*(f[1:] for f in found), strict=True))
        with progress(images, f"seeds {split}", start=done, compiles=True) as bar:
            for group, (missing, _, _) in zip(groups, found, strict=True):
                for batch, classes, seed_maps in group.seed_maps(missing):
                    for row in np.flatnonzero(batch["valid"]):
                        name = batch["id"][row]
                        write_seed_maps(stage, split, name, seed_maps[row], classes[row])
                    bar.advance(int(batch["valid"].sum()))
                    run.stop.check()
    _count(run, stage)


class _Sized:
    """By input size: the model at the scales of it, and the compiled seed maps. Splits share both."""

    def __init__(self, run: Run, model: Classifier):
        self._run, self._mesh = run, parallel.local_mesh()
        self._model = parallel.replicate(model, self._mesh)  # once: all sizes share its weights
        self._made: dict[tuple[int, int], tuple[list[Any], Callable[..., Any]]] = {}

    def __call__(self, size: tuple[int, int]) -> tuple[list[Any], Callable[..., Any]]:
        """Models, and a function of one of them, images and classes (B, K) to seed maps (B, K, H, W)."""
        if size not in self._made:
            self._made[size] = self._models(size), self._program(size)
        return self._made[size]

    def _models(self, size: tuple[int, int]) -> list[Any]:
        return [
            parallel.replicate(at_size(self._model, scaled_size(self._model, s, size)), self._mesh)
            for s in self._run.config.seeds.scales
        ]

    def _program(self, size: tuple[int, int]) -> Callable[..., Any]:
        config = self._run.config.seeds

        def of_batch(model: Any, images: Array, classes: Array) -> Array:
            return class_seed_maps(
                model,
                images,
                classes,
                size=size,
                start_layer=config.start_layer,
                root=config.root,
                rules=config.rules,
                method=config.method,
                contrast=config.contrast,
                refine=config.refine,
                normalise=config.normalise,
            )

        return parallel.per_example(of_batch, mode=self._run.config.parallel)


class _Group:
    """Images of one input size, at several scales of it."""

    def __init__(
        self,
        config: ConfigDict,
        models: Sequence[Any],
        seed_map: Callable[..., Any],
        source: loader.Source,
        places: Sequence[int] | None,
    ):
        self._config, self._models, self._seed_map = config, models, seed_map
        self.scales = [
            loader.EvaluationBatches(source, scaled.preprocess, config.batch_size, places)
            for scaled in models
        ]

    def seed_maps(self, numbers: Sequence[int]) -> Iterator[tuple[dict, np.ndarray, np.ndarray]]:
        """Numbered batches, with classes (B, K) and seed maps (B, K, H, W)."""
        read = (loader.read_ahead(batches, numbers) for batches in self.scales)
        for batch, *others in zip(*read, strict=True):
            classes = padded_classes(batch["labels"], width_of(batch["labels"]))
            inputs = [each["image"] for each in (batch, *others)]
            maps = [
                self._seed_map(*pair, classes) for pair in zip(self._models, inputs, strict=True)
            ]
            total = functools.reduce(np.add, maps)
            if self._config.normalise == "maximum":
                # Image and mirror image are added in psa, too; their mean is half of that.
                yield batch, classes, over_maximum(2 * total)
            else:
                yield batch, classes, total / len(maps)


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
        "seeds.normalise": among(NORMALISATIONS),
        "seeds.background": candidates(number(0, 1)),
    },
    check_model=_check_model,
    splits=["seeds.train_split", "data.val_split"],
    scores=lambda run: {"cues": read_scores(run, "seeds")},
)
