"""Timing of alternatives in one process: they take turns, so that a noisy machine disturbs all alike."""

import time
from collections.abc import Callable
from typing import Any

import jax


def alternate(sides: dict[str, Callable[[], Any]], runs: int) -> dict[str, list[float]]:
    """Seconds of each run, the sides taking turns after one run each to compile."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(runs + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            jax.block_until_ready(side())
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds
