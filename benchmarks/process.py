"""Runs a benchmark in a process of its own, with its environment variables and nothing compiled before."""

import contextlib
import importlib
import math
import multiprocessing
import os
import sys
import traceback
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from benchmarks.targets import Benchmark


def in_process(benchmark: Benchmark, quick: bool = False) -> dict[str, Any]:
    """What the benchmark's function returns.

    Raises:
      RuntimeError: the function failed, returned a number that is not finite, or its process died.
    """
    options = benchmark.quick if quick else benchmark.options
    environment = dict(benchmark.environment)
    if quick:
        environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, benchmark.function, options, environment).result()


def _measure(
    function: str, options: Mapping[str, Any], environment: Mapping[str, str]
) -> dict[str, Any]:
    os.environ.update(environment)  # before the first import of JAX
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # or nothing would be compiled
    module, name = function.split(":")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found = getattr(importlib.import_module(module), name)(**options)
        wrong = [k for k, v in found.items() if isinstance(v, float) and not math.isfinite(v)]
        if wrong:
            raise ValueError(f"{function} gave no finite {', '.join(wrong)}")
        return found
    except Exception as error:
        traceback.print_exc()
        # Without the cause: not every exception can be sent to another process.
        summary = next(iter(str(error).strip().splitlines()), "no further message, see above")
        raise RuntimeError(f"{type(error).__name__}: {summary}") from None


def device() -> dict[str, Any]:
    """JAX's devices, and the cores of the host."""
    import jax

    first = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": jax.device_count(),
        "cores": cores,
    }
