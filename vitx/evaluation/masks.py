"""Stage `masks`: cues walk along AffinityNet's affinities and become masks, which are scored."""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from vitx import checkpoints, parallel, processes
from vitx.cues import SPLITS, missing_batches, read_cues, seeded
from vitx.data import pipeline
from vitx.data.palette import decode_mask, encode_mask
from vitx.data.transforms import resize_maps
from vitx.evaluation.metrics import by_class, confusion_matrix, mean_iou, per_class_iou
from vitx.ops import Array
from vitx.pseudomasks.affinity import affinities
from vitx.pseudomasks.crf import background_channel, pool_posteriors
from vitx.pseudomasks.seeds import seed_mask
from vitx.pseudomasks.walk import random_walk
from vitx.run import progress
from vitx.stages import Run
from vitx.training.labels import pool_factor
from vitx.workdir import Stage, write_bytes, write_json

PUBLISHED_BACKGROUND = 0.2


class Item(NamedTuple):
    """An image on its way: cues (K, H, W) at its own size, classes (K,), -1 for padding."""

    example: pipeline.Example
    cues: Array
    classes: np.ndarray


@dataclass(frozen=True)
class Walk:
    """Options of one random walk."""

    beta: float
    log2_steps: int


def make_masks(run: Run, stage: Stage) -> None:
    """Chooses options on train, writes `<split>/<id>.png` masks at the images' sizes, and `scores.json`."""
    refine = Refiner(run)
    record = stage.folder / "chosen.json"
    if processes.largest(not record.exists())[0]:
        found = choose(run, refine)
        if processes.is_first():
            write_json(record, found)
        processes.barrier()
    chosen = json.loads(record.read_text())
    walk = Walk(chosen["beta"], chosen["log2_steps"])
    for split in SPLITS:
        batches = refine.batches(seeded(run, split))
        missing, images, done = missing_batches(stage, batches, ".png", split)
        with progress(images, f"masks {split}", start=done) as bar:
            for items, affinity, maps in refine.prepared(
                batches, missing, split, (chosen["alpha"],)
            ):
                for item, walked in zip(items, refine.walk(affinity, maps, walk), strict=True):
                    (mask,) = refined_masks(walked, item)
                    path = stage.item(item.example.id, ".png", split)
                    write_bytes(path, encode_mask(mask))
                bar.advance(len(items))
                run.stop.check()
    processes.barrier()
    scores = {split: score(run, stage, split, chosen["background"]) for split in SPLITS}
    if processes.is_first():
        write_json(stage.folder / "scores.json", scores | {"chosen": chosen})


class Refiner:
    """AffinityNet and the walk, compiled once, on this process's devices."""

    def __init__(self, run: Run):
        config = run.config
        self.run = run
        self.net = checkpoints.load(run.finished("affinity").folder)
        self.seeds = run.finished("seeds")
        self.pool = pool_factor(config.model.image_size, config.labels.grid)
        self._spread = parallel.replicate(self.net, parallel.local_mesh())
        self._affinities = parallel.per_example(
            lambda net, images: affinities(net(images), config.affinity.radius),
            mode=config.parallel,
        )
        self._walks: dict[Walk, Callable[..., np.ndarray]] = {}

    def batches(self, source: pipeline.Source) -> pipeline.EvaluationBatches:
        """A split's images as AffinityNet reads them."""
        return pipeline.evaluation_batches(
            source,
            preprocess=self.net.preprocess,
            batch_size=self.run.config.seeds.batch_size,
        )

    def prepared(
        self,
        batches: pipeline.EvaluationBatches,
        numbers: Sequence[int],
        split: str,
        alphas: Sequence[float],
    ) -> Iterator[tuple[list[Item], np.ndarray, np.ndarray]]:
        """Of each numbered batch the items, their affinities (B, P, h, w) and the maps that walk (B, A + K, h, w).

        The maps are a background for each alpha, made at the image's size, and the cues.
        """
        width = seeded(self.run, split).most_classes
        for number, batch in zip(numbers, pipeline.read_ahead(batches, numbers), strict=True):
            items = []
            for place in batches.places(number):
                example = batches.source[place]
                stored, classes = read_cues(self.seeds, split, example.id, width)
                cues = resize_maps(jnp.asarray(stored), example.image.shape[:2])
                items.append(Item(example, cues, classes))
            maps = np.stack([self._pooled(item.cues, alphas) for item in items])
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

    def _pooled(self, cues: Array, alphas: Sequence[float]) -> Array:
        backgrounds = jnp.stack([background_channel(cues, alpha) for alpha in alphas])
        return pool_posteriors(jnp.concatenate([backgrounds, cues]), self.net.grid, self.pool)


