"""Several processes, on one host or more: their start, each one's share of the work, and sums over all.

With one process a share is all of the work and a sum is the process's own value.
"""

import functools
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

Item = TypeVar("Item")


def initialize(
    coordinator: str | None = None, count: int | None = None, index: int | None = None
) -> None:
    """Connects this process to the others; call it before anything else asks JAX for devices.

    Args:
        coordinator: "host:port" of process 0, the same for all. Without the three arguments JAX asks the cluster
            (Cloud TPU, GKE, SLURM, Open MPI).
        count: Number of processes.
        index: Number of this process, from 0.

    Raises:
        ValueError: Only some are given, or the index is out of range.
        RuntimeError: The others cannot be reached.
    """
    given = [value is not None for value in (coordinator, count, index)]
    if any(given) and not all(given):
        raise ValueError(
            "--coordinator_address, --num_processes and --process_id belong together: give all three, or "
            "--multihost alone where the cluster knows them"
        )
    if index is not None and count is not None and not 0 <= index < count:
        raise ValueError(f"--process_id {index} must be in [0, {count}), as of --num_processes")
    # JAX's handler of SIGTERM would replace ours, which stops where all is saved.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(coordinator, count, index)


def is_first_process() -> bool:
    """Whether this is process 0, which alone writes files that all share."""
    return jax.process_index() == 0


def process_shard() -> tuple[int, int]:
    """This process's number, from 0, and the number of processes."""
    return jax.process_index(), jax.process_count()


def share(items: Sequence[Item]) -> list[Item]:
    """This process's items: every n-th of n processes, so that each item belongs to exactly one."""
    return list(items[jax.process_index() :: jax.process_count()])


def gather_shares(rows: Any, length: int) -> Any:
    """Undoes `share`: from each process's rows of arrays (n, ...) to all rows (length, ...), in the items' order."""
    most = -(-length // jax.process_count())

    def padded(array: np.ndarray) -> np.ndarray:
        return np.pad(array, ((0, most - len(array)), *((0, 0),) * (array.ndim - 1)))

    def merged(parts: np.ndarray) -> np.ndarray:  # (processes, most, ...)
        return parts.swapaxes(0, 1).reshape(-1, *parts.shape[2:])[:length]

    return jax.tree.map(merged, _gather(jax.tree.map(padded, rows)))


def sum_over_processes(tree: Any) -> Any:
    """The sum over all processes of a pytree of host arrays; shapes and types must be the same in all."""
    return jax.tree.map(lambda parts: functools.reduce(np.add, parts), _gather(tree))


def max_over_processes(*values: float) -> tuple[float, ...]:
    """The largest of each number over all processes, so that all take the same decision."""
    return tuple(_gather(np.array(values, np.float64)).max(axis=0).tolist())


def barrier() -> None:
    """Waits until all processes are here."""
    multihost_utils.sync_global_devices("vitx")


def _gather(tree: Any) -> Any:
    """A pytree of host arrays (...) of every process: (processes, ...)."""

    def gather(leaf: Any) -> np.ndarray:
        array = np.asarray(leaf)
        # Bytes travel: without 64-bit mode JAX would cut float64 and int64 in half.
        sent = np.frombuffer(array.tobytes(), np.uint8)
        received = multihost_utils.process_allgather(sent)  # (processes, bytes)
        return received.view(array.dtype).reshape(len(received), *array.shape)

    return jax.tree.map(gather, tree)
