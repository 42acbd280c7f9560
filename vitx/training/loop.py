"""The training loop: resumes bit for bit, saves when asked to stop, and refuses NaN."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vitx import parallel
from vitx.runtime.files import WorkdirError
from vitx.runtime.metrics import MetricsWriter
from vitx.runtime.progress import progress
from vitx.runtime.signals import Stopped, StopRequest
from vitx.training.checkpointing import Checkpoints

_AGREE_EVERY = 10  # steps between two exchanges of signals between processes
_IN_FLIGHT = 2  # steps queued on the device: enough to keep it busy, few enough for the memory


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state that a training step updates.

    Attributes:
        params: Pytree of parameters, for example an NNX state.
        opt_state: The optimizer's state.
        step: int32 scalar, the number of steps done.
        average: Moving average of the parameters, of their structure; None if there is none.
    """

    params: Any
    opt_state: Any
    step: jax.Array
    average: Any = None

    @classmethod
    def create(
        cls, params: Any, optimizer: optax.GradientTransformation, averaged: bool = False
    ) -> "TrainState":
        """The state before the first step, if `averaged` with an average, which starts at the parameters."""
        # A copy: a step that reuses the state's memory cannot take one array twice.
        average = jax.tree.map(jnp.copy, params) if averaged else None
        return cls(params, optimizer.init(params), jnp.zeros((), jnp.int32), average)

    @property
    def weights(self) -> Any:
        """The parameters to validate and to keep: their average, if there is one."""
        return self.params if self.average is None else self.average


def fit(
    step_fn: Callable[[Any, Any], tuple[Any, Mapping[str, jax.Array]]],
    state: Any,
    batches: Callable[[int], Iterator[Any]],
    evaluate: Callable[[Any], Mapping[str, float]],
    *,
    folder: Path,
    steps: int,
    steps_per_epoch: int,
    stop: StopRequest,
    log_every: int = 50,
    save_every_seconds: float = 60.0,
) -> Any:
    """Trains from the newest checkpoint in a folder to `steps`, and returns the state of least validation loss.

    Interrupted anywhere and started again, it ends with the same bits and the same metrics as without
    the interruption: a step depends on the state and on `batches` alone.

    Args:
        step_fn: Jitted, (state, batch) -> (state, scalar metrics); may donate the state.
        state: The first state, for example a `TrainState`; also the checkpoints' template.
        batches: The first step's number -> iterator of batches from that step on.
        evaluate: State -> scores, among them "loss".
        folder: Gets `checkpoints/` and `metrics.jsonl`; an absolute path, whose name is the stage's
            name in progress and errors.
        steps: Steps in all.
        steps_per_epoch: After so many, and at the end, the state is evaluated and saved.
        stop: When it is requested, the step is finished, the state saved, and Stopped raised.
        log_every: Steps between two lines of metrics, which are means over the steps.
        save_every_seconds: The work that a kill can cost, give or take a step.

    Raises:
        FloatingPointError: A metric, a score or the state is not finite. It is not saved.
        Stopped: `stop` was requested.
        ValueError: `batches` ended early.
    """
    stage = folder.name
    with Checkpoints(folder / "checkpoints") as checkpoints:
        restored = checkpoints.restore_latest(state)
        state, start = restored.state, restored.step or 0
        source = batches(start) if start < steps else iter(())
        with (
            MetricsWriter(folder, start) as metrics,
            progress(steps, stage, start=start, item="step", compiles=True) as bar,
        ):
            log = _Log(metrics, stage, restored.extra.get("window", []))
            saver = _Saver(checkpoints, log, stop, save_every_seconds)
            for step, batch in zip(range(start + 1, steps + 1), source, strict=False):
                state, scalars = step_fn(state, batch)
                log.add(step, scalars)
                epoch_ends = step % steps_per_epoch == 0 or step == steps
                line_ends = epoch_ends or step % log_every == 0
                bar.advance(**(log.write(step) if line_ends else {}))
                epoch = math.ceil(step / steps_per_epoch)
                scores = log.validate(step, epoch, evaluate(state)) if epoch_ends else None
                saver.save_or_stop(step, state, scores, last=step == steps)
        return _best_state(checkpoints, state, stage, steps)


