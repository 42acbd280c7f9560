"""Training for the stages that train a model: data, options, weights, loss curves."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from vitx import parallel, weights
from vitx.data.loader import Augment, Extra, Masks, training_loader
from vitx.models.affinitynet import AffinityNet, MultiLevelAffinityNet
from vitx.models.design import Preprocess
from vitx.models.segmenter import Segmenter
from vitx.models.variants import Classifier
from vitx.ops import Array
from vitx.report.charts import Chart, line_chart
from vitx.runtime.experiment import Run
from vitx.runtime.metrics import read_metrics
from vitx.runtime.options import AUTO, BELOW_ONE, POSITIVE, Wanted, among, number, whole
from vitx.runtime.workdir import StageFolder
from vitx.training.optimizer import COMPUTE, OPTIMIZERS, SCHEDULES, check_batch, minimise

WEIGHTS = "model.safetensors"

# (model, batch, axis of `jax.pmap`) -> the loss of the batch, or under pmap the device's share of it.
ModelLoss = Callable[[Any, Mapping[str, Array], str | None], Array]
ParameterPath = tuple[Any, ...]  # such as ("blocks", 0, "norm1", "scale")


def ranges(stage: str) -> dict[str, Wanted]:
    """Ranges of the options of a training stage, by key."""
    wanted = {
        "accumulate": whole(1),
        "epochs": whole(1),
        "warmup_epochs": whole(0),
        "learning_rate": POSITIVE,
        "weight_decay": number(0),
        "clip_norm": number(0),
        "optimizer": among(OPTIMIZERS),
        "momentum": BELOW_ONE,
        "schedule": among(SCHEDULES),
        "new_rate": POSITIVE,
        "bias_rate": POSITIVE,
        "long_side": Wanted(_is_length, "(), or two whole numbers from 1 up, the lower one first"),
        "compute": among((AUTO, *COMPUTE)),
        "average": BELOW_ONE,
        "jitter": Wanted(_is_jitter, "four numbers from 0 up, the last of at most 0.5"),
    }
    return {f"{stage}.{name}": range for name, range in wanted.items()}


def _is_jitter(value: Any) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) == 4
        and all(map(number(0).fits, value))
        and value[3] <= 0.5
    )


def _is_length(value: Any) -> bool:
    if not isinstance(value, tuple | list):
        return False
    return not value or (
        len(value) == 2 and all(map(whole(1).fits, value)) and value[0] <= value[1]
    )


def check_epochs(config: Any, stage: str) -> None:
    """Raises ValueError where a stage's warm-up does not end before its training."""
    options = config[stage]
    if options.warmup_epochs >= options.epochs:
        raise ValueError(
            f"config.{stage}.warmup_epochs must be less than {stage}.epochs, {options.epochs}, "
            f"not {options.warmup_epochs}"
        )


def check_size(run: Run, stage: str) -> None:
    """Raises ValueError where a stage's batch does not divide over the devices, or is larger than its split."""
    config = run.config[stage]
    check_batch(config, stage, len(run.source(config.train_split)))


def train(
    run: Run,
    stage: StageFolder,
    model: Classifier | AffinityNet | MultiLevelAffinityNet | Segmenter,
    loss: ModelLoss,
    evaluate: Callable[[Any], Mapping[str, float]],
    *,
    seed: int,
    extra: Extra | None = None,
    masks: Masks | None = None,
    rate: Callable[[ParameterPath], float] = lambda path: 1.0,
    patches: tuple[int, int] | None = None,
) -> Any:
    """Trains a model on the `train_split` of its stage; writes and returns the weights of least validation loss.

    Args:
        run: The experiment; the options of the stage are the section of its name.
        stage: The folder, which gets checkpoints, metrics and `model.safetensors`.
        model: Starts from its weights; has `preprocess`.
        loss: See `ModelLoss`.
        evaluate: Model -> scores on the `val_split`, with "loss".
        seed: Decides order and augmentation.
        extra: (image id, whether flipped) -> further arrays of an example.
        masks: Image id -> labels, see `training_loader`.
        rate: Factor of a parameter's learning rate; 0: it stays as it is. Gradients are taken of the others alone, so
            that nothing below them costs a backward.
        patches: See `Augment`.
    """
    config = run.config[stage.folder.name]
    augment = Augment(
        config.flip,
        *config.jitter,
        patches=patches,
        scale=config.get("scale"),
        long_side=tuple(config.get("long_side", ())) or None,
        dropout=config.get("dropout", False),
    )
    graph, *states = nnx.split(model, lambda path, _: rate(path) == 0, ...)
    fixed, params = states
    rates = nnx.map_state(lambda path, leaf: leaf.replace(rate(path)), params)

    params = minimise(
        config,
        params,
        lambda params, batch, axis: loss(nnx.merge(graph, params), batch, axis),
        _batches(run, config, model.preprocess, seed, augment, extra, masks),
        lambda params: evaluate(nnx.merge(graph, params, fixed)),
        len(run.source(config.train_split)) // config.batch_size,
        folder=stage.folder,
        stop=run.stop,
        mode=run.config.parallel,
        frozen=fixed,
        rates=rates if set(jax.tree.leaves(rates)) != {1.0} else None,
    )
    best = nnx.merge(graph, params, fixed)
    if parallel.is_first_process():
        weights.save(best, stage.folder / WEIGHTS)
    return best


def _batches(
    run: Run,
    config: Any,
    preprocess: Preprocess,
    seed: int,
    augment: Augment,
    extra: Extra | None,
    masks: Masks | None,
) -> Callable[[int], Iterator[dict[str, np.ndarray]]]:
    """First step -> this process's batches of a stage from that step on."""
    return lambda start_step: training_loader(
        run.source(config.train_split),
        preprocess=preprocess,
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=seed,
        augment=augment,
        workers=run.config.data.workers,
        start_step=start_step,
        extra=extra,
        masks=masks,
        shard=parallel.process_shard(),
    )


def loss_charts(run: Run, stage: str) -> list[Chart]:
    """The validation loss by epoch as a chart for the report page; none before the second epoch."""
    lines = [line for line in read_metrics(run.workdir.folder / stage) if "epoch" in line]
    if len(lines) < 2:
        return []
    return [
        line_chart(
            {"validation loss": [line["val/loss"] for line in lines]},
            [line["epoch"] for line in lines],
            ("epoch", "loss"),
            f"{stage.capitalize()}: validation loss",
            in_percent=False,
        )
    ]
