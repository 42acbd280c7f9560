"""From seed maps to masks: a walk along affinities, a background, and a dense CRF if one is wanted."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from vitx import parallel
from vitx.data import loader
from vitx.data.transforms import resize_maps
from vitx.pipeline.affinities import NO_WALK, affinity_source
from vitx.pipeline.artifacts import pool_factor, read_seed_maps, seeded
from vitx.pipeline.labels import CRFOptions, Seeded, crf_posteriors
from vitx.pseudomasks.crf import (
    CRFParameters,
    background_channel,
    background_channels,
    dense_crf,
    pool_posteriors,
)
from vitx.pseudomasks.label_values import label_values
from vitx.pseudomasks.walk import dense_walk, random_walk
from vitx.runtime.experiment import Run

BACKGROUNDS = ("walked", "recomputed", "constant")
STARTS = ("seeds", "crf")


class Item(NamedTuple):
    """An image on its way, and its K classes."""

    example: loader.Example
    classes: np.ndarray


class Refiner:
    """One affinity and the walk along it, compiled once, on this process's devices.

    Its maps are (A + K, h, w): K those of an image's classes, and in front of them, where backgrounds walk, one for
    each of A levels; else A is 0, and levels apply after the walk.
    """

    def __init__(self, run: Run, affinity: str, crf: bool = True):
        config = run.config
        self.run = run
        self.affinity = affinity
        self.source = affinity_source(run, affinity)
        self.seeds = run.finished("seeds")
        self.walk_options = config.walk
        self.walked_backgrounds = config.walk.background == "walked"
        self._crf = CRFParameters(**config.masks.crf)
        self.crf_follows = crf and self._crf.iterations > 0
        self._pool = pool_factor(config.model.image_size, self.source.grid[0])
        self._walks: dict[tuple[float, int], Callable[..., np.ndarray]] = {}

    def batches(self, source: loader.Source) -> loader.EvaluationBatches:
        """A split's images as the source of the affinities reads them."""
        return loader.evaluation_batches(
            source,
            preprocess=self.source.preprocess,
            batch_size=self.run.config.seeds.batch_size,
        )

    def prepared(
        self,
        batches: loader.EvaluationBatches,
        numbers: Sequence[int],
        split: str,
        levels: Sequence[float],
    ) -> Iterator[tuple[list[Item], np.ndarray, np.ndarray]]:
        """Yields for each numbered batch its items, its affinities, and its maps to walk (B, A + K, h, w).

        A walking background is computed at the image's size. Maps are padded with zeros to the split's most classes.
        """
        width = seeded(self.run, split).most_classes
        count = len(levels) if self.walked_backgrounds else 0
        for number, batch in zip(numbers, loader.read_ahead(batches, numbers), strict=True):
            items = []
            places = batches.places(number)
            maps = np.zeros((len(places), count + width, *self.source.grid), np.float32)
            # The last batch repeats its last example.
            for row, example in zip(maps, batch["examples"], strict=False):
                seed_maps, classes = read_seed_maps(
                    self.seeds, split, example.id, size=example.size
                )
                start = self._start(example, seed_maps, classes, levels[:count])
                row[: len(start)] = pool_posteriors(start, self.source.grid, self._pool)
                items.append(Item(example, classes))
            yield items, self.source.compute(batch)[: len(items)], maps

    def _start(
        self,
        example: loader.Example,
        seed_maps: np.ndarray,
        classes: np.ndarray,
        levels: Sequence[float],
    ) -> np.ndarray:
        """The maps that walk, at the image's size (A + K, H, W)."""
        if self.walk_options.start == "crf" and len(classes):
            labels, grid = self.run.config.labels, self.run.config.affinity.grid
            options = CRFOptions(
                CRFParameters(**labels.crf),
                (labels.alpha_low, labels.alpha_high),
                labels.backend,
                grid,
                1,
            )
            posteriors = crf_posteriors(
                options, Seeded(example.id, example.image, seed_maps, classes)
            )
            seed_maps = np.asarray(posteriors[0, 1:])
        backgrounds = [background_channel(seed_maps, alpha)[None] for alpha in levels]
        return np.concatenate([*backgrounds, seed_maps])

    def walk(
        self, affinity: np.ndarray, maps: np.ndarray, beta: float, log2_steps: int
    ) -> np.ndarray:
        """Maps (B, A + K, h, w) after the walk."""
        if self.affinity == NO_WALK:
            return maps
        if (beta, log2_steps) not in self._walks:
            options = self.walk_options

            def step(_: None, affinity: Any, maps: Any) -> Any:
                if options.pairs == "all":
                    return dense_walk(affinity, maps, beta, log2_steps)
                return random_walk(affinity, maps, beta, log2_steps, options.method)

            self._walks[beta, log2_steps] = parallel.per_example(
                step, mode=self.run.config.parallel
            )
        walked = self._walks[beta, log2_steps](None, affinity, maps)
        if not np.isfinite(walked).all():
            raise FloatingPointError(
                f"masks: a map is not finite after a walk of beta {beta:g}, 2^{log2_steps} steps"
            )
        return walked

    def scores(self, walked: np.ndarray, item: Item, levels: Sequence[float]) -> np.ndarray:
        """Scores (A, 1 + K, H, W) of background and classes at the image's size, for each of A levels.

        From an image's maps after the walk. A level is an exponent of the background, see `background_channel`, or with
        `walk.background=constant` its score.
        """
        count, size = len(item.classes), item.example.size
        walking = len(levels) if self.walked_backgrounds else 0
        maps = resize_maps(walked[: walking + count], size)
        backgrounds, foreground = maps[:walking], maps[walking:]
        if self.walk_options.over_maximum:
            greatest = foreground.max((1, 2), keepdims=True, initial=0)
            foreground = foreground / np.where(greatest > 0, greatest, 1)
        match self.walk_options.background:
            case "recomputed":
                backgrounds = background_channels(foreground, levels)
            case "constant":
                backgrounds = np.stack([np.full(size, level, np.float32) for level in levels])
        return np.stack([np.concatenate([level[None], foreground]) for level in backgrounds])

    def masks(
        self, walked: np.ndarray, item: Item, levels: Sequence[float], crf: bool = False
    ) -> np.ndarray:
        """The masks of one image, uint8 (A, H, W), for each of A levels, from its maps after the walk.

        At each pixel the greatest of background and present classes; the background wins ties. `crf`: after a dense CRF
        with the constants of `masks.crf`.
        """
        if not len(item.classes):
            return np.zeros((len(levels), *item.example.size), np.uint8)
        scores = self.scores(walked, item, levels)
        if crf:
            scores = dense_crf(
                item.example.image[None],
                scores[None].clip(0, 1),
                parameters=self._crf,
                backend=self.run.config.labels.backend,
            )[0]
        return label_values(item.classes)[scores.argmax(1)]
