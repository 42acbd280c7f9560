"""Maps a function over many items side by side: in other processes of this host, or on all of its devices."""

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

    Args:
        function: Of a module's top level; it and the items are pickled.
        items: Drawn as there is room, so that memory stays flat: two per process wait.
        workers: Number of processes; 0: one per core.

    Raises:
        WorkdirError: A process died, for example killed for memory. Results so far were given.
    """
    workers = workers or os.cpu_count() or 1
    # A fork of a process that runs JAX's threads may hang; a fresh one cannot.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),)
    )
    try:
        yield from in_order(pool, function, items, 2 * workers)
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
    """`function(item)` for each item, in their order, computed by several devices side by side.

    Args:
        function: Called with JAX's default device set to its thread's. Other settings of the caller's thread, such as
            `jax.enable_x64`, do not reach it. It is compiled for each device.
        items: Drawn as there is room: two per thread wait.
        threads: Per device; 0: two for an accelerator, so that one item is prepared while another is computed, and
            one per core for a CPU.
        devices: Of one kind; default: this process's accelerators, or the CPU.
    """
    if devices is None:
        devices = jax.local_devices()
        if devices[0].platform == "cpu":
            devices = devices[:1]  # virtual ones share the cores
    threads = threads or (os.cpu_count() or 1 if devices[0].platform == "cpu" else 2)
    free: SimpleQueue[jax.Device] = SimpleQueue()
    for device in [*devices] * threads:
        free.put(device)

    def call(item: Item) -> Result:
        device = free.get()
        try:
            with jax.default_device(device):
                return function(item)
        finally:
            free.put(device)

    count = free.qsize()
    yield from in_order(ThreadPoolExecutor(count), call, items, 2 * count)


def in_order(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Generator[Result, None, None]:
    """Results of a pool in the items' order, with up to `ahead` of them waiting; then shuts the pool down."""
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


def _start_worker(parent: int) -> None:
    jax.config.update("jax_platforms", "cpu")
    # Ctrl-C reaches all processes; the run itself decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(parent)


def end_with(parent: int) -> None:
    """Ends this process within a second after its parent, of this process id, however the parent ended.

    A killed run cannot stop its worker processes, which would wait for it forever.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
