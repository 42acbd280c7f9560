"""Several processes, one a host or more: their start, whose work is whose, and what they tell each other.

Training is one program over all devices. Everything else is each process's own: its share of the images on its own
devices. With one process every function here returns what it was given.
"""

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

Item = TypeVar("Item")


def start(
    coordinator: str | None = None, count: int | None = None, index: int | None = None
) -> None:
    """Joins this process to the others; call it before anything else asks JAX for devices.

    Args:
      coordinator: "host:port" of process 0, the same for all. With none of the three given JAX asks the cluster
        (Cloud TPU, GKE, SLURM, Open MPI).
      count: number of processes.
      index: of this process.

    Raises:
      ValueError: where only some are given, or they do not fit.
      RuntimeError: where the others cannot be reached.
    """
    told = [value is not None for value in (coordinator, count, index)]
    if any(told) and not all(told):
        raise ValueError(
            "--coordinator_address, --num_processes and --process_id belong together: give all three, or "
            "--multihost alone where the cluster knows"
        )
    if index is not None and count is not None and not 0 <= index < count:
        raise ValueError(f"--process_id {index} must be in [0, {count}), as of --num_processes")
    # Its own handler of SIGTERM would take the place of ours, which stops where all is saved.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(coordinator, count, index)


def count() -> int:
    """Number of processes of this run."""
    return jax.process_count()


def is_first() -> bool:
    """Whether this is process 0, which alone writes what all share."""
    return jax.process_index() == 0


def shard() -> tuple[int, int]:
    """This process's number, and how many there are."""
    return jax.process_index(), jax.process_count()


def share(items: Sequence[Item]) -> list[Item]:
    """This process's items: every n-th, so that each item is of exactly one process."""
    return list(items[jax.process_index() :: jax.process_count()])


def gather(tree: Any) -> list[Any]:
    """A pytree of host arrays as every process has it, in their order; shapes and types must be the same.

    The arrays travel as bytes: without 64-bit mode JAX would cut float64 and int64 in half.
    """
    if jax.process_count() == 1:
        return [tree]
    leaves, structure = jax.tree.flatten(tree)
    arrays = [np.asarray(leaf) for leaf in leaves]
    sent = np.frombuffer(b"".join(array.tobytes() for array in arrays), np.uint8)
    received = np.asarray(multihost_utils.process_allgather(sent))  # (processes, bytes)

    def parse(row: bytes) -> Any:
        found, place = [], 0
        for array in arrays:
            part = row[place : place + array.nbytes]
            found.append(np.frombuffer(part, array.dtype).reshape(array.shape))
            place += array.nbytes
        return jax.tree.unflatten(structure, found)

    return [parse(row.tobytes()) for row in received]


def total(tree: Any) -> Any:
    """The sum over all processes of a pytree of host arrays."""
    return jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *gather(tree))


def largest(*values: float) -> tuple[float, ...]:
    """The largest of each number over all processes, so that they decide alike."""
    if jax.process_count() == 1:
        return values
    return tuple(np.max(gather(np.array(values, np.float64)), axis=0).tolist())


def gather_rows(rows: Any, length: int) -> Any:
    """Undoes `share`: each process's rows of a pytree of arrays (n, ...) to all `length` of them, in order."""
    processes = jax.process_count()
    if processes == 1:
        return rows
    most = -(-length // processes)

    def padded(array: Any) -> np.ndarray:
        array = np.asarray(array)
        return np.pad(array, ((0, most - len(array)), *((0, 0),) * (array.ndim - 1)))

    def merged(*parts: np.ndarray) -> np.ndarray:
        return np.stack(parts, 1).reshape(most * processes, *parts[0].shape[1:])[:length]

    return jax.tree.map(merged, *gather(jax.tree.map(padded, rows)))


def barrier() -> None:
    """Waits until all processes are here."""
    gather(np.zeros(1))


# What collectives and JAX's coordination say of a process that is gone; anything else is this one's own error.
_OTHERS = re.compile(
    "gloo|nccl|coordinat|heartbeat|barrier|preempt|connection|peer|unavailable|deadline|aborted",
    re.IGNORECASE,
)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends this process when another one has ended, and at once when it ends itself before the others.

    What ends a process of several early must end all: JAX would wait minutes for those that are gone.
    """
    try:
        yield
    except BaseException as error:
        if count() == 1:
            raise
        match error:
            case SystemExit(code=int(code)):
                _leave(code)
            case SystemExit(code=message):
                print(message, file=sys.stderr)
            case jax.errors.JaxRuntimeError() if _OTHERS.search(str(error)):
                print(
                    f"error: another process of this run ended or is out of reach ({str(error).splitlines()[0]}): its "
                    "own messages say why. Start all processes again with the same --workdir: finished work is kept",
                    file=sys.stderr,
                )
            case _:
                traceback.print_exc()
        _leave(1)


def _leave(code: int) -> None:
    """Exits without the barrier at which JAX waits for all processes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
