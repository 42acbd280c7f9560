"""Stage `affinity`: AffinityNet learns from the confident labels which neighbours belong together.

Or `affinity.checkpoint` names weights that have learned it.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from vitx import parallel, weights
from vitx.data import loader
from vitx.data.palette import IGNORED
from vitx.models.affinitynet import (
    PSA_STEP,
    AffinityNet,
    MultiLevelAffinityNet,
    vgg16_affinity_net,
)
from vitx.models.convnet import ConvNet
from vitx.models.levels import level_channels
from vitx.models.tuning import first_trained, group_factor, layer_of
from vitx.models.vgg import AFFINITY_LEVELS, VGG16
from vitx.ops import Array
from vitx.pipeline import training_stage
from vitx.pipeline.affinities import require_option
from vitx.pipeline.artifacts import (
    SPLITS,
    check_grid,
    identifiers,
    read_crf_masks,
    read_mask,
    seeded,
)
from vitx.pipeline.given_weights import given_facts, given_net, given_path, given_remark, keep
from vitx.pseudomasks.affinity import affinities, affinity_loss, pair_labels
from vitx.report.page import Section
from vitx.runtime.experiment import Run, Stage
from vitx.runtime.options import LEVELS, POSITIVE, Wanted, among, whole
from vitx.runtime.workdir import StageFolder
from vitx.training.optimizer import at_least_float32

NEW = ("feat_conv", "affinity_conv")  # layers that no classifier has, see `group_factor`


def pair_loss(
    radius: int, everywhere: bool = False, epsilon: float = 1e-6
) -> training_stage.ModelLoss:
    """The loss of AffinityNet over the pairs of a batch of image (B, H, W, 3) and label (B, h, w).

    Labels may be a mask (B, H, W), of which each cell's middle counts; with dropout (B,) a CNN leaves out channels.
    """

    def loss(net: Any, batch: Mapping[str, Array], axis: str | None) -> Array:
        dropout = {"dropout": batch["dropout"]} if "dropout" in batch else {}
        features = at_least_float32(net(batch["image"], **dropout))
        affinity = affinities(features, radius, everywhere)  # (B, P, h, w)
        label = batch["label"] if "label" in batch else middles(batch["mask"], affinity.shape[-2:])
        pairs = pair_labels(label, radius, everywhere)
        return affinity_loss(affinity, *pairs, eps=epsilon, axis_name=axis)["loss"]

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
    loss = pair_loss(config.radius, config.pairs == "near", config.epsilon)

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

    rate, cropped = rates(config, net), bool(config.long_side)
    training_stage.train(
        run,
        stage,
        net,
        loss,
        evaluate,
        seed=run.config.seed + 1,
        extra=None if cropped else labels,
        masks=labels.of_image if cropped else None,
        rate=rate,
    )


def rates(
    config: ConfigDict, net: AffinityNet | MultiLevelAffinityNet
) -> Callable[[training_stage.ParameterPath], float]:
    """The factor of a parameter's learning rate: 0 in the backbone below what is trained, else that of its group."""
    backbone = getattr(net, "backbone", None)
    levels = tuple(level_channels(backbone)) if isinstance(backbone, ConvNet) else ()
    first = first_trained(config.trainable, len(levels), levels)

    def rate(path: training_stage.ParameterPath) -> float:
        if path[0] in ("stem", "backbone"):  # its name in either net
            frozen = levels and layer_of(path[1:], len(levels), levels) < first
            if frozen or not config.train_backbone:
                return 0.0
        return group_factor(path, NEW, config.new_rate, config.bias_rate)

    return rate


def initial_net(run: Run) -> AffinityNet | MultiLevelAffinityNet:
    """AffinityNet on the trained classifier's stem, or on its levels where the config names some; with a fresh head."""
    config = run.config.affinity
    classifier = weights.load_classifier(run.finished("classifier").folder)
    _check_model(run.config, classifier)
    grid, rngs = (config.grid, config.grid), nnx.Rngs(run.config.seed + 1)
    sizes = {"hidden": config.features, "features": config.features}
    if _is_psa(classifier, config):
        return vgg16_affinity_net(classifier, grid, features=config.features, rngs=rngs)
    if config.levels:
        return MultiLevelAffinityNet(classifier, config.levels, grid, **sizes, rngs=rngs)
    return AffinityNet(classifier.stem, grid, preprocess=classifier.preprocess, **sizes, rngs=rngs)


def _is_psa(model: Any, config: ConfigDict) -> TypeGuard[VGG16]:
    """Whether the net is that of AffinityNet's authors."""
    return isinstance(model, VGG16) and tuple(config.levels) == AFFINITY_LEVELS


def middles(mask: Array, grid: tuple[int, ...]) -> Array:
    """The middle pixel of each cell of a mask (B, H, W) whose sides the grid (h, w) divides, (B, h, w)."""
    down, across = mask.shape[1] // grid[0], mask.shape[2] // grid[1]
    return mask[:, down // 2 :: down, across // 2 :: across]


class _Labels:
    """The confident labels by image id, in memory: one byte a grid cell."""

    def __init__(self, run: Run, *sources: loader.Source):
        self._stage = stage = run.finished("labels")
        labelled = {split: {*identifiers(seeded(run, split))} for split in SPLITS}
        self._labels, self._splits = {}, {}
        for source in sources:
            for identifier in identifiers(source):
                split = next((name for name in SPLITS if identifier in labelled[name]), None)
                if split is None:
                    raise ValueError(
                        f"image {identifier} of affinity's split {source.split} has no label: its "
                        "splits must lie within seeds.train_split and data.val_split"
                    )
                self._labels[identifier] = read_mask(stage, split, identifier)
                self._splits[identifier] = split

    def __call__(self, identifier: str, flipped: bool) -> dict[str, np.ndarray]:
        label = self._labels[identifier]
        return {"label": np.ascontiguousarray(label[:, ::-1]) if flipped else label}

    def of_image(self, identifier: str) -> np.ndarray:
        """The labels at the image's own size (H, W), from the masks by the CRF, as `confident_labels`."""
        low, high = read_crf_masks(self._stage, self._splits[identifier], identifier)
        return np.where(high == 0, 0, np.where(low == 0, IGNORED, low)).astype(np.uint8)


def _check_model(config: Any, model: Any) -> None:
    if given_path(config, "affinity"):
        return  # the given net has a backbone of its own
    options = config.get("affinity", {})
    if trainable := options.get("trainable", "all").removeprefix("all"):
        if not isinstance(model, ConvNet):
            raise ValueError(f"config.affinity.trainable={trainable} is for CNNs: all, or a level")
        require_option("affinity.trainable", [trainable], model)
    if options.get("dropout") and not isinstance(model, ConvNet):
        raise ValueError("config.affinity.dropout is for CNNs, not for a Vision Transformer")
    if levels := options.get("levels", ()):
        require_option("affinity.levels", levels, model)
        if _is_psa(model, options) and options.features % PSA_STEP:
            raise ValueError(
                f"config.affinity.features must be a multiple of {PSA_STEP} on these levels, not {options.features}"
            )
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
        "affinity.epsilon": POSITIVE,
        "affinity.trainable": Wanted(
            lambda value: value == "all" or LEVELS.fits([value]),
            "all, or of a CNN a level such as conv3",
        ),
        **training_stage.ranges("affinity"),
    },
    check_options=_check_options,
    check_model=_check_model,
    splits=["affinity.train_split", "affinity.val_split"],
    check=_check,
    section=_section,
)
