"""Stage `masks`: seed maps walk along AffinityNet's affinities and become masks, which are scored."""

import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitx import parallel, weights
from vitx.data import loader
from vitx.data.transforms import resize_maps
from vitx.evaluation.metrics import confusion_matrix, mean_iou
from vitx.models.affinitynet import AffinityNet
from vitx.pipeline.artifacts import (
    SPLITS,
    missing_batches,
    pool_factor,
    read_seed_maps,
    seeded,
    write_mask,
)
from vitx.pipeline.mask_scores import FROM_TRUTH, score, thresholds
from vitx.pseudomasks.affinity import affinities
from vitx.pseudomasks.crf import background_channel, pool_posteriors
from vitx.pseudomasks.seeds import seed_mask
from vitx.pseudomasks.walk import random_walk
from vitx.runtime.experiment import Run
from vitx.runtime.files import parse_json, write_json
from vitx.runtime.progress import progress
from vitx.runtime.workdir import StageFolder

# The options that are chosen, and their types.
_CHOSEN = {"beta": int | float, "log2_steps": int, "alpha": int | float, "background": int | float}
_NOT_KEPT = np.empty((0, 0, 0), np.float32)


class Item(NamedTuple):
    """An image on its way, its K classes, and their seed maps (K, H, W) at its own size where they are still needed."""

    example: loader.Example
    classes: np.ndarray
    seed_maps: np.ndarray


@dataclass(frozen=True)
class Walk:
    """Options of one random walk."""

    beta: float
    log2_steps: int


def make_masks(run: Run, stage: StageFolder) -> None:
    """Chooses options on train, writes `<split>/<id>.png` masks at the images' sizes, and `scores.json`."""
    refine = Refiner(run)
    record = stage.folder / "chosen.json"
    if parallel.max_over_processes(not record.exists())[0]:
        # Each process has it: a shared file system may not show the others yet what the first wrote.
        chosen = choose(run, refine)
        if parallel.is_first_process():
            write_json(record, chosen | {"stamp": stage.stamp(record.name)})
    else:
        chosen = read_choice(stage, record)
    walk = Walk(chosen["beta"], chosen["log2_steps"])
    for split in SPLITS:
        batches = refine.batches(seeded(run, split))
        missing, images, done = missing_batches(stage, batches, ".png", split)
        with progress(images, f"masks {split}", start=done) as bar:
            alphas = (chosen["alpha"],)
            for items, affinity, maps in refine.prepared(batches, missing, split, alphas):
                for item, walked in zip(items, refine.walk(affinity, maps, walk), strict=True):
                    (mask,) = refined_masks(walked, item)
                    write_mask(stage, split, item.example.id, mask)
                bar.advance(len(items))
                run.stop.check()
    parallel.barrier()
    scores = {split: score(run, stage, split, chosen["background"]) for split in SPLITS}
    if parallel.is_first_process():
        write_json(stage.folder / "scores.json", scores | {"chosen": chosen, "note": FROM_TRUTH})


def read_choice(stage: StageFolder, path: Path) -> dict[str, Any]:
    """What `choose` returned in an earlier start of the stage.

    Raises:
      ValueError: where the file is damaged, or was made with other options.
    """
    try:
        chosen = parse_json(path.read_bytes())
        if not isinstance(chosen, dict):
            raise ValueError("it holds no JSON object")
        stamp = chosen.pop("stamp", None)
        for name, kind in _CHOSEN.items():
            value = chosen.get(name)
            if not isinstance(value, kind) or isinstance(value, bool) or not math.isfinite(value):
                raise ValueError(f"its {name} is {value!r}, not a number that was chosen")
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete it and start again; the options are chosen again"
        ) from error
    stage.require_stamp(path, stamp, path.name)
    return chosen


class Refiner:
    """AffinityNet and the walk, compiled once, on this process's devices."""

    def __init__(self, run: Run):
        config = run.config
        self.run = run
        trained = run.finished("affinity").folder
        self.net = weights.load(trained)
        if not isinstance(self.net, AffinityNet):
            raise ValueError(f"{trained} holds a classifier, where an AffinityNet is expected")
        self.seeds = run.finished("seeds")
        self.pool = pool_factor(config.model.image_size, config.affinity.grid)
        self._spread = parallel.replicate(self.net, parallel.local_mesh())
        self._affinities = parallel.per_example(
            lambda net, images: affinities(net(images), config.affinity.radius),
            mode=config.parallel,
        )
        self._walks: dict[Walk, Callable[..., np.ndarray]] = {}

    def batches(self, source: loader.Source) -> loader.EvaluationBatches:
        """A split's images as AffinityNet reads them."""
        return loader.evaluation_batches(
            source,
            preprocess=self.net.preprocess,
            batch_size=self.run.config.seeds.batch_size,
        )

    def prepared(
        self,
        batches: loader.EvaluationBatches,
        numbers: Sequence[int],
        split: str,
        alphas: Sequence[float],
        keep_seed_maps: bool = False,
    ) -> Iterator[tuple[list[Item], np.ndarray, np.ndarray]]:
        """Of each numbered batch the items, their affinities (B, P, h, w) and the maps that walk (B, A + K, h, w).

        The maps are a background for each alpha, made at the image's size, the seed maps, and zeros up to the
        split's most classes. `keep_seed_maps`: also in the items, at the images' sizes.
        """
        width = seeded(self.run, split).most_classes
        for number, batch in zip(numbers, loader.read_ahead(batches, numbers), strict=True):
            items = []
            places = batches.places(number)
            maps = np.zeros((len(places), len(alphas) + width, *self.net.grid), np.float32)
            for row, place in zip(maps, places, strict=True):
                example = batches.source[place]
                stored, classes = read_seed_maps(self.seeds, split, example.id)
                seed_maps = resize_maps(stored, example.image.shape[:2])
                row[: len(alphas) + len(seed_maps)] = self._pooled(seed_maps, alphas)
                items.append(Item(example, classes, seed_maps if keep_seed_maps else _NOT_KEPT))
            affinity = self._affinities(self._spread, batch["image"])[: len(items)]
            yield items, affinity, maps

    def walk(self, affinity: np.ndarray, maps: np.ndarray, walk: Walk) -> np.ndarray:
        """Maps (B, A + K, h, w) after the walk."""
        if walk not in self._walks:
            self._walks[walk] = parallel.per_example(
                lambda _, affinity, maps: random_walk(
                    affinity, maps, walk.beta, walk.log2_steps, self.run.config.walk.method
                ),
                mode=self.run.config.parallel,
            )
        walked = self._walks[walk](None, affinity, maps)
        if not np.isfinite(walked).all():
            raise FloatingPointError(f"masks: a map is not finite after {walk}")
        return walked

    def _pooled(self, seed_maps: np.ndarray, alphas: Sequence[float]) -> np.ndarray:
        backgrounds = np.stack([background_channel(seed_maps, alpha) for alpha in alphas])
        return pool_posteriors(np.concatenate([backgrounds, seed_maps]), self.net.grid, self.pool)


