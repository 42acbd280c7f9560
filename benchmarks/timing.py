"""Timing of alternatives in one process: they take turns, so that a noisy machine disturbs all alike."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

Side = Callable[[], Any]


def alternate(
    sides: Mapping[str, Side], runs: int, at_least: float = 0.0
) -> dict[str, list[float]]:
    """Seconds of each run, the sides taking turns after one run each to compile.

    Args:
      sides: what to time; each returns what `jax.block_until_ready` can wait for.
      runs: of each.
      at_least: seconds that a run lasts: a faster side is called again and again without waiting in between, and the
        figure is seconds a call.
    """
    calls = {name: _calls(side, at_least) for name, side in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(runs):
        for name, side in sides.items():
            seconds[name].append(_time(side, calls[name]))
    return seconds


def _calls(side: Side, at_least: float) -> int:
    _time(side)  # compiles
    return math.ceil(at_least / _time(side)) if at_least else 1


def _time(side: Side, calls: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        result = side()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls


def median_ratio(seconds: ArrayLike, others: ArrayLike) -> float:
    """Of runs that took turns: the median of each one's ratio to the other in its turn."""
    return float(np.median(np.asarray(seconds) / np.asarray(others)))