def refined_masks(walked: np.ndarray, item: Item) -> np.ndarray:
    """The masks of one image, uint8 (A, H, W), from its maps after the walk (A + K, h, w).

    At each pixel the greatest of background and present classes; the background wins ties.
    """
    maps = np.asarray(resize_maps(jnp.asarray(walked), item.example.image.shape[:2]))
    count, present = len(item.classes), item.classes >= 0
    backgrounds, cues = maps[:-count], maps[-count:][present]
    labels = np.concatenate([[0], item.classes[present] + 1]).astype(np.uint8)
    return labels[np.where(cues.max(0) > backgrounds, 1 + cues.argmax(0), 0)]


def choose(run: Run, refine: Refiner) -> dict[str, Any]:
    """The candidates of `config.walk` with the best mIoU on its split, a part of train, and all scores.

    Returns:
      beta, log2_steps and alpha of the refined masks, background of the seeds; walks (a list of beta, log2_steps,
      alpha, miou) and backgrounds (of background, miou). Uses the masks of that part of train.
    """
    config = run.config.walk
    source = run.source(config.split)
    walks = list(itertools.starmap(Walk, itertools.product(config.beta, config.log2_steps)))
    count = len(source.classes)
    tables = np.zeros((len(walks), len(config.alpha), count, count), np.int64)
    seeds = np.zeros((len(config.background), count, count), np.int64)
    batches = refine.batches(source)
    mine = processes.share(range(len(batches)))
    with progress(sum(len(batches.places(number)) for number in mine), "choice") as bar:
        for items, affinity, maps in refine.prepared(batches, mine, "train", config.alpha):
            for number, walk in enumerate(walks):
                for item, walked in zip(items, refine.walk(affinity, maps, walk), strict=True):
                    for alpha, mask in enumerate(refined_masks(walked, item)):
                        tables[number, alpha] += confusion_matrix(mask, item.example.truth, count)
            for item in items:
                for number, background in enumerate(config.background):
                    mask = np.asarray(seed_mask(item.cues, jnp.asarray(item.classes), background))
                    seeds[number] += confusion_matrix(mask, item.example.truth, count)
            bar.advance(len(items))
            run.stop.check()
    tables, seeds = processes.total((tables, seeds))
    refined = [
        {"beta": w.beta, "log2_steps": w.log2_steps, "alpha": alpha, "miou": float(mean_iou(table))}
        for w, row in zip(walks, tables, strict=True)
        for alpha, table in zip(config.alpha, row, strict=True)
    ]
    backgrounds = [
        {"background": background, "miou": float(mean_iou(table))}
        for background, table in zip(config.background, seeds, strict=True)
    ]
    best = max(refined, key=lambda entry: entry["miou"])
    background = max(backgrounds, key=lambda entry: entry["miou"])["background"]
    return {
        **{key: best[key] for key in ("beta", "log2_steps", "alpha")},
        "background": background,
        "split": source.split,
        "walks": refined,
        "backgrounds": backgrounds,
    }


def score(run: Run, stage: Stage, split: str, background: float) -> dict[str, Any]:
    """Scores of the seeds' masks, at the chosen and at the published background, and of the refined masks.

    Each with miou and iou by class name, fractions. All use the classes that an image's ground-truth label names.
    """
    source, seeds = seeded(run, split), run.finished("seeds")
    count = len(source.classes)
    tables = {name: np.zeros((count, count), np.int64) for name in ("seeds", "published", "masks")}
    for example in pipeline.read_ahead(source, processes.share(range(len(source)))):
        cues, classes = read_cues(seeds, split, example.id, source.most_classes)
        found = {
            "seeds": image_seed_mask(example, cues, classes, background),
            "published": image_seed_mask(example, cues, classes, PUBLISHED_BACKGROUND),
            "masks": decode_mask(stage.item(example.id, ".png", split).read_bytes()),
        }
        for name, mask in found.items():
            tables[name] += confusion_matrix(mask, example.truth, count)
        run.stop.check()
    tables = processes.total(tables)
    figures = {
        name: {
            "miou": float(mean_iou(table)),
            "iou": by_class(source.classes, per_class_iou(table)),
        }
        for name, table in tables.items()
    }
    return {
        "seeds": figures["seeds"] | {"miou_at_0.2": figures["published"]["miou"]},
        "masks": figures["masks"],
    }


def image_seed_mask(
    example: pipeline.Example, cues: np.ndarray, classes: np.ndarray, background: float
) -> np.ndarray:
    """The seeds' mask of one image, uint8 (H, W), from cues (K, h, w) and a constant background."""
    resized = resize_maps(jnp.asarray(cues), example.image.shape[:2])
    return np.asarray(seed_mask(resized, jnp.asarray(classes), background))
