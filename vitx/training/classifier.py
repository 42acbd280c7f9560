"""Stage `classifier`: a hybrid ViT learns which classes an image shows, from image-level labels."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from vitx import checkpoints, parallel
from vitx.data import pipeline
from vitx.evaluation.metrics import average_precision_multilabel, by_class
from vitx.models.registry import create
from vitx.ops import Array
from vitx.stages import Run
from vitx.training.optimizer import minimise
from vitx.workdir import Stage, write_json

WEIGHTS = "model.safetensors"


def multilabel_soft_margin(logits: Array, labels: Array) -> Array:
    """Mean over classes of the binary cross-entropy of sigmoid(logits): (B, C), (B, C) in {0, 1} -> (B,)."""
    return optax.sigmoid_binary_cross_entropy(logits, labels).mean(-1)


def train_classifier(run: Run, stage: Stage) -> None:
    """Trains, keeps the weights of least loss on `val_split` in `model.safetensors`, scores them on val."""
    config = run.config.classifier
    train, selection = run.source(config.train_split), run.source(config.val_split)
    model = _initial_model(run, len(train.classes) - 1)
    steps_per_epoch = len(train) // config.batch_size
    graph, params = nnx.split(model)

    def loss(params: Any, batch: Mapping[str, Array]) -> Array:
        logits = nnx.merge(graph, params)(batch["image"])
        return multilabel_soft_margin(logits, batch["labels"]).mean()

    def batches(start_step: int) -> Iterator[dict[str, np.ndarray]]:
        return pipeline.training_loader(
            train,
            preprocess=model.preprocess,
            batch_size=config.batch_size,
            epochs=config.epochs,
            seed=run.config.seed,
            augment=augmentation(config),
            workers=run.config.data.workers,
            start_step=start_step,
        )

    def evaluate(params: Any) -> dict[str, float]:
        scores = validate(nnx.merge(graph, params), selection, config.batch_size)
        return {"loss": scores["loss"], "map": scores["map"]}

    best = nnx.merge(
        graph,
        minimise(run, stage, config, params, loss, batches, evaluate, steps_per_epoch),
    )
    checkpoints.save(best, stage.folder / WEIGHTS)
    val = run.source(run.config.data.val_split)
    write_json(stage.folder / "scores.json", validate(best, val, config.batch_size))


def validate(model: Any, source: pipeline.Source, batch_size: int) -> dict[str, Any]:
    """Multi-label scores of a classifier.

    Returns:
      loss, map (mean over classes of the average precision) and average_precision by class name, fractions.
    """
    losses, logits, labels = [], [], []
    for batch in pipeline.evaluation_batches(
        source, preprocess=model.preprocess, batch_size=batch_size
    ):
        valid = batch["valid"]
        images, truth = parallel.shard_batch((batch["image"], batch["labels"]))
        batch_logits, batch_losses = _predict(model, images, truth)
        losses.append(np.asarray(batch_losses)[valid])
        logits.append(np.asarray(batch_logits)[valid])
        labels.append(batch["labels"][valid])
    precision, mean = average_precision_multilabel(np.concatenate(logits), np.concatenate(labels))
    return {
        "loss": float(np.concatenate(losses).mean()),
        "map": float(mean),
        "average_precision": by_class(source.classes[1:], precision),
    }


@jax.jit
def _predict(model: Any, images: Array, labels: Array) -> tuple[Array, Array]:
    logits = model(images)
    return logits, multilabel_soft_margin(logits, labels)


def augmentation(config: Any) -> pipeline.Augment:
    """The augmentation that a stage's config names."""
    brightness, contrast, saturation, hue = config.jitter
    return pipeline.Augment(
        flip=config.flip, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue
    )


def _initial_model(run: Run, num_classes: int) -> Any:
    config = run.config.model
    if config.checkpoint:
        return checkpoints.load(
            config.checkpoint, image_size=config.image_size, num_classes=num_classes
        )
    return create(config.name, num_classes, config.image_size, seed=run.config.seed)
