"""Timing of alternatives in one process: they take turns, so that other work on the machine slows all of them alike."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

Side = Callable[[], Any]


def alternate(sides: Mapping[str, Side], runs: int, at_least: float = 0.0) -> dict[str, np.ndarray]:
    """Seconds of each run, the sides taking turns after one untimed call each, which compiles.

    Args:
      sides: what to time; each returns something `jax.block_until_ready` can wait for.
      runs: of each side.
      at_least: seconds a run lasts: a faster side is called repeatedly without waiting in between, and its seconds
        are those of one call.
    """
    calls = {}
    for name, side in sides.items():
        _seconds(side)  # compiles
        calls[name] = math.ceil(at_least / _seconds(side)) if at_least else 1
    rounds = [[_seconds(side, calls[name]) for name, side in sides.items()] for _ in range(runs)]
    return dict(zip(sides, np.transpose(rounds), strict=True))


def _seconds(side: Side, calls: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        result = side()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls


def median_ratio(seconds: ArrayLike, others: ArrayLike) -> float:
    """The median over the turns of one side's time to the other's in the same turn."""
    return float(np.median(np.asarray(seconds) / np.asarray(others)))
