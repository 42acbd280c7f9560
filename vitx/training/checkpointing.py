"""Checkpoints of a training run with Orbax: the newest ones, the best one, and damage survived.

Leaves are stored as host arrays under their paths in the pytree, so that a checkpoint depends
neither on the containers (named tuples, NNX states) nor on the devices it was written from.
"""

import contextlib
import math
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from absl import logging
from orbax.checkpoint import v1 as ocp

from vitx import parallel
from vitx.runtime.files import WorkdirError, first_line, write_error
from vitx.runtime.paths import absolute, make_folder

# What reading raises where files are missing, cut or changed; anything else is the system's, and may pass.
_LOST = (
    ValueError,
    LookupError,
    TypeError,
    EOFError,
    FileNotFoundError,
    NotADirectoryError,
    IsADirectoryError,
)
# TensorStore's ValueErrors for what has nothing to do with the content.
_UNREACHABLE = re.compile("UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|UNAUTHENTICATED|ABORTED")


class _Damaged(Exception):
    """A checkpoint does not hold what was saved."""


class Restored(NamedTuple):
    """What a checkpoint gave back.

    Attributes:
        step: Its step; None if there was no checkpoint, and then `state` is the template.
        state: A pytree like the template.
        metrics: The metrics it was saved with; {} if it was saved without.
        extra: The JSON values it was saved with.
    """

    step: int | None
    state: Any
    metrics: dict[str, float]
    extra: dict[str, Any]


