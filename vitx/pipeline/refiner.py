"""AffinityNet and the random walk, applied to the images of an experiment."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vitx import parallel, weights
from vitx.data import loader
from vitx.data.transforms import resize_maps
from vitx.models.affinitynet import AffinityNet
from vitx.pipeline.artifacts import pool_factor, read_seed_maps, seeded
from vitx.pseudomasks.affinity import affinities
from vitx.pseudomasks.crf import background_channel, pool_posteriors
from vitx.pseudomasks.walk import random_walk
from vitx.runtime.experiment import Run

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
