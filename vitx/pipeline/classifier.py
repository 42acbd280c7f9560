"""Stage `classifier`: a Vision Transformer or a CNN learns which classes an image shows, from image-level labels.

Or `classifier.checkpoint` names weights that have learned it.
"""

import functools
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from vitx import parallel, weights
from vitx.data import loader
from vitx.evaluation.average_precision import average_precision_multilabel
from vitx.evaluation.metrics import by_class
from vitx.models.convnet import ConvNet
from vitx.models.design import Preprocess
from vitx.models.levels import level_channels
from vitx.models.registry import create
from vitx.models.tuning import (
    first_trained,
    group_factor,
    kept_count,
    logits_from_patches,
    rate_factor,
)
from vitx.models.variants import Classifier
from vitx.models.vit import VisionTransformer
from vitx.ops import Array
from vitx.pipeline import training_stage
from vitx.pipeline.artifacts import SCORES, read_scores
from vitx.pipeline.classifier_options import OPTIONS, check_model
from vitx.pipeline.given_weights import (
    digest_of,
    given_classifier,
    given_facts,
    given_path,
    given_remark,
    keep,
)
from vitx.report.page import Section, Tile
from vitx.report.parts import Table, percent
from vitx.runtime.experiment import Run, Stage, wanted_stages
from vitx.runtime.files import write_json
from vitx.runtime.workdir import StageFolder
from vitx.training.optimizer import at_least_float32

NEW = ("head", "head_dist", "head_patches")  # layers that no checkpoint has, see `group_factor`


def multilabel_soft_margin(logits: Array, labels: Array) -> Array:
    """Mean over classes of the binary cross-entropy of sigmoid(logits): (B, C), (B, C) in {0, 1} -> (B,)."""
    return optax.sigmoid_binary_cross_entropy(logits, labels).mean(-1)


def image_loss(model: Any, batch: Mapping[str, Array], axis: str | None) -> Array:
    """The mean of `multilabel_soft_margin` over a batch of image (B, H, W, 3) and labels (B, C).

    With patches (B, K) the model sees these alone, see `logits_from_patches`; with dropout (B,) a CNN leaves out
    channels, see `ConvNet`.
    """
    images = batch["image"]
    if "patches" in batch:
        logits = logits_from_patches(model, images, batch["patches"])
    elif "dropout" in batch:
        logits = model(images, dropout=batch["dropout"])
    else:
        logits = model(images)
    losses = multilabel_soft_margin(at_least_float32(logits), batch["labels"])
    return losses.sum() / parallel.sum_over_devices(jnp.ones_like(losses).sum(), axis)


def train_classifier(run: Run, stage: StageFolder) -> None:
    """Trains, keeps the weights of least loss on `val_split` in `model.safetensors`, scores them on val.

    With `checkpoint` it keeps and scores that one's weights.
    """
    config, val = run.config.classifier, run.source(run.config.data.val_split)
    if given_path(run.config, STAGE.name):
        best = given_classifier(run)
        keep(run, stage, best)
    else:
        best = _trained(run, stage)
    scores = validate(best, val, config.batch_size, run.config.parallel)
    if parallel.is_first_process():
        write_json(stage.folder / SCORES, scores)


def _trained(run: Run, stage: StageFolder) -> Classifier:
    config, mode = run.config.classifier, run.config.parallel
    classes = tuple(run.source(config.train_split).classes[1:])
    model = initial_model(run, len(classes), config.head)
    model.name_classes(classes, "data", "sigmoid")
    if config.head and isinstance(model, VisionTransformer):
        model.design = replace(model.design, best_patches=config.best_patches)
    _check_later_stages(run, model)
    selection = run.source(config.val_split)

    def evaluate(model: Any) -> dict[str, float]:
        scores = validate(model, selection, config.batch_size, mode)
        return {name: scores[name] for name in ("loss", "map") if scores[name] is not None}

    levels = tuple(level_channels(model)) if isinstance(model, ConvNet) else ()
    depth, count = len(levels or model.blocks), math.prod(model.grid)
    first = first_trained(config.trainable, depth, levels)

    def rate(path: training_stage.ParameterPath) -> float:
        group = group_factor(path, NEW, config.new_rate, config.bias_rate)
        return group * rate_factor(path, depth, first, config.layer_decay, levels)

    patches = (kept_count(count, config.token_dropout), count) if config.token_dropout else None
    return training_stage.train(
        run,
        stage,
        model,
        image_loss,
        evaluate,
        seed=run.config.seed,
        rate=rate,
        patches=patches,
    )


def _check_later_stages(run: Run, model: Classifier) -> None:
    for name in wanted_stages(run.config, run.stages):
        run.stages[name].check_model(run.config, model)