class Checkpoints:
    """The checkpoints in one folder: the newest `keep`, and the best.

    Use as a context, or call `close`.

    Args:
        folder: Made when it is missing; what a killed run left half-written in it is removed.
        keep: How many of the newest to keep.
        best: The metric that ranks checkpoints; those saved without metrics are not ranked.
        mode: Whether a small or a large value is good.
    """

    def __init__(
        self, folder: Path, keep: int = 2, best: str = "loss", mode: Literal["min", "max"] = "min"
    ):
        self.folder = absolute(folder)
        self.best = best
        self._sign = 1.0 if mode == "min" else -1.0
        self._keep = keep
        self._failed = False
        self._ranks: dict[int, float] = {}  # of the steps saved with metrics: smaller is better
        try:
            make_folder(self.folder)
            # Orbax's own BestN stops at a damaged metrics file: metrics are kept and ranked here.
            self._checkpointer = ocp.training.Checkpointer(
                self.folder, preservation_policy=self, cleanup_tmp_directories=True
            )
        except OSError as error:
            raise write_error(self.folder, error) from error
        for step in self.steps:
            with contextlib.suppress(_Damaged):  # the restore that meets it tells
                self._rank(step, self._reading(step, lambda step: self._metadata(step)["metrics"]))

    def _rank(self, step: int, metrics: Mapping[str, float]) -> None:
        if metrics:
            self._ranks[step] = self._sign * metrics[self.best]

    def _by_rank(self) -> list[int]:
        ranked = [step for step in self.steps if step in self._ranks]
        return sorted(ranked, key=lambda step: (self._ranks[step], -step))

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Orbax's question which checkpoints to keep after a save."""
        kept = {*self.steps[-self._keep :], *self._by_rank()[:1]}
        return [checkpoint.step in kept for checkpoint in checkpoints]

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends Orbax's background threads."""
        try:
            with _quiet():
                self._checkpointer.close()
        except Exception:
            if not self._failed:  # a failed save's error, which was raised before, comes again
                raise

    @property
    def steps(self) -> list[int]:
        """Steps of the checkpoints on disk, ascending."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def save(
        self,
        step: int,
        state: Any,
        metrics: Mapping[str, float] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Saves a pytree of arrays, and returns when it is on disk.

        Checkpoints of this and later steps are removed first: they are damaged ones, or of a
        course that training has been taken back from.

        Args:
            step: Number of training steps that led to `state`.
            state: The pytree; None and empty containers are kept by its structure alone.
            metrics: Ranks the checkpoint; must hold the metric called `best`.
            extra: JSON values to keep beside it.

        Raises:
            ValueError: `metrics` has no finite number for `best`.
            WriteError: The disk is full, or read-only.
        """
        if metrics is not None and not math.isfinite(metrics.get(self.best, math.nan)):
            raise ValueError(f"metrics have no finite {self.best!r} to rank by: {dict(metrics)}")
        arrays = _flatten(jax.device_get(state))
        numbers = {name: float(value) for name, value in (metrics or {}).items()}
        try:
            for later in [s for s in self.steps if s >= step]:
                self._checkpointer.delete(later)
                self._ranks.pop(later, None)
            self._rank(step, numbers)
            kept = {"crc32": _checksum(arrays), "metrics": numbers, "extra": dict(extra or {})}
            with _quiet(), _abandoned_work_is_quiet():
                self._checkpointer.save(step, arrays, custom_metadata=kept, force=True)
        except jax.errors.JaxRuntimeError:  # another process is gone
            self._failed = True
            raise
        except Exception as error:
            self._failed = True
            raise write_error(self.folder / str(step), _system_error(error)) from error

    def restore_latest(self, template: Any) -> Restored:
        """The newest checkpoint that can be read, else older ones.

        Args:
            template: A pytree with the structure, shapes and types of what was saved; restored
                leaves take the kind (NumPy or JAX) and the sharding of its leaves.

        Several processes take the same one.

        Raises:
            ValueError: A checkpoint is whole but holds other arrays than the template.
            WorkdirError: There are checkpoints, and all are damaged; or one cannot be read for now.
        """
        return self._restore(template, sorted(self.steps, reverse=True))

    def restore_best(self, template: Any) -> Restored:
        """The best checkpoint that can be read, else the next best, see `restore_latest`."""
        return self._restore(template, self._by_rank())

    def _restore(self, template: Any, steps: list[int]) -> Restored:
        for step in (*steps, None):
            found = None
            if step is not None:
                try:
                    found = self._reading(step, self._read)
                except _Damaged as error:
                    logging.warning("%s; trying the one before", error)
            number = -1 if step is None else step
            highest, lowest, failed = parallel.max_over_processes(number, -number, found is None)
            if highest != -lowest:
                raise WorkdirError(
                    f"the processes see different checkpoints in {self.folder}: start again"
                )
            if step is not None and found is not None and not failed:
                arrays, metrics, extra = found
                self._require_same(template, arrays, step)
                return Restored(step, _unflatten(template, arrays), metrics, extra)
        if steps:
            raise WorkdirError(
                f"all checkpoints in {self.folder} are damaged: delete that folder to begin this "
                "stage anew"
            )
        return Restored(None, template, {}, {})

    def _reading(self, step: int, read: Callable[[int], Any]) -> Any:
        """`read(step)`.

        Raises:
            _Damaged: What is on disk is not what was saved.
            WorkdirError: It cannot be read for now. To go back in training would be wrong.
        """
        try:
            with _quiet(), _abandoned_work_is_quiet():
                return read(step)
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:
            cause, where = _system_error(error), f"checkpoint {self.folder / str(step)}"
            reason = first_line(_first_of(cause))[:200]
            if isinstance(cause, _LOST) and not _UNREACHABLE.search(str(error)):
                raise _Damaged(f"{where} is damaged: {reason}") from error
            raise WorkdirError(
                f"{where} cannot be read ({reason}); nothing is lost: mend that and start again"
            ) from error

    def _metadata(self, step: int) -> dict[str, Any]:
        return self._checkpointer.metadata(step).custom_metadata or {}

    def _read(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, float], dict[str, Any]]:
        kept = self._metadata(step)
        arrays = {name: np.asarray(value) for name, value in self._checkpointer.load(step).items()}
        if _checksum(arrays) != kept.get("crc32"):
            raise ValueError("its checksum is missing or differs")
        return arrays, kept["metrics"], kept["extra"]

    def _require_same(self, template: Any, arrays: Mapping[str, np.ndarray], step: int) -> None:
        def lines(leaves: Mapping[str, Any]) -> set[str]:
            return {f"{k} {np.dtype(v.dtype)}{list(v.shape)}" for k, v in leaves.items()}

        wanted, found = lines(_flatten(template)), lines(arrays)
        if wanted != found:
            differences = [f"+ {line}" for line in found - wanted]
            differences += [f"- {line}" for line in wanted - found]
            differences.sort(key=lambda line: line[2:])
            more = "" if len(differences) <= 8 else f"; {len(differences) - 8} more"
            raise ValueError(
                f"checkpoint {self.folder / str(step)} does not fit this model and optimizer "
                f"(+ in the file, - in the model): {'; '.join(differences[:8])}{more}"
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences Orbax, which logs hundreds of lines about an error before it raises it."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextlib.contextmanager
def _abandoned_work_is_quiet() -> Iterator[None]:
    """Where a read or write fails, silences those begun beside it: each reports to a loop that is gone."""
    before = sys.unraisablehook

    def report(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = report
    yield
    sys.unraisablehook = before  # not after an error: they end later


def _system_error(error: Exception) -> Exception:
    """The system's own words, which TensorStore hides in a long message."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return OSError(int(code[1]), os.strerror(int(code[1]))) if code else error


def _first_of(error: Exception) -> Exception:
    """The error that led to this one."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _flatten(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
    if len(named) < len(leaves):
        raise ValueError("two leaves of the state have the same path; rename one")
    return {name: x if hasattr(x, "dtype") else np.asarray(x) for name, x in named.items()}


def _unflatten(template: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    def place(path: Any, leaf: Any) -> Any:
        value = arrays[jax.tree_util.keystr(path, simple=True, separator=".")]
        if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
            # A leaf that is free to move must stay so: committed ones cannot meet a mesh.
            sharding = leaf.sharding if getattr(leaf, "committed", True) else None
            return jax.device_put(value, sharding, may_alias=False)
        return value

    return jax.tree_util.tree_map_with_path(place, template)


def _checksum(arrays: Mapping[str, np.ndarray]) -> int:
    total = 0
    for name, array in sorted(arrays.items()):
        total = zlib.crc32(np.ascontiguousarray(array).tobytes(), zlib.crc32(name.encode(), total))
    return total
