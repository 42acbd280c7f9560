"""What explanations cost, in forwards of the same batch: time, matrix products and compilation.

Targets for ViT-Base: one explanation at most 6.0 forwards, each further class at most 4.2, products at most 4.6.

python -m benchmarks.methods [--model vit_base_patch16_224] [--batch 8] [--runs 3] [--all]
"""

import argparse
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vitx
from benchmarks.models import random_model
from benchmarks.timing import alternate, median_ratio
from vitx.relevance.methods import REGISTRY

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*?\) -> .*? \{\n(.*?)^\}", re.S | re.M)
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (?:\w+\[([\d,]*)\]\S*|\(.*?\)) ([\w-]+)\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.-]+)")


def figures(model: str = "vit_base_patch16_224", batch: int = 8, runs: int = 3) -> dict[str, float]:
    """Transformer attribution of one class and of three.

    Args:
      model: a name of vitx's registry.
      batch: images at once.
      runs: of each side.

    Returns:
      forward_seconds, of the model's own forward of a batch; explanation_over_forward and class_over_forward, the time
      of one class and of each further one over that; products_over_forward and class_products_over_forward, their
      matrix products over those of a full forward, which computes all tokens of the last block, by the FLOPs counted in
      the compiled programs; own_products_over_forward, the same of the model's own forward, which computes the class
      token only; and compile_seconds of one class's program, from tracing on.
    """
    network, images = random_model(model), _images(model, batch)
    classes = jnp.broadcast_to(jnp.arange(3), (batch, 3))
    start = time.perf_counter()
    one = jax.jit(vitx.explain).lower(network, images, classes[:, :1]).compile()
    compile_seconds = time.perf_counter() - start
    three = jax.jit(vitx.explain).lower(network, images, classes).compile()
    forward = jax.jit(_forward).lower(network, images).compile()
    sides: dict[str, Callable[[], Any]] = {
        "forward": lambda: forward(network, images),
        "one": lambda: one(network, images, classes[:, :1]),
        "three": lambda: three(network, images, classes),
    }
    seconds = {name: np.array(times) for name, times in alternate(sides, runs).items()}
    full = jax.jit(_full_forward).lower(network, images).compile()
    own, one_flops, three_flops = (
        product_flops(program.as_text()) / product_flops(full.as_text())
        for program in (forward, one, three)
    )
    return {
        "forward_seconds": float(np.median(seconds["forward"])),
        "explanation_over_forward": median_ratio(seconds["one"], seconds["forward"]),
        "class_over_forward": median_ratio(
            (seconds["three"] - seconds["one"]) / 2, seconds["forward"]
        ),
        "products_over_forward": one_flops,
        "class_products_over_forward": (three_flops - one_flops) / 2,
        "own_products_over_forward": own,
        "compile_seconds": compile_seconds,
    }


def product_flops(program: str) -> float:
    """FLOPs of the matrix products and convolutions of a program compiled for a CPU, loops in full.

    Args:
      program: HLO, as of `compiled.as_text()`.
    """
    computations = {m[2]: (m[3], bool(m[1])) for m in _COMPUTATION.finditer(program)}
    bodies = {name: body for name, (body, _) in computations.items()}

    def flops(name: str) -> float:
        total, shapes = 0.0, {}
        for line in bodies[name].splitlines():
            if not (match := _INSTRUCTION.match(line)):
                continue
            result, dimensions, kind = match.groups()
            shapes[result] = shape = _shape(dimensions)
            if kind in ("dot", "convolution"):
                operands = [shapes[o] for o in re.findall(r"%([\w.-]+)", line[match.end() :])[:2]]
                total += 2.0 * np.prod(shape) * _summands(kind, line, *operands)
            total += sum(map(flops, _CALLED.findall(line))) * _trips(kind, line)
        return total

    return float(flops(next(name for name, (_, entry) in computations.items() if entry)))


def _shape(dimensions: str | None) -> tuple[int, ...]:
    return tuple(int(side) for side in (dimensions or "").split(",") if side)


def _summands(kind: str, line: str, left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """Products that are summed for each number of the result."""
    if kind == "dot":
        axes = _shape(re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line)[1])  # type: ignore[index]
        return int(np.prod([left[axis] for axis in axes]))
    outputs = re.search(r"dim_labels=\w+_(\w+)->", line)[1].index("o")  # type: ignore[index]
    return int(np.prod(right)) // right[outputs]


def _trips(kind: str, line: str) -> int:
    if kind != "while":
        return 1
    if not (trips := re.search(r'"known_trip_count":\{"n":"(\d+)"', line)):
        raise ValueError(f"a loop without a known number of rounds: {line.strip()[:80]}")
    return int(trips[1])


def every_method(model: str, batch: int, runs: int) -> dict[str, float]:
    """Forwards that each method takes for one class, and for two where it has classes: by "method, classes"."""
    network, images = random_model(model), _images(model, batch)
    classes = jnp.broadcast_to(jnp.array([3, 7]), (batch, 2))
    sides: dict[str, Callable[[], Any]] = {"forward": partial(jax.jit(_forward), network, images)}
    for method in vitx.METHODS:
        for count in (1, 2) if REGISTRY[method].by_class else (1,):
            sides[f"{method}, {count}"] = partial(
                vitx.explain, network, images, classes[:, :count], method
            )
    seconds = alternate(sides, runs)
    forward = seconds.pop("forward")
    return {name: median_ratio(times, forward) for name, times in seconds.items()}


def _images(model: str, batch: int) -> jax.Array:
    size = vitx.create(model).preprocess.size
    values = np.random.default_rng(0).standard_normal((batch, *size, 3), np.float32)
    return jnp.asarray(values)


def _forward(network: Any, images: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return network(images)


def _full_forward(model: Any, images: jax.Array) -> jax.Array:
    tokens = model.embed(model.features(images))
    for block in model.blocks:
        tokens, _ = block(tokens)
    return model.classify(tokens)


def main() -> None:
    """Prints the figures, and with --all the table of methods in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_base_patch16_224", help="of vitx's registry")
    parser.add_argument("--batch", type=int, default=8, help="images at once")
    parser.add_argument("--runs", type=int, default=3, help="of each side")
    parser.add_argument("--all", action="store_true", help="a table of all methods, too")
    options = vars(parser.parse_args())
    table = options.pop("all")
    found = figures(**options)
    device = jax.devices()[0].device_kind
    print(f"{options['model']}, batch {options['batch']}, {device}, {options['runs']} runs each")
    print(f"forward: {found['forward_seconds'] / options['batch']:.3f} s an image")
    own = found["own_products_over_forward"]
    print(
        f"its products: {own:.2f} of a full forward's, which computes all tokens of the last block"
    )
    print("\nin forwards        time  products (full forwards)")
    for what, key in (("one class", "explanation"), ("each further one", "class")):
        products = "products" if key == "explanation" else "class_products"
        ratios = found[f"{key}_over_forward"], found[f"{products}_over_forward"]
        print(f"{what:17} {ratios[0]:4.2f}  {ratios[1]:8.2f}")
    print(f"\ncompiling: {found['compile_seconds']:.1f} s")
    if table:
        print("\n| method, classes | forwards |\n|---|---|")
        for name, ratio in every_method(**options).items():
            print(f"| {name} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
