"""The training loop: resumes bit for bit, saves when asked to stop, and refuses NaN."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

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

_AGREE_EVERY = 10  # steps between two looks at what the other processes were told
_IN_FLIGHT = 2  # steps queued on the device: enough to keep it busy, few enough for the memory


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a training step maps to its successor.

    Attributes:
        params: Pytree of parameters, for example an NNX state.
        opt_state: The optimizer's state.
        step: int32 scalar: the steps done.
    """

    params: Any
    opt_state: Any
    step: jax.Array

    @classmethod
    def create(cls, params: Any, optimizer: optax.GradientTransformation) -> "TrainState":
        """The state before the first step."""
        return cls(params, optimizer.init(params), jnp.zeros((), jnp.int32))


class Fit(NamedTuple):
    """What `fit` leaves.

    Attributes:
        state: The best state.
        step: Its step.
    """

    state: Any
    step: int


def fit(
    step_fn: Callable[[Any, Any], tuple[Any, Mapping[str, jax.Array]]],
    state: Any,
    batches: Callable[[int], Iterator[Any]],
    *,
    steps: int,
    steps_per_epoch: int,
    evaluate: Callable[[Any], Mapping[str, float]],
    checkpoints: Checkpoints,
    metrics: MetricsWriter,
    stop: StopRequest,
    description: str,
    log_every: int = 50,
    save_every_seconds: float = 60.0,
) -> Fit:
    """Trains from the newest checkpoint to `steps`, and returns the best state.

    Interrupted anywhere and called again, it ends with the same bits and the same metrics as if
    it had not been: a step depends on the state and on `batches` alone.

    Args:
        step_fn: Jitted, (state, batch) -> (state, scalar metrics); may donate the state.
        state: The first state, for example a `TrainState`; also the checkpoints' template.
        batches: The first step's number -> iterator of batches from that step on.
        steps: Steps in all.
        steps_per_epoch: After so many, and at the end, the state is evaluated and saved.
        evaluate: State -> scores, among them the one that ranks the checkpoints.
        checkpoints: Where to resume from and save to.
        metrics: Gets lines `train/<name>`, means over `log_every` steps or the rest of an epoch,
            and `epoch` with `val/<name>` after each.
        stop: When it is requested, the step is finished, the state saved, and Stopped raised.
        description: The stage's name, for progress and errors.
        log_every: Steps between two looks at the device's metrics.
        save_every_seconds: Most seconds of work that a kill can cost, one step apart.

    Raises:
        FloatingPointError: A metric, a score or the state is not finite. It is not saved.
        Stopped: `stop` was requested.
        ValueError: `batches` ended early.
    """
    restored = checkpoints.restore_latest(state)
    state, start = restored.state, restored.step or 0
    metrics.rewind(start)
    log = _Log(metrics, description, restored.extra.get("window", []))
    saved = time.monotonic()
    source = batches(start) if start < steps else iter(())
    with progress(steps, description, start=start) as bar:
        for step, batch in zip(range(start + 1, steps + 1), source, strict=False):
            state, scalars = step_fn(state, batch)
            log.add(step, scalars)
            epoch_ends = step % steps_per_epoch == 0 or step == steps
            line_ends = epoch_ends or step % log_every == 0
            bar.advance(**(log.write(step) if line_ends else {}))
            scores = None
            if epoch_ends:
                scores = _finite(description, step, evaluate(state))
                epoch = math.ceil(step / steps_per_epoch)
                metrics.write(step, {"epoch": epoch} | {f"val/{k}": v for k, v in scores.items()})
            # Read once: what is not saved now must not stop below. All processes save, and stop, at one step.
            due = time.monotonic() - saved > save_every_seconds
            signal, due = _agreed(stop.signal, due, epoch_ends or step % _AGREE_EVERY == 0)
            if epoch_ends or signal or due:
                log.check()
                _require_finite(description, step, state)
                checkpoints.save(step, state, scores, {"window": log.window})
                saved = time.monotonic()
            if signal and step < steps:
                raise Stopped(signal)
    if not checkpoints.steps or checkpoints.steps[-1] < steps:
        raise ValueError(f"{description}: the batches ended before step {steps}")
    best = checkpoints.restore_best(state)
    if best.step is None:
        raise WorkdirError(
            f"{description}: no checkpoint in {checkpoints.folder} tells its validation loss: delete that folder "
            "to begin this stage anew"
        )
    return Fit(best.state, best.step)


def _agreed(signal: int, due: bool, look: bool) -> tuple[int, bool]:
    """A signal that any process got, and whether any holds that it is time to save; asked where `look` says so."""
    if jax.process_count() == 1:
        return signal, due
    if not look:
        return 0, False
    greatest, any_due = parallel.max_over_processes(signal, due)
    return int(greatest), bool(any_due)


class _Log:
    """Metrics of the steps since the last line, fetched from the device together."""

    def __init__(self, metrics: MetricsWriter, description: str, window: list[dict[str, float]]):
        self.window = window  # fetched and checked, not yet written
        self._metrics, self._description = metrics, description
        self._pending: list[tuple[int, Mapping[str, jax.Array]]] = []

    def add(self, step: int, scalars: Mapping[str, jax.Array]) -> None:
        """Notes a step's metrics, and waits for an earlier step so that few are queued."""
        self._pending.append((step, scalars))
        if len(self._pending) > _IN_FLIGHT:
            jax.block_until_ready(self._pending[-1 - _IN_FLIGHT][1])

    def check(self) -> None:
        """Fetches what is pending, and raises FloatingPointError at the first bad number."""
        for step, scalars in jax.device_get(self._pending):
            self.window.append(_finite(self._description, step, scalars))
        self._pending = []

    def write(self, step: int) -> dict[str, float]:
        """Checks, writes the window's means as one line and returns them."""
        self.check()
        means = {k: float(np.mean([line[k] for line in self.window])) for k in self.window[0]}
        self._metrics.write(step, {f"train/{name}": value for name, value in means.items()})
        self.window = []
        return means


def _finite(description: str, step: int, values: Mapping[str, Any]) -> dict[str, float]:
    numbers = {name: float(value) for name, value in values.items()}
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise _not_finite(description, step, f"{name!r} is {number}")
    return numbers


def _require_finite(description: str, step: int, state: Any) -> None:
    """A finite loss may still have had gradients that are not: look before saving."""
    paths_and_leaves = jax.tree_util.tree_leaves_with_path(state)
    finites = jax.device_get(_all_finite(state))
    for (path, _), finite in zip(paths_and_leaves, finites, strict=True):
        if not finite:
            raise _not_finite(description, step, f"{jax.tree_util.keystr(path)} is not finite")


@jax.jit
def _all_finite(tree: Any) -> list[jax.Array]:
    return [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]


def _not_finite(description: str, step: int, what: str) -> FloatingPointError:
    return FloatingPointError(
        f"{description}: {what} at step {step}; nothing was saved since the last good checkpoint. "
        "Lower the learning rate, or look at the data"
    )
