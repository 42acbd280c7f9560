"""A process that computes what it is asked for and says how long it took, by lines of JSON on its pipes."""

import ctypes
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

Call = Callable[[int], np.ndarray]


def use_threads(count: int) -> None:
    """Leaves the process `count` cores; before libraries that start threads are imported."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def images(batch: int, side: int) -> np.ndarray:
    """The images of every side of the comparison, (batch, 3, side, side)."""
    return np.random.RandomState(0).standard_normal((batch, 3, side, side)).astype(np.float32)


def serve(calls: Mapping[str, Call], folder: Path, products: Callable[[str, int], float]) -> None:
    """Answers each [name of a call, batch, file or null].

    Without a file with its seconds and those of CPU; with one with the FLOPs of its matrix products and the bytes of
    `growth`, and the file gets the result. `products` counts the former and runs the call, so that `growth` is not that
    of compiling. Only the answers go to standard output: what libraries print there goes to standard error.
    """
    answers, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        name, batch, file = json.loads(line)
        call = partial(calls[name], batch)
        if file:
            flops = products(name, batch)
            result, grown = growth(call)
            np.save(folder / file, result)
            answer = flops, grown
        else:
            start = time.perf_counter(), time.process_time()
            call()
            answer = time.perf_counter() - start[0], time.process_time() - start[1]
        print(json.dumps(answer), file=answers, flush=True)


def growth(call: Callable[[], np.ndarray]) -> tuple[np.ndarray, int | None]:
    """The result of a call, and the bytes that it took at most beyond those before it; None where not on Linux.

    Before the call the process gives back what earlier ones have freed.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    except (OSError, AttributeError):
        return call(), None
    before = _resident("VmRSS")
    result = call()
    return result, _resident("VmHWM") - before


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))