def _best_state(checkpoints: Checkpoints, template: Any, stage: str, steps: int) -> Any:
    if not checkpoints.steps or checkpoints.steps[-1] < steps:
        raise ValueError(f"{stage}: the batches ended before step {steps}")
    best = checkpoints.restore_best(template)
    if best.step is None:
        raise WorkdirError(
            f"{stage}: no checkpoint in {checkpoints.folder} has a validation loss: delete that folder "
            "to train this stage from the start"
        )
    return best.state


class _Saver:
    """Saves and stops after the same steps in all processes."""

    def __init__(
        self, checkpoints: Checkpoints, log: "_Log", stop: StopRequest, every_seconds: float
    ):
        self._checkpoints, self._log, self._stop = checkpoints, log, stop
        self._every_seconds = every_seconds
        self._saved = time.monotonic()

    def save_or_stop(
        self, step: int, state: Any, scores: Mapping[str, float] | None, *, last: bool
    ) -> None:
        """Saves after an epoch, which has scores, before a stop, and after some time; raises Stopped."""
        due = time.monotonic() - self._saved > self._every_seconds
        # Read once: a signal that comes after the state was saved must not stop the run here.
        exchange = scores is not None or step % _AGREE_EVERY == 0
        signal, due = _agreed(self._stop.signal, due, exchange)
        if scores is not None or signal or due:
            self._log.check()
            _require_finite(self._log.stage, step, state)
            self._checkpoints.save(step, state, scores, {"window": self._log.window})
            self._saved = time.monotonic()
        if signal and not last:
            raise Stopped(signal)


def _agreed(signal: int, due: bool, exchange: bool) -> tuple[int, bool]:
    """The signal that any process got, and whether any is due to save, known where all `exchange` theirs."""
    if parallel.process_shard()[1] == 1:
        return signal, due
    if not exchange:
        return 0, False
    greatest, any_due = parallel.max_over_processes(signal, due)
    return int(greatest), bool(any_due)


class _Log:
    """Metrics of the steps since the last line, fetched from the device together."""

    def __init__(self, metrics: MetricsWriter, stage: str, window: list[dict[str, float]]):
        self.window = window  # fetched and checked, not yet written
        self.stage = stage
        self._metrics = metrics
        self._pending: list[tuple[int, Mapping[str, jax.Array]]] = []

    def add(self, step: int, scalars: Mapping[str, jax.Array]) -> None:
        """Notes a step's metrics, and waits for an earlier step so that few are queued."""
        self._pending.append((step, scalars))
        if len(self._pending) > _IN_FLIGHT:
            jax.block_until_ready(self._pending[-1 - _IN_FLIGHT][1])

    def check(self) -> None:
        """Fetches what is pending, and raises FloatingPointError at the first bad number."""
        for step, scalars in jax.device_get(self._pending):
            self.window.append(_finite(self.stage, step, scalars))
        self._pending = []

    def write(self, step: int) -> dict[str, float]:
        """Checks, writes the window's means as one line and returns them."""
        self.check()
        means = {k: float(np.mean([line[k] for line in self.window])) for k in self.window[0]}
        self._metrics.write(step, {f"train/{name}": value for name, value in means.items()})
        self.window = []
        return means

    def validate(self, step: int, epoch: int, scores: Mapping[str, float]) -> dict[str, float]:
        """Checks and writes an epoch's scores, and returns them."""
        numbers = _finite(self.stage, step, scores)
        self._metrics.write(step, {"epoch": epoch} | {f"val/{k}": v for k, v in numbers.items()})
        return numbers


def _finite(stage: str, step: int, values: Mapping[str, Any]) -> dict[str, float]:
    numbers = {name: float(value) for name, value in values.items()}
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise _not_finite(stage, step, f"{name!r} is {number}")
    return numbers


def _require_finite(stage: str, step: int, state: Any) -> None:
    """A finite loss may still have had gradients that are not."""
    finites = jax.device_get(_all_finite(state))
    for path, finite in jax.tree_util.tree_leaves_with_path(finites):
        if not finite:
            raise _not_finite(stage, step, f"{jax.tree_util.keystr(path)} is not finite")


@jax.jit
def _all_finite(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), tree)


def _not_finite(stage: str, step: int, what: str) -> FloatingPointError:
    return FloatingPointError(
        f"{stage}: {what} at step {step}; nothing was saved since the last good checkpoint. "
        "Lower the learning rate, or look at the data"
    )
