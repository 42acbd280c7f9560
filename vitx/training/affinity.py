"""Stage `affinity`: AffinityNet learns from the confident labels which neighbours belong together."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from vitx import checkpoints, parallel
from vitx.data import pipeline
from vitx.data.palette import decode_mask
from vitx.models.affinity import AffinityNet
from vitx.ops import Array
from vitx.pseudomasks.affinity import affinities, affinity_loss, pair_labels
from vitx.stages import Run
from vitx.training.classifier import WEIGHTS, augmentation
from vitx.training.optimizer import minimise
from vitx.workdir import Stage


def train_affinity(run: Run, stage: Stage) -> None:
    """Trains the classifier's stem and AffinityNet's head; keeps the weights of least validation loss."""
    config = run.config.affinity
    train, val = run.source(config.train_split), run.source(config.val_split)
    labels = _Labels(run, train, val)
    net = initial_net(run)
    steps_per_epoch = len(train) // config.batch_size
    graph, params = nnx.split(net)

    def loss(params: Any, batch: Mapping[str, Array]) -> Array:
        pixel_features = nnx.merge(graph, params)(batch["image"])  # (B, h, w, C)
        affinity = affinities(pixel_features, config.radius)  # (B, P, h, w)
        return affinity_loss(affinity, *pair_labels(batch["label"], config.radius))["loss"]

    def batches(start_step: int) -> Iterator[dict[str, np.ndarray]]:
        return pipeline.training_loader(
            train,
            preprocess=net.preprocess,
            batch_size=config.batch_size,
            epochs=config.epochs,
            seed=run.config.seed + 1,
            augment=augmentation(config),
            workers=run.config.data.workers,
            start_step=start_step,
            extra=labels,
        )

    validation_loss = jax.jit(loss)

    def evaluate(params: Any) -> dict[str, float]:
        # The loss is a mean over the pairs of a batch, so its value is one of this batch size.
        values = []
        weights = []
        for batch in pipeline.evaluation_batches(
            val, preprocess=net.preprocess, batch_size=config.batch_size
        ):
            label = np.stack([labels(identifier, False)["label"] for identifier in batch["id"]])
            label = np.where(batch["valid"][:, None, None], label, np.uint8(255))
            arrays = parallel.shard_batch({"image": batch["image"], "label": label})
            values.append(float(validation_loss(params, arrays)))
            weights.append(batch["valid"].sum())
        return {"loss": float(np.average(values, weights=weights))}

    best = minimise(run, stage, config, params, loss, batches, evaluate, steps_per_epoch)
    checkpoints.save(nnx.merge(graph, best), stage.folder / WEIGHTS)


def initial_net(run: Run) -> AffinityNet:
    """AffinityNet on the trained classifier's stem, with a fresh head."""
    config = run.config.affinity
    classifier = checkpoints.load(run.finished("classifier").folder)
    if classifier.stem is None:
        raise ValueError(
            "AffinityNet reads a hybrid's stem, and this model has none: choose a hybrid"
        )
    return AffinityNet(
        classifier.stem,
        (run.config.labels.grid, run.config.labels.grid),
        preprocess=classifier.preprocess,
        hidden=config.features,
        features=config.features,
        rngs=nnx.Rngs(run.config.seed + 1),
    )


class _Labels:
    """The confident labels by image id, in memory: one byte a grid cell."""

    def __init__(self, run: Run, *sources: pipeline.Source):
        stage = run.finished("labels")
        labelled = stage.items_done(".png", "train")
        self._labels = {}
        for source in sources:
            for identifier in (example.id for example in source):
                if identifier not in labelled:
                    raise ValueError(
                        f"image {identifier} of affinity's split {source.split} has no label: its "
                        "splits must lie within seeds.train_split"
                    )
                path = stage.item(identifier, ".png", "train")
                self._labels[identifier] = decode_mask(path.read_bytes())

    def __call__(self, identifier: str, flipped: bool) -> dict[str, np.ndarray]:
        label = self._labels[identifier]
        return {"label": np.ascontiguousarray(label[:, ::-1]) if flipped else label}
