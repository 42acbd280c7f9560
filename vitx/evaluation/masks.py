"""Stage `masks`: cues walk along AffinityNet's affinities and become masks, which are scored."""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vitx import checkpoints
from vitx.cues import SPLITS, read_cues, seeded
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
    if not record.exists():
        write_json(record, choose(run, refine))
    chosen = json.loads(record.read_text())
    walk = Walk(chosen["beta"], chosen["log2_steps"])
    for split in SPLITS:
        source = seeded(run, split)
        done = stage.items_done(".png", split)
        with progress(len(source), f"masks {split}", start=len(done)) as bar:
            for items, affinity, maps in refine.batches(source, split, (chosen["alpha"],), done):
                for item, walked in zip(items, refine.walk(affinity, maps, walk), strict=True):
                    (mask,) = refined_masks(walked, item)
                    path = stage.item(item.example.id, ".png", split)
                    write_bytes(path, encode_mask(mask))
                bar.advance(len(items))
                run.stop.check()
    scores = {split: score(run, stage, split, chosen["background"]) for split in SPLITS}
    write_json(stage.folder / "scores.json", scores | {"chosen": chosen})


class Refiner:
    """AffinityNet and the walk, compiled once."""

    def __init__(self, run: Run):
        self.run = run
        self.net = checkpoints.load(run.finished("affinity").folder)
        self.seeds = run.finished("seeds")
        self.pool = pool_factor(run.config.model.image_size, run.config.labels.grid)
        radius = run.config.affinity.radius
        self._affinities = jax.jit(lambda net, images: affinities(net(images), radius))
        self._walk = jax.jit(
            partial(random_walk, method=run.config.walk.method),
            static_argnames=("beta", "log2_steps"),
        )

    def batches(
        self,
        source: pipeline.Source,
        split: str,
        alphas: Sequence[float],
        skip: set[str] | frozenset[str] = frozenset(),
    ) -> Iterator[tuple[list[Item], Array, Array]]:
        """Batches of items, their affinities (B, P, h, w) and the maps that are to walk (B, A + K, h, w).

        The maps are a background for each alpha, made at the image's size, and the cues. Batches within `skip` are
        passed over.
        """
        width = seeded(self.run, split).most_classes
        batch_size = self.run.config.seeds.batch_size
        batches = pipeline.evaluation_batches(
            source, preprocess=self.net.preprocess, batch_size=batch_size
        )
        for number, batch in enumerate(batches):
            if skip.issuperset(batch["id"]):
                continue
            items = []
            for row in np.flatnonzero(batch["valid"]):
                example = source[number * batch_size + int(row)]
                stored, classes = read_cues(self.seeds, split, example.id, width)
                cues = resize_maps(jnp.asarray(stored), example.image.shape[:2])
                items.append(Item(example, cues, classes))
            maps = jnp.stack([self._pooled(item.cues, alphas) for item in items])
            affinity = self._affinities(self.net, batch["image"])[: len(items)]
            yield items, affinity, maps

    def walk(self, affinity: Array, maps: Array, walk: Walk) -> np.ndarray:
        """Maps (B, A + K, h, w) after the walk."""
        walked = np.asarray(self._walk(affinity, maps, beta=walk.beta, log2_steps=walk.log2_steps))
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
    with progress(len(source), "choice") as bar:
        for items, affinity, maps in refine.batches(source, "train", config.alpha):
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
    for example in source:
        cues, classes = read_cues(seeds, split, example.id, source.most_classes)
        found = {
            "seeds": image_seed_mask(example, cues, classes, background),
            "published": image_seed_mask(example, cues, classes, PUBLISHED_BACKGROUND),
            "masks": decode_mask(stage.item(example.id, ".png", split).read_bytes()),
        }
        for name, mask in found.items():
            tables[name] += confusion_matrix(mask, example.truth, count)
        run.stop.check()
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
