"""Work on many items side by side: in other processes of this host, or on all of its devices."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from queue import SimpleQueue
from typing import TypeVar

import jax

from vitx.runtime.files import WorkdirError

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_processes(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int = 0
) -> Generator[Result, None, None]:
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
    try:
        yield from _in_order(pool, function, items, 2 * workers)
    except BrokenProcessPool as error:
        raise WorkdirError(
            "a worker process died (out of memory, or killed); with fewer of them there is more memory for each. "
            "Start again with the same --workdir: finished work is kept"
        ) from error


def on_devices(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int = 0,
    devices: Sequence[jax.Device] | None = None,
) -> Generator[Result, None, None]:
    """`function(item)` for each item, in their order, by several devices side by side.

    Args:
      function: called with JAX's default device set to its thread's; other settings of the caller's thread, such as
        `jax.enable_x64`, do not reach it. What it compiles, it compiles for each device.
      items: drawn as there is room: two a thread wait.
      threads: of each device; 0: two for an accelerator, so that one item is prepared while another is computed, and
        for a CPU one for each core.
      devices: of one kind; default: this process' accelerators, or the CPU.

    Raises:
      whatever `function` raises. Results given so far stand.
    """
    if devices is None:
        devices = jax.local_devices()
        if devices[0].platform == "cpu":
            devices = devices[:1]  # virtual ones have the same cores
    threads = threads or (os.cpu_count() or 1 if devices[0].platform == "cpu" else 2)
    count = threads * len(devices)
    free: SimpleQueue[jax.Device] = SimpleQueue()
    for thread in range(count):
        free.put(devices[thread % len(devices)])

    def call(item: Item) -> Result:
        device = free.get()
        try:
            with jax.default_device(device):
                return function(item)
        finally:
            free.put(device)

    yield from _in_order(ThreadPoolExecutor(count), call, items, 2 * count)


def _in_order(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Generator[Result, None, None]:
    """Results of a pool in the items' order, up to `ahead` of them waiting; shuts it down."""
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(parent: int) -> None:
    jax.config.update("jax_platforms", "cpu")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the run itself decides
    end_with(parent)


def end_with(parent: int) -> None:
    """Has this process end within a second after its parent, of this process id, however that ended.

    A killed run cannot stop its worker processes, which would wait for it for ever.
    """
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
