"""Stage `segmenter`: a segmentation network learns from the masks of training images, and needs no image labels."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from vitx import parallel, weights
from vitx.data import loader
from vitx.data.palette import IGNORED
from vitx.data.transforms import resize_mask
from vitx.models.segmenter import Segmenter
from vitx.ops import Array
from vitx.pipeline import training_stage
from vitx.pipeline.affinities import require_option
from vitx.pipeline.artifacts import (
    SCORES,
    identifiers,
    read_crf_masks,
    read_mask,
    read_scores,
    seeded,
)
from vitx.pipeline.labels import require_crf_sizes
from vitx.pipeline.segmenter_masks import score_masks, write_masks
from vitx.pipeline.segmenter_section import segmenter_section
from vitx.pseudomasks.crf import CRFParameters
from vitx.runtime.experiment import Run, Stage
from vitx.runtime.files import write_json
from vitx.runtime.options import LEVELS, POSITIVE, Wanted, among, number, several, whole
from vitx.runtime.workdir import StageFolder
from vitx.training.optimizer import at_least_float32

TRUSTED = ("all", "agreed")


def pixel_losses(logits: Array, mask: Array, robustness: float = 0.0) -> tuple[Array, Array]:
    """The loss summed over an image's pixels, and their number, without those that are 255.

    Logits (B, H, W, C), mask (B, H, W) -> (B,), (B,). Cross-entropy, or with a robustness q the generalised one (Zhang
    & Sabuncu, NeurIPS 2018), (1 - p^q) / q, in which a pixel counts the less the less probable its label: q in (0, 1],
    of which 1 is half the mean absolute error, and 0 the limit, cross-entropy.
    """
    counted = mask != IGNORED
    labels = jnp.where(counted, mask, 0).astype(jnp.int32)
    losses = optax.softmax_cross_entropy_with_integer_labels(at_least_float32(logits), labels)
    if robustness:
        losses = -jnp.expm1(-robustness * losses) / robustness
    return jnp.where(counted, losses, 0).sum((1, 2)), counted.astype(losses.dtype).sum((1, 2))


def mask_loss(robustness: float = 0.0) -> training_stage.ModelLoss:
    """The mean of `pixel_losses` over the pixels of a batch of image (B, H, W, 3) and mask (B, H, W), 255 ignored."""

    def loss(model: Any, batch: Mapping[str, Array], axis: str | None) -> Array:
        losses, counts = pixel_losses(model(batch["image"]), batch["mask"], robustness)
        return losses.sum() / jnp.maximum(parallel.sum_over_devices(counts.sum(), axis), 1)

    return loss


def train_segmenter(run: Run, stage: StageFolder) -> None:
    """Trains on masks of train, keeps the weights of least loss on others, writes and scores `val/<id>.png`."""
    config, mode = run.config.segmenter, run.config.parallel
    val, masks = run.source(config.val_split), TrainingMasks(run)

    def losses(model: Any, images: Array, labels: Array) -> tuple[Array, Array]:
        return pixel_losses(model(images), labels, config.robustness)

    validate = parallel.per_example(losses, mode=mode)

    def evaluate(model: Any) -> dict[str, float]:
        batches = loader.evaluation_batches(
            val, preprocess=model.preprocess, batch_size=config.batch_size
        )
        local, sums = parallel.replicate(model, parallel.local_mesh()), np.zeros(2)
        for batch in loader.read_ahead(batches, parallel.share(range(len(batches)))):
            size = model.preprocess.size
            labels = np.stack([resize_mask(masks(name), size) for name in batch["id"]])
            found = validate(local, batch["image"], labels)
            sums += [part[batch["valid"]].sum(dtype=np.float64) for part in found]
        loss, count = parallel.sum_over_processes(sums)
        if not count:
            raise ValueError(
                f"no pixel of the masks of config.segmenter.val_split={config.val_split} is trusted: "
                "name more images, or --config.segmenter.trusted=all"
            )
        return {"loss": float(loss / count)}

    best = training_stage.train(
        run,
        stage,
        initial_segmenter(run),
        mask_loss(config.robustness),
        evaluate,
        seed=run.config.seed + 2,
        masks=masks,
        rate=lambda path: config.backbone_rate if path[0] == "backbone" else 1.0,
    )
    write_masks(run, stage, best)
    parallel.barrier()
    scores = score_masks(run, stage)
    if parallel.is_first_process():
        write_json(stage.folder / SCORES, scores)


def initial_segmenter(run: Run) -> Segmenter:
    """The trained classifier's levels with a fresh head."""
    config = run.config.segmenter
    classifier = weights.load_classifier(run.finished("classifier").folder)
    _check_model(run.config, classifier)
    classes = len(run.source(config.train_split).classes)
    rngs = nnx.Rngs(run.config.seed + 2)
    return Segmenter(classifier, config.levels, classes, hidden=config.hidden, rngs=rngs)


