"""Stage `affinity`: AffinityNet learns from the confident labels which neighbours belong together.

Or `affinity.checkpoint` names weights that have learned it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from vitx import parallel, weights
from vitx.data import loader
from vitx.models.affinitynet import AffinityNet, MultiLevelAffinityNet
from vitx.ops import Array
from vitx.pipeline import training_stage
from vitx.pipeline.affinities import require_option
from vitx.pipeline.artifacts import SPLITS, check_grid, identifiers, read_mask, seeded
from vitx.pipeline.given_weights import given_facts, given_net, given_path, given_remark, keep
from vitx.pseudomasks.affinity import affinities, affinity_loss, pair_labels
from vitx.report.page import Section
from vitx.runtime.experiment import Run, Stage
from vitx.runtime.options import LEVELS, among, whole
from vitx.runtime.workdir import StageFolder
from vitx.training.optimizer import at_least_float32


def pair_loss(radius: int, everywhere: bool = False) -> training_stage.ModelLoss:
    """The loss of AffinityNet over the pairs of a batch of image (B, H, W, 3) and label (B, h, w)."""

    def loss(net: Any, batch: Mapping[str, Array], axis: str | None) -> Array:
        affinity = affinities(
            at_least_float32(net(batch["image"])), radius, everywhere
        )  # (B, P, h, w)
        pairs = pair_labels(batch["label"], radius, everywhere)
        return affinity_loss(affinity, *pairs, axis_name=axis)["loss"]

    return loss


def train_affinity(run: Run, stage: StageFolder) -> None:
    """Trains AffinityNet's head, and the backbone below it where asked; keeps the weights of least validation loss.

    With `checkpoint` it keeps that one's weights.
    """
    config, mode = run.config.affinity, run.config.parallel
    if given_path(run.config, "affinity"):
        keep(run, stage, given_net(run))
        return
    train, val = run.source(config.train_split), run.source(config.val_split)
    labels, net = _Labels(run, train, val), initial_net(run)
    loss = pair_loss(config.radius, everywhere=config.pairs == "near")

    def batch_loss(net: Any, batch: Mapping[str, Array]) -> Array:
        axis = parallel.axis_of(mode)
        return parallel.sum_over_devices(loss(net, batch, axis), axis)

    here = parallel.local_mesh()
    validation_loss = parallel.data_parallel(batch_loss, over=here, mode=mode)

    def evaluate(net: Any) -> dict[str, float]:
        # The loss is a mean over the pairs of a batch, so its value is one of this batch size.
        net = parallel.replicate(net, here)
        batches = loader.evaluation_batches(
            val, preprocess=net.preprocess, batch_size=config.batch_size
        )
        weighted = 0.0
        for batch in loader.read_ahead(batches, parallel.share(range(len(batches)))):
            label = np.stack([labels(identifier, False)["label"] for identifier in batch["id"]])
            label = np.where(batch["valid"][:, None, None], label, np.uint8(255))
            arrays = {"image": batch["image"], "label": label}
            padded, valid = parallel.pad_batch(arrays, here.size)
            padded["label"][~valid] = 255
            weighted += float(validation_loss(net, padded)) * batch["valid"].sum()
        return {"loss": float(parallel.sum_over_processes(np.array(weighted))) / len(val)}

    kept = () if config.train_backbone else ("stem", "backbone")  # their names in either net
    training_stage.train(
        run,
        stage,
        net,
        loss,
        evaluate,
        seed=run.config.seed + 1,
        extra=labels,
        rate=lambda path: float(path[0] not in kept),
    )


def initial_net(run: Run) -> AffinityNet | MultiLevelAffinityNet:
    """AffinityNet on the trained classifier's stem, or on its levels where the config names some; with a fresh head."""
    config = run.config.affinity
    classifier = weights.load_classifier(run.finished("classifier").folder)
    _check_model(run.config, classifier)
    grid, rngs = (config.grid, config.grid), nnx.Rngs(run.config.seed + 1)
    sizes = {"hidden": config.features, "features": config.features}
    if config.levels:
        return MultiLevelAffinityNet(classifier, config.levels, grid, **sizes, rngs=rngs)
    return AffinityNet(classifier.stem, grid, preprocess=classifier.preprocess, **sizes, rngs=rngs)


class _Labels:
    """The confident labels by image id, in memory: one byte a grid cell."""

    def __init__(self, run: Run, *sources: loader.Source):
        stage = run.finished("labels")
        labelled = {split: {*identifiers(seeded(run, split))} for split in SPLITS}
        self._labels = {}
        for source in sources:
            for identifier in identifiers(source):
                split = next((name for name in SPLITS if identifier in labelled[name]), None)
                if split is None:
                    raise ValueError(
                        f"image {identifier} of affinity's split {source.split} has no label: its "
                        "splits must lie within seeds.train_split and data.val_split"
                    )
                self._labels[identifier] = read_mask(stage, split, identifier)

    def __call__(self, identifier: str, flipped: bool) -> dict[str, np.ndarray]:
        label = self._labels[identifier]
        return {"label": np.ascontiguousarray(label[:, ::-1]) if flipped else label}


def _check_model(config: Any, model: Any) -> None:
    if given_path(config, "affinity"):
        return  # the given net has a backbone of its own
    if levels := config.get("affinity", {}).get("levels", ()):
        require_option("affinity.levels", levels, model)
    elif model.stem is None:
        raise ValueError(
            "AffinityNet reads a hybrid's stem, and this model has none: choose a hybrid, name blocks in "
            "config.affinity.levels, or leave the stage affinity out of config.stages"
        )


def _check(run: Run) -> None:
    if given_path(run.config, "affinity"):
        given_net(run)
    else:
        training_stage.check_size(run, "affinity")


def _check_options(config: Any) -> None:
    training_stage.check_epochs(config, "affinity")
    check_grid(config)


def _section(run: Run, results: dict[str, Any]) -> list[Section]:
    charts = training_stage.loss_charts(run, "affinity")
    body = [*given_remark(results, "affinity"), *([charts] if charts else [])]
    return [Section("AffinityNet", body)] if body else []


STAGE = Stage(
    "affinity",
    train_affinity,
    needs=["labels"],
    keys=["affinity"],
    ignores=["affinity.checkpoint"],
    facts=lambda run: given_facts(run, "affinity"),
    options={
        "affinity.grid": whole(1),
        "affinity.pairs": among(("published", "near")),
        "affinity.radius": whole(2),
        "affinity.features": whole(1),
        "affinity.levels": LEVELS,
        **training_stage.ranges("affinity"),
    },
    check_options=_check_options,
    check_model=_check_model,
    splits=["affinity.train_split", "affinity.val_split"],
    check=_check,
    section=_section,
)
