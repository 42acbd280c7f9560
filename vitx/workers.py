"""Work that runs in other processes of this host, off the one that trains."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import jax

from vitx.files import WorkdirError

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_processes(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int = 0
) -> Iterator[Result]:
    """`function(item)` for each item, in their order, computed by processes that leave the accelerators alone.

    At most two items a process wait at once, so that memory stays flat however many there are.

    Args:
      function: of a module's top level; it and the items are pickled.
      items: drawn as there is room.
      workers: number of processes; 0: one for each core.

    Raises:
      WorkdirError: where a process died, for example killed for memory. Results given so far stand.
    """
    workers = workers or os.cpu_count() or 1
    # A fork of a process that runs JAX's threads may hang; a fresh one cannot.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_begin, initargs=(os.getpid(),)
    )
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise WorkdirError(
            "a worker process died (out of memory, or killed); with fewer of them there is more memory for each. "
            "Start again with the same --workdir: finished work is kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(parent: int) -> None:
    jax.config.update("jax_platforms", "cpu")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the run itself decides
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    # A killed run cannot tell its workers, which would wait for it for ever.
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
