"""What the two training stages share: options, augmentation, loss curves."""

from typing import Any

from vitx.data.loader import Augment
from vitx.report.charts import Chart, line_chart
from vitx.runtime.experiment import Run
from vitx.runtime.metrics import read_metrics
from vitx.runtime.options import POSITIVE, Wanted, among, number, whole
from vitx.training.optimizer import COMPUTE, OPTIMIZERS, check_batch


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
        "compute": among(COMPUTE),
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


def augmentation(config: Any) -> Augment:
    """The augmentation that the options of a training stage name."""
    brightness, contrast, saturation, hue = config.jitter
    return Augment(
        flip=config.flip, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue
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
