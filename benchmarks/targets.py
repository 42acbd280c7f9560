"""The performance targets, and the benchmarks that measure them: see `python -m benchmarks`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

TINY = "vit_test_conv_s4_48"


class Benchmark(NamedTuple):
    """A function that returns figures by name, and the arguments it is called with."""

    function: str  # "module:function"
    options: Mapping[str, Any] = {}  # keyword arguments that differ from the function's defaults
    quick: Mapping[str, Any] = {}  # keyword arguments for the smallest models
    environment: Mapping[str, str] = {}  # variables of its process


class Target(NamedTuple):
    """A row of targets.md, which explains the columns."""

    name: str
    on: str
    benchmark: str
    figure: str
    limit: float | str
    unit: str
    text: str
    yardstick: str
    at_most: bool  # whether the limit is an upper one


_ONCE = {"model": TINY, "batch": 1, "runs": 1}
_QUICK_LOADER = {"model": TINY, "sizes": (48,), "workers": (0,), "images": 16}
_QUICK_LOADER |= {"rounds": 1, "step_runs": 1}
BENCHMARKS: dict[str, Benchmark] = {
    "methods": Benchmark("benchmarks.methods:figures", quick=_ONCE),
    "methods-dinov2": Benchmark(
        "benchmarks.methods:figures",
        {"model": "vit_base_patch14_dinov2", "image_size": 224},
        _ONCE | {"image_size": 48},
    ),
    "newer": Benchmark("benchmarks.methods:newer", quick=_ONCE),
    "many": Benchmark("benchmarks.many:figures", quick=_ONCE),
    "walk": Benchmark("benchmarks.walk:figures", quick={"sizes": (8, 16), "runs": 1}),
    "crf": Benchmark("benchmarks.crf:one_call", quick={"size": (24, 32), "runs": 1}),
    "start": Benchmark("benchmarks.start:figures", quick={"model": TINY}),
    "memory": Benchmark("benchmarks.memory:figures", quick=_ONCE | {"size": 48}),
    "perturbation": Benchmark("benchmarks.perturbation:figures", quick=_ONCE),
    "loader": Benchmark("benchmarks.loader:figures", quick=_QUICK_LOADER),
    "device-loader": Benchmark(
        "benchmarks.loader:figures",
        {"sizes": (448,), "workers": (8,), "images": 640, "step_batch": 16, "step_runs": 5},
        _QUICK_LOADER,
    ),
    "explanations": Benchmark(
        "benchmarks.gpu:explanations", quick={"model": TINY, "runs": 1, "seconds": 0.01}
    ),
    "training": Benchmark(
        "benchmarks.training:figures", quick={"model": TINY, "size": 48, "batch": 2, "runs": 1}
    ),
    "pytorch": Benchmark(
        "benchmarks.gpu:pytorch",
        quick={"batch": 1, "runs": 1, "seconds": 0.01},
        environment={"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},  # PyTorch needs memory, too
    ),
}


def _read_targets() -> Iterator[Target]:
    lines = Path(__file__).with_suffix(".md").read_text().splitlines()
    table = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    for *first, limit, unit, text, yardstick in table[1:]:
        sign, _, value = limit.partition(" ")
        number = value if value[0].isalpha() else float(value)
        yield Target(*first, number, unit, text, yardstick, at_most=sign == "<=")


_ALL = tuple(_read_targets())
TARGETS = tuple(target for target in _ALL if target.on != "gpu")
GPU_TARGETS = tuple(target for target in _ALL if target.on != "cpu")