class TrainingMasks:
    """The refined masks of training images by id, uint8 (H, W), 255 where a label is not trusted."""

    def __init__(self, run: Run):
        self._masks, self._labels = run.finished("masks"), run.finished("labels")
        self._agreed = run.config.segmenter.trusted == "agreed"

    def __call__(self, identifier: str) -> np.ndarray:
        """The mask of an image."""
        mask = read_mask(self._masks, "train", identifier)
        if not self._agreed:
            return mask
        low, high = read_crf_masks(self._labels, "train", identifier)
        return np.where((mask == low) | (mask == high), mask, np.uint8(IGNORED))


def _check_model(config: Any, model: Any) -> None:
    if "segmenter" in config:
        require_option("segmenter.levels", config.segmenter.levels, model)


def _check(run: Run) -> None:
    """Raises ValueError for images without a mask to learn from, and for what else would end the stage later."""
    training_stage.check_size(run, "segmenter")
    source = seeded(run, "train")
    masked = {*identifiers(source)}
    for key in ("train_split", "val_split"):
        split = run.source(run.config.segmenter[key])
        for identifier in identifiers(split):
            if identifier not in masked:
                raise ValueError(
                    f"image {identifier} of config.segmenter.{key}={split.split} is not in "
                    f"config.seeds.train_split={source.split}, whose images get the masks to learn from"
                )
    crf = CRFParameters(**run.config.segmenter.crf)
    if crf.iterations and run.config.labels.backend != "pydensecrf":
        require_crf_sizes(run, crf)


def _scores(run: Run) -> dict[str, Any]:
    """Nothing where the stage is left out."""
    done = run.stage("segmenter").done
    return {"segmenter": read_scores(run, "segmenter")} if done else {}


def _is_scale(value: Any) -> bool:
    pair = isinstance(value, tuple | list) and len(value) == 2
    return pair and all(map(number(0.1, 4).fits, value)) and value[0] <= value[1]


STAGE = Stage(
    "segmenter",
    train_segmenter,
    needs=["masks"],
    keys=["segmenter"],
    options=training_stage.ranges("segmenter")
    | {
        "segmenter.levels": LEVELS,
        "segmenter.hidden": Wanted(
            lambda value: whole(32).fits(value) and value % 32 == 0, "a multiple of 32"
        ),
        "segmenter.backbone_rate": number(0, 1),
        "segmenter.scale": Wanted(_is_scale, "two numbers in [0.1, 4], the lower one first"),
        "segmenter.robustness": number(0, 1),
        "segmenter.trusted": among(TRUSTED),
        "segmenter.test.scales": several(number(0, 4, above=True)),
        "segmenter.crf.iterations": whole(0),
        "segmenter.crf.compat_*": number(0),
        "segmenter.crf.s*": POSITIVE,
    },
    check_options=lambda config: training_stage.check_epochs(config, "segmenter"),
    check_model=_check_model,
    check=_check,
    splits=["segmenter.train_split", "segmenter.val_split"],
    scores=_scores,
    section=segmenter_section,
)