def validate(
    model: Any, source: loader.Source, batch_size: int, mode: str = "jit"
) -> dict[str, Any]:
    """Multi-label scores of a classifier.

    Returns:
      loss, map (mean over classes of the average precision) and average_precision by class name, fractions,
      None where no image shows the class, or any.
    """
    batches = loader.evaluation_batches(source, preprocess=model.preprocess, batch_size=batch_size)
    local, predict = parallel.replicate(model, parallel.local_mesh()), _predictor(mode)
    numbers = parallel.share(range(len(batches))) or [0]  # none to do: one whose rows are dropped
    rows = []
    for batch in loader.read_ahead(batches, numbers):
        logits, losses = predict(local, batch["image"], batch["labels"])
        rows.append((logits, losses, batch["labels"], batch["valid"]))
    stacked = [np.stack(column) for column in zip(*rows, strict=True)]  # (batches, B, ...)
    columns = parallel.gather_shares(stacked, len(batches))
    logits, losses, labels, valid = (x.reshape(-1, *x.shape[2:]) for x in columns)
    if labels[valid].any():
        precision, mean = average_precision_multilabel(logits[valid], labels[valid])
    else:  # images of nothing but background: there is a loss all the same
        precision, mean = np.full(labels.shape[1], np.nan), None
    return {
        "loss": float(losses[valid].mean()),
        "map": mean,
        "average_precision": by_class(source.classes[1:], precision),
    }


@functools.cache
def _predictor(mode: str) -> Callable[..., Any]:
    def predict(model: Any, images: Array, labels: Array) -> tuple[Array, Array]:
        logits = model(images)
        return logits, multilabel_soft_margin(logits, labels)

    return parallel.per_example(predict, mode=mode)


def initial_model(run: Run, num_classes: int, head: str = "") -> Classifier:
    """The checkpoint of the config with a fresh head, or a model of random weights.

    `head`: one of `vitx.models.heads.HEADS`; "": the model's own kind.
    """
    config = run.config.model
    final_norm_eps = config.get("final_norm_eps") or None
    if config.checkpoint:
        model = weights.load_classifier(
            config.checkpoint,
            image_size=config.image_size,
            num_classes=num_classes,
            final_norm_eps=final_norm_eps,
            head=head,
        )
        # From here on it sees whole pictures, squashed, whatever its own evaluation cut out.
        statistics = model.preprocess
        model.preprocess = Preprocess(statistics.mean, statistics.std, statistics.size)
        return model
    if parallel.is_first_process():
        print(
            "classifier: learns from random weights, as config.model.checkpoint names no others",
            file=sys.stderr,
        )
    return create(
        config.name,
        num_classes,
        config.image_size,
        run.config.seed,
        final_norm_eps=final_norm_eps,
        head=head or None,
    )


def checkpoint_digest(run: Run) -> str:
    """The digest of `config.model.checkpoint`, see `weights.digest`; "" where there is none.

    Raises:
        FileNotFoundError: There is no such file, and the classifier is not trained yet.
    """
    path = run.config.get("model", {}).get("checkpoint", "")
    return digest_of(run, path, STAGE.name, "model") if path else ""


def _facts(run: Run) -> dict[str, dict[str, Any]]:
    """Contents of data and of weights decide, not where they are."""
    data = run.config.data
    facts = {"data": {"fingerprint": run.source(data.val_split).fingerprint}}
    if "train_split" in data:
        facts["data"]["train_fingerprint"] = run.source(data.train_split).fingerprint
    if "checkpoint" in run.config.get("model", {}):
        facts["model"] = {"checkpoint": checkpoint_digest(run)}
    return facts | given_facts(run, STAGE.name)


def _check_options(config: Any) -> None:
    training_stage.check_epochs(config, STAGE.name)
    if not config.model.image_size:
        raise ValueError("config.model.image_size must be above 0 to train at, not 0")
    if given_path(config, STAGE.name) and config.model.checkpoint:
        raise ValueError(
            "config.classifier.checkpoint takes the place of training, which would begin with config.model.checkpoint: "
            "leave one of them out"
        )


def _check(run: Run) -> None:
    if given_path(run.config, STAGE.name):
        _check_later_stages(run, given_classifier(run))
    else:
        training_stage.check_size(run, STAGE.name)


def _tables(results: Mapping[str, Any]) -> list[str]:
    mean = results["classifier"]["map"]
    shown = "no image shows a class" if mean is None else f"mAP {100 * mean:.1f} %"
    return [f"Classifier on val: {shown}"]


def _tiles(results: Mapping[str, Any]) -> list[Tile]:
    return [Tile("Classifier mAP", f"{percent(results['classifier']['map'])} %")]


def _section(run: Run, results: dict[str, Any]) -> list[Section]:
    precision = results["classifier"]["average_precision"]
    table = Table(
        ["class", "average precision"],
        [[name, percent(value)] for name, value in precision.items()],
        f"Classifier on val, %: mAP {percent(results['classifier']['map'])}",
    )
    remark = given_remark(results, STAGE.name)
    return [Section("Classifier", [*remark, table, training_stage.loss_charts(run, STAGE.name)])]


STAGE = Stage(
    "classifier",
    train_classifier,
    keys=("seed", "data", "model", "classifier"),
    ignores=("data.root", "data.classes", "data.workers", "classifier.checkpoint"),
    facts=_facts,
    options=OPTIONS,
    check_options=_check_options,
    check_model=check_model,
    splits=("classifier.train_split", "classifier.val_split", "data.val_split"),
    check=_check,
    scores=lambda run: {"classifier": read_scores(run, "classifier")},
    tables=_tables,
    tiles=_tiles,
    section=_section,
)