def refined_masks(walked: np.ndarray, item: Item, alphas: int = 1) -> np.ndarray:
    """The masks of one image, uint8 (A, H, W), from its maps after the walk, A of them backgrounds: see `Refiner`.

    At each pixel the greatest of background and present classes; the background wins ties.
    """
    size, count = item.example.image.shape[:2], len(item.classes)
    if not count:
        return np.zeros((alphas, *size), np.uint8)
    maps = resize_maps(walked[: alphas + count], size)
    backgrounds, seed_maps = maps[:alphas], maps[alphas:]
    labels = np.concatenate([[0], item.classes + 1]).astype(np.uint8)
    return labels[np.where(seed_maps.max(0) > backgrounds, 1 + seed_maps.argmax(0), 0)]


def choose(run: Run, refine: Refiner) -> dict[str, Any]:
    """The candidates of `config.walk`, and of `config.seeds.background`, with the best mIoU on the walk's split.

    The split is a part of train, and its masks are used. Where there is one candidate of everything, or no mask,
    nothing is compared: the first ones are taken.

    Returns:
      beta, log2_steps and alpha of the refined masks, background of the seeds; where they were chosen also split, and
      all scores: walks (a list of beta, log2_steps, alpha, miou) and backgrounds (of background, miou).
    """
    config, levels = run.config.walk, candidates(run.config.seeds.background)
    alphas = candidates(config.alpha)
    walks = list(
        itertools.starmap(
            Walk, itertools.product(candidates(config.beta), candidates(config.log2_steps))
        )
    )
    first = {"beta": walks[0].beta, "log2_steps": walks[0].log2_steps, "alpha": alphas[0]}
    single = len(walks) == len(alphas) == len(levels) == 1
    source = run.source(config.split)
    if single or not source.any_masks:
        taken = first | {"background": levels[0]}
        if not single and parallel.is_first_process():
            shown = ", ".join(f"{name} {value:g}" for name, value in taken.items())
            print(
                f"masks: {source.split} has no masks to choose by, the first candidates are taken: {shown}",
                file=sys.stderr,
            )
        return taken
    count = len(source.classes)
    tables = np.zeros((len(walks), len(alphas), count, count), np.int64)
    seeds = np.zeros((len(levels), count, count), np.int64)
    batches = refine.batches(source)
    mine = parallel.share(range(len(batches)))
    with progress(sum(len(batches.places(number)) for number in mine), "choice") as bar:
        for items, affinity, maps in refine.prepared(
            batches, mine, "train", alphas, keep_seed_maps=True
        ):
            masked = [item.example.mask is not None for item in items]
            for number, walk in enumerate(walks):
                walked = refine.walk(affinity, maps, walk)
                for item, item_maps in itertools.compress(zip(items, walked, strict=True), masked):
                    for alpha, mask in enumerate(refined_masks(item_maps, item, len(alphas))):
                        tables[number, alpha] += confusion_matrix(mask, item.example.truth, count)
            for item in itertools.compress(items, masked):
                masks = seed_mask(item.seed_maps, item.classes, thresholds(levels))
                for table, mask in zip(seeds, masks, strict=True):
                    table += confusion_matrix(mask, item.example.truth, count)
            bar.advance(len(items))
            run.stop.check()
    tables, seeds = parallel.sum_over_processes((tables, seeds))
    refined = [
        {"beta": w.beta, "log2_steps": w.log2_steps, "alpha": alpha, "miou": float(mean_iou(table))}
        for w, row in zip(walks, tables, strict=True)
        for alpha, table in zip(alphas, row, strict=True)
    ]
    backgrounds = [
        {"background": level, "miou": float(mean_iou(table))}
        for level, table in zip(levels, seeds, strict=True)
    ]
    best = max(refined, key=lambda entry: entry["miou"])
    return {
        **{key: best[key] for key in first},
        "background": max(backgrounds, key=lambda entry: entry["miou"])["background"],
        "split": source.split,
        "walks": refined,
        "backgrounds": backgrounds,
    }


def candidates(option: Any) -> tuple[Any, ...]:
    """One value, or several of which the masks of a part of train choose."""
    return tuple(option) if isinstance(option, tuple | list) else (option,)
