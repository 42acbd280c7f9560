"""A process that computes what it is asked for and says how long it took, by lines of JSON on its pipes."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
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


def serve(calls: Mapping[str, Call], folder: Path) -> None:
    """Answers each [name of a call, batch, file or null] with its seconds and those of CPU; the file gets the result.

    Only the answers go to standard output: what libraries print there goes to standard error.
    """
    answers, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        name, batch, file = json.loads(line)
        start = time.perf_counter(), time.process_time()
        result = calls[name](batch)
        seconds = time.perf_counter() - start[0], time.process_time() - start[1]
        if file:
            np.save(folder / file, result)
        print(json.dumps(seconds), file=answers, flush=True)
