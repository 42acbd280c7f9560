"""The performance targets, and the benchmarks that measure them: see `python -m benchmarks`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

TINY = "vit_test_conv_s4_48"
GPU_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Benchmark(NamedTuple):
    """A function that returns figures by name, "module:function", and what it is called with.

    Attributes:
      function: where it is.
      options: its keyword arguments; what is not there is the function's own default.
      quick: the same for the smallest models.
      environment: variables that its process gets.
    """

    function: str
    options: Mapping[str, Any] = {}
    quick: Mapping[str, Any] = {}
    environment: Mapping[str, str] = {}


class Target(NamedTuple):
    """A row of the table.

    Attributes:
      name: for --only.
      benchmark: a key of `BENCHMARKS`.
      text: what is to be reached.
      yardstick: what it is measured against.
      figure: a key of the benchmark's figures.
      limit: the number to keep, or the key of a figure.
      unit: of the figure.
      at_most: whether the limit is an upper one.
    """

    name: str
    benchmark: str
    text: str
    yardstick: str
    figure: str
    limit: float | str
    unit: str
    at_most: bool = True


_QUICK_LOADER = {
    "model": TINY,
    "sizes": (48,),
    "workers": (0,),
    "images": 16,
    "rounds": 1,
    "step_runs": 1,
}
BENCHMARKS: dict[str, Benchmark] = {
    "methods": Benchmark(
        "benchmarks.methods:figures", {"batch": 8}, {"model": TINY, "batch": 1, "runs": 1}
    ),
    "walk": Benchmark("benchmarks.walk:figures", quick={"sizes": (8, 16), "runs": 1}),
    "crf": Benchmark("benchmarks.crf:turns", quick={"size": (24, 32), "runs": 1}),
    "start": Benchmark("benchmarks.start:figures", quick={"model": TINY}),
    "memory": Benchmark(
        "benchmarks.memory:figures", quick={"model": TINY, "size": 48, "batch": 1, "runs": 1}
    ),
    "perturbation": Benchmark(
        "benchmarks.perturbation:figures", quick={"model": TINY, "batch": 1, "runs": 1}
    ),
    "loader": Benchmark(
        "benchmarks.loader:figures",
        quick=_QUICK_LOADER,
    ),
    "device-loader": Benchmark(
        "benchmarks.loader:figures",
        {"sizes": (448,), "workers": (8,), "images": 640, "step_batch": 16, "step_runs": 5},
        _QUICK_LOADER,
    ),
    "explanations": Benchmark(
        "benchmarks.gpu:explanations",
        {"batches": GPU_BATCHES},
        {"model": TINY, "batches": GPU_BATCHES, "runs": 1, "seconds": 0.01},
    ),
    "training": Benchmark(
        "benchmarks.gpu:training", quick={"model": TINY, "size": 48, "batch": 2, "runs": 1}
    ),
    "pytorch": Benchmark(
        "benchmarks.gpu:pytorch",
        quick={"batch": 1, "runs": 1, "seconds": 0.01},
        # PyTorch wants some of the memory, too.
        environment={"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
    ),
}

TARGETS: tuple[Target, ...] = (
    Target(
        "explanation",
        "methods",
        "explanation of a batch of 8, ViT-Base: at most 6.0 forwards",
        "a forward of the batch, full float32",
        "explanation_over_forward",
        6.0,
        "forwards",
    ),
    Target(
        "class",
        "methods",
        "each further class, ViT-Base: at most 4.2 forwards",
        "a forward of the batch, full float32",
        "class_over_forward",
        4.2,
        "forwards",
    ),
    Target(
        "products",
        "methods",
        "matrix products of an explanation, ViT-Base: at most 4.6 forwards'",
        "those of a forward, counted",
        "products_over_forward",
        4.6,
        "forwards",
    ),
    Target(
        "compile",
        "start",
        "compiling an explanation of ViT-Base: under 10 s",
        "10 s",
        "compile_seconds",
        10.0,
        "s",
    ),
    Target(
        "second-start",
        "start",
        "a second start: under half of the first",
        "tracing and compiling the first time",
        "second_start_share",
        0.5,
        "of it",
    ),
    Target(
        "memory",
        "memory",
        "lean explanation, hybrid at 448: at most 0.5 GB an image",
        "0.5 GB",
        "lean_gigabytes",
        0.5,
        "GB",
    ),
    Target(
        "lean-time",
        "memory",
        "lean explanation, hybrid at 448: at most 1.2 times the time",
        "the fast explanation",
        "lean_over_fast",
        1.2,
        "times",
    ),
    Target(
        "walk",
        "walk",
        "random walk of 256 steps on 56 x 56: at least 100 times as fast as dense",
        "eight squarings of the dense matrix",
        "dense_over_walk",
        100.0,
        "times",
        at_most=False,
    ),
    Target(
        "walk-growth",
        "walk",
        "the walk's time a pixel from 56 x 56 to 224 x 224: at most 1.5 times",
        "its time a pixel on 56 x 56",
        "growth",
        1.5,
        "times",
    ),
    Target(
        "crf",
        "crf",
        "dense CRF of 500 x 375, three labels, both alphas: at most the time of pydensecrf",
        "pydensecrf in the same process",
        "jax_over_pydensecrf",
        1.0,
        "times",
    ),
    Target(
        "perturbation",
        "perturbation",
        "perturbing, nine fractions: at most 1.15",
        "one explanation and ten forwards of the batch",
        "perturbation_over_yardstick",
        1.15,
        "times",
    ),
    Target(
        "loader",
        "loader",
        "the loader is ahead of the training step, hybrid at 448",
        "the training step on this machine",
        "loader_over_step",
        1.0,
        "times its images a second",
        at_most=False,
    ),
    Target(
        "loader-workers",
        "loader",
        "loader processes that keep one H100 busy at 448: at most 16",
        "half of its TF32 peak, a step of three forwards",
        "workers_needed",
        16.0,
        "processes",
    ),
)
_WALKS = tuple(target for target in TARGETS if target.benchmark == "walk")
GPU_TARGETS: tuple[Target, ...] = (
    *_WALKS,
    *(
        Target(
            f"explanations-{batch}",
            "explanations",
            f"explanations of ViT-Base at batch {batch}: half of the float32 peak",
            "half of the data sheet's peak over an explanation's FLOPs",
            f"explanations_{batch}",
            "half_peak",
            "a second",
            at_most=False,
        )
        for batch in GPU_BATCHES
    ),
    Target(
        "explanation",
        "explanations",
        "explanation of a batch of 8, ViT-Base: at most 6.0 forwards",
        "a forward of the batch, full float32",
        "forwards_an_explanation_8",
        6.0,
        "forwards",
    ),
    Target(
        "training",
        "training",
        "training step, hybrid at 448, batch 16: half of the TF32 peak",
        "half of the data sheet's peak over three forwards' FLOPs",
        "images_a_second",
        "half_peak",
        "images a second",
        at_most=False,
    ),
    Target(
        "loader",
        "device-loader",
        "eight loader processes are ahead of the training step, hybrid at 448",
        "the training step, batch 16",
        "loader_over_step",
        1.0,
        "times its images a second",
        at_most=False,
    ),
    *(
        Target(
            f"pytorch-{precision}",
            "pytorch",
            f"forward of ViT-Base, batch 64, {name}: at most 1.1 times PyTorch's time",
            "PyTorch's, eager or compiled, the faster",
            f"time_over_pytorch_{precision}",
            1.1,
            "times",
        )
        for precision, name in (("float32", "float32"), ("tf32", "TF32"))
    ),
)


def limit_of(name: str) -> float:
    """The number that a row of `TARGETS` is to keep."""
    (limit,) = (target.limit for target in TARGETS if target.name == name)
    return float(limit)
