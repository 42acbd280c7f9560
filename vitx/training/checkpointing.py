"""Checkpoints of training with Orbax: the newest, the best, and older ones where those are damaged.

Leaves are stored as host arrays under their paths in the pytree, so that a checkpoint depends neither on the
containers (named tuples, NNX states) nor on the devices it was written from.
"""

import contextlib
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from orbax.checkpoint import v1 as ocp

from vitx import parallel
from vitx.runtime.files import WorkdirError, first_line, write_error
from vitx.runtime.paths import is_remote

# Raised where files are missing, cut or changed; other errors are the system's, and may pass.
_DAMAGE = (
    ValueError,
    LookupError,
    TypeError,
    EOFError,
    FileNotFoundError,
    NotADirectoryError,
    IsADirectoryError,
)
# TensorStore raises ValueError for these too; they are no damage to the files.
_UNREACHABLE = re.compile("UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|UNAUTHENTICATED|ABORTED")


class _Damaged(Exception):
    """A checkpoint does not hold what was saved."""


class Restored(NamedTuple):
    """A restored checkpoint."""

    step: int | None  # None if there was no checkpoint, and then `state` is the template
    state: Any  # a pytree like the template
    extra: dict[str, Any]  # the JSON values it was saved with


class Checkpoints(contextlib.AbstractContextManager):
    """The checkpoints in one folder: the newest `keep`, and the one of least validation loss.

    Args:
        folder: An absolute path, created if missing; what a killed run left half-written in it is removed.
        keep: How many of the newest to keep.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder = folder
        self._failed = False
        self._losses: dict[int, float] = {}  # of the steps that were saved with one
        policies = ocp.training.preservation_policies
        kept = policies.AnyPreservationPolicy([policies.LatestN(keep), self])
        try:
            if not is_remote(folder):
                folder.mkdir(parents=True, exist_ok=True)
            self._checkpointer = ocp.training.Checkpointer(
                folder, preservation_policy=kept, cleanup_tmp_directories=True
            )
        except OSError as error:
            raise write_error(folder, error) from error
        for step in self.steps:
            with contextlib.suppress(_Damaged):  # restoring it warns
                metrics = self._reading(step, lambda step: self._metadata(step)["metrics"])
                if metrics:
                    self._losses[step] = metrics["loss"]

    def __exit__(self, *_: object) -> None:
        """Ends Orbax's background threads."""
        try:
            with _quiet():
                self._checkpointer.close()
        except Exception:
            if not self._failed:  # Orbax raises the error of a failed save a second time
                raise

    @property
    def steps(self) -> list[int]:
        """Steps of the checkpoints on disk, ascending."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def _steps_by_loss(self) -> list[int]:
        """Steps of the checkpoints that were saved with a loss, best first; of equal ones the newer first."""
        ranked = [step for step in self.steps if step in self._losses]
        return sorted(ranked, key=lambda step: (self._losses[step], -step))

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Keeps the best, as a policy of Orbax, whose own BestN stops at a damaged file of metrics."""
        best = self._steps_by_loss()[:1]
        return [checkpoint.step in best for checkpoint in checkpoints]

    def save(
        self,
        step: int,
        state: Any,
        metrics: Mapping[str, float] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Saves a pytree of arrays, and returns when it is on disk.

        Removes checkpoints of this and later steps first: they are damaged, or training went back behind them.

        Args:
            step: Number of training steps that led to `state`.
            state: The pytree; None and empty containers are kept by its structure alone.
            metrics: Finite numbers; their "loss" ranks the checkpoint.
            extra: JSON values to keep beside it.

        Raises:
            WriteError: The disk is full, or read-only.
        """
        arrays = _flatten(jax.device_get(state))
        numbers = {name: float(value) for name, value in (metrics or {}).items()}
        kept = {"crc32": _checksum(arrays), "metrics": numbers, "extra": dict(extra or {})}
        try:
            for later in [s for s in self.steps if s >= step]:
                self._checkpointer.delete(later)
                self._losses.pop(later, None)
            if numbers:
                self._losses[step] = numbers["loss"]
            with _quiet():
                self._checkpointer.save(step, arrays, custom_metadata=kept, force=True)
        except Exception as error:
            self._failed = True
            if isinstance(error, jax.errors.JaxRuntimeError):  # another process has ended
                raise
            raise write_error(self.folder / str(step), _system_error(error)) from error

    def restore_latest(self, template: Any) -> Restored:
        """The newest checkpoint that can be read, else older ones; the same one in all processes.

        Args:
            template: A pytree with the structure, shapes and types of what was saved; restored leaves take the kind
                (NumPy or JAX) and the sharding of its leaves.

        Raises:
            ValueError: A checkpoint is whole but holds other arrays than the template.
            WorkdirError: All checkpoints are damaged; or one cannot be read for now.
        """
        return self._restore(template, self.steps[::-1])

    def restore_best(self, template: Any) -> Restored:
        """The best checkpoint that can be read, else the next best, see `restore_latest`."""
        return self._restore(template, self._steps_by_loss())

    def _restore(self, template: Any, steps: list[int]) -> Restored:
        listed = zlib.crc32(repr(steps).encode())
        highest, lowest = parallel.max_over_processes(listed, -listed)
        if highest != -lowest:
            raise WorkdirError(
                f"the processes see different checkpoints in {self.folder}: start again"
            )
        for step in steps:
            found = None
            try:
                found = self._reading(step, self._read)
            except _Damaged as error:
                logging.warning("%s; trying the one before", error)
            (damaged,) = parallel.max_over_processes(found is None)  # as any process sees it
            if found is not None and not damaged:
                arrays, extra = found
                _require_same(template, arrays, self.folder / str(step))
                return Restored(step, _unflatten(template, arrays), extra)
        if steps:
            raise WorkdirError(
                f"all checkpoints in {self.folder} are damaged: delete that folder to train this "
                "stage from the start"
            )
        return Restored(None, template, {})

    def _reading(self, step: int, read: Callable[[int], Any]) -> Any:
        """`read(step)`.

        Raises:
            _Damaged: The files do not hold what was saved.
            WorkdirError: They cannot be read for now: an older checkpoint would lose training.
        """
        try:
            with _quiet():
                return read(step)
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:
            cause, where = _system_error(error), f"checkpoint {self.folder / str(step)}"
            reason = first_line(_first_of(cause))[:200]
            if isinstance(cause, _DAMAGE) and not _UNREACHABLE.search(str(error)):
                raise _Damaged(f"{where} is damaged: {reason}") from error
            raise WorkdirError(
                f"{where} cannot be read ({reason}); nothing is lost: fix that and start again"
            ) from error

    def _metadata(self, step: int) -> dict[str, Any]:
        return self._checkpointer.metadata(step).custom_metadata or {}

    def _read(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        kept = self._metadata(step)
        arrays = {name: np.asarray(value) for name, value in self._checkpointer.load(step).items()}
        if _checksum(arrays) != kept.get("crc32"):
            raise ValueError("its checksum is missing or differs")
        return arrays, kept["extra"]


def _require_same(template: Any, arrays: Mapping[str, np.ndarray], path: Path) -> None:
    def lines(leaves: Mapping[str, Any]) -> set[str]:
        return {f"{k} {np.dtype(v.dtype)}{list(v.shape)}" for k, v in leaves.items()}

    wanted, found = lines(_flatten(template)), lines(arrays)
    if wanted != found:
        differences = [f"+ {line}" for line in found - wanted]
        differences += [f"- {line}" for line in wanted - found]
        differences.sort(key=lambda line: line[2:])
        more = "" if len(differences) <= 8 else f"; {len(differences) - 8} more"
        raise ValueError(
            f"checkpoint {path} does not fit this model and optimizer "
            f"(+ in the file, - in the model): {'; '.join(differences[:8])}{more}"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences Orbax, which logs hundreds of lines before it raises an error.

    Reads and writes that it abandons then each report to an event loop that is closed.
    """
    verbosity, hook = logging.get_verbosity(), sys.unraisablehook

    def report(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = report
    try:
        yield
        sys.unraisablehook = hook  # not after an error: what is abandoned ends later
    finally:
        logging.set_verbosity(verbosity)


def _system_error(error: Exception) -> Exception:
    """The system's error, whose number TensorStore puts into a long message; other errors as they are."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return OSError(int(code[1]), os.strerror(int(code[1]))) if code else error


def _first_of(error: Exception) -> Exception:
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _named(tree: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="."), leaf


def _flatten(tree: Any) -> dict[str, Any]:
    return {name: x if hasattr(x, "dtype") else np.asarray(x) for name, x in _named(tree)}


def _unflatten(template: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    def place(value: np.ndarray, leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
            return value
        # A leaf that is free to move must stay so: committed ones cannot meet a mesh.
        sharding = leaf.sharding if getattr(leaf, "committed", True) else None
        return jax.device_put(value, sharding, may_alias=False)

    leaves = [place(arrays[name], leaf) for name, leaf in _named(template)]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _checksum(arrays: Mapping[str, np.ndarray]) -> int:
    total = 0
    for name, array in sorted(arrays.items()):
        total = zlib.crc32(np.ascontiguousarray(array).tobytes(), zlib.crc32(name.encode(), total))
    return total
