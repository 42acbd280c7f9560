"""Judges masks without true ones: by how well they follow the classifier's features."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from vitx import parallel, weights
from vitx.data import loader
from vitx.data.transforms import normalise, resize_image
from vitx.evaluation.explained import FeatureSums, explained_share, feature_sums, label_sums
from vitx.models.affinitynet import on_grid
from vitx.models.levels import Backbone, features_at, level_channels
from vitx.ops import Array
from vitx.pipeline.artifacts import pool_factor
from vitx.pipeline.refiner import Item
from vitx.pseudomasks.crf import pool_posteriors
from vitx.pseudomasks.label_values import label_values
from vitx.runtime.experiment import Run


def judging_levels(model: Backbone) -> tuple[str, ...]:
    """The last stage of a hybrid's stem, and the block halfway up."""
    levels = list(level_channels(model))
    stages = [level for level in levels if level.startswith("stem.")]
    blocks = [level for level in levels if level.startswith("block.")]
    return (*stages[-1:], blocks[(len(blocks) - 1) // 2])


class FeatureJudge:
    """`explained_share` of masks by the classifier's features, on AffinityNet's grid. No true mask is read.

    The regression is one for all images: masks score well whose insides look to the classifier unlike their outsides,
    and alike in all images of a class.
    """

    name = "auto"

    def __init__(self, run: Run, source: loader.Source):
        model: Any = weights.load_classifier(run.finished("classifier").folder)
        side, levels = run.config.affinity.grid, judging_levels(model)
        self._preprocess, self._grid = model.preprocess, (side, side)
        self._pool = pool_factor(run.config.model.image_size, side)
        self._width = sum(level_channels(model)[level] for level in levels)
        self._classes = len(source.classes)

        def compute(model: Any, images: Array) -> Array:
            maps = features_at(model, images, levels)
            return jnp.concatenate([on_grid(features, (side, side)) for features in maps], -1)

        self._model = parallel.replicate(model, parallel.local_mesh())
        self._compute = parallel.per_example(compute, mode=run.config.parallel)
        self._features: dict[str, np.ndarray] = {}
        self._sums = self._no_sums()

    def _no_sums(self) -> FeatureSums:
        return FeatureSums(np.zeros(()), np.zeros((self._width, self._width)))

    def empty(self, *shape: int) -> np.ndarray:
        """`label_sums` of no image, (*shape, C, D + 2); a pass over the images begins."""
        self._sums = self._no_sums()
        return np.zeros((*shape, self._classes, self._width + 2))

    def look(self, examples: Sequence[loader.Example]) -> None:
        """See `Judge`."""
        size = self._preprocess.size
        images = np.stack([resize_image(example.image, size) for example in examples])
        maps = self._compute(self._model, normalise(images, self._preprocess))  # (B, h, w, D)
        self._features = {
            example.id: features.reshape(-1, self._width)
            for example, features in zip(examples, maps, strict=True)
        }
        for features in self._features.values():
            self._sums = FeatureSums(*map(np.add, self._sums, feature_sums(features)))

    def add(self, sums: np.ndarray, masks: np.ndarray, item: Item) -> None:
        """See `Judge`."""
        values = label_values(item.classes)  # (1 + K,)
        covered = masks[:, None] == values[:, None, None]  # (A, 1 + K, H, W)
        shares = pool_posteriors(covered.astype(np.float32), self._grid, self._pool)
        features = self._features[item.example.id]
        sums[:, values] += label_sums(features, shares.reshape(*shares.shape[:2], -1))

    def score(self, sums: np.ndarray) -> np.ndarray:
        """See `Judge`. All processes have to call it."""
        return explained_share(parallel.sum_over_processes(self._sums), sums)
