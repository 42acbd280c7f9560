"""What explanations cost, in forwards of the same batch: time and matrix products.

python -m benchmarks.methods [--model vit_base_patch16_224] [--image_size 224] [--batch 8] [--runs 3] [--all]

A backbone without a head gets one of 1000 classes.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import vitx
from benchmarks.command import parse_options
from benchmarks.models import forward, random_images, random_model
from benchmarks.tables import print_figures, print_table
from benchmarks.timing import Side, alternate, median_ratio
from vitx.models.vit import VisionTransformer
from vitx.relevance.registry import REGISTRY, methods_of

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*?\) -> .*? \{\n(.*?)^\}", re.S | re.M)
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (?:\w+\[([\d,]*)\]\S*|\(.*?\)) ([\w-]+)\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.-]+)")


def main(
    model: str = "vit_base_patch16_224",
    batch: int = 8,
    runs: int = 3,
    all: bool = False,
    image_size: int | None = None,
) -> None:
    """Prints the figures of transformer attribution, and with `all` the table of methods."""
    print_figures("methods", figures(model, batch, runs, image_size))
    if all:
        ratios = every_method(model, batch, runs, image_size)
        print()
        print_table(
            ("method, classes", "forwards"), ((name, f"{r:.2f}") for name, r in ratios.items())
        )


def figures(
    model: str = "vit_base_patch16_224",
    batch: int = 8,
    runs: int = 3,
    image_size: int | None = None,
) -> dict[str, float]:
    """Transformer attribution of one class and of three.

    Returns:
      forward_seconds, of the model's own forward of a batch; explanation_over_forward and class_over_forward, the time
      of one class and of each further one in such forwards; products_over_forward and class_products_over_forward,
      their matrix products over those of a full forward, which computes all tokens of the last block, by the FLOPs in
      the compiled programs; and own_products_over_forward, the same of the model's own forward, which computes only
      the class token there.
    """
    network = random_model(model, num_classes=1000, image_size=image_size)
    images = random_images(network, batch)
    classes = jnp.broadcast_to(jnp.arange(3), (batch, 3))
    one = jax.jit(vitx.explain).lower(network, images, classes[:, :1]).compile()
    three = jax.jit(vitx.explain).lower(network, images, classes).compile()
    own = forward.lower(network, images).compile()
    sides: dict[str, Side] = {
        "forward": partial(own, network, images),
        "one": partial(one, network, images, classes[:, :1]),
        "three": partial(three, network, images, classes),
    }
    seconds = alternate(sides, runs)
    further = (seconds["three"] - seconds["one"]) / 2
    full = product_flops(full_forward.lower(network, images).compile().as_text())
    own_products, one_products, three_products = (
        product_flops(program.as_text()) / full for program in (own, one, three)
    )
    return {
        "forward_seconds": np.median(seconds["forward"]),
        "explanation_over_forward": median_ratio(seconds["one"], seconds["forward"]),
        "class_over_forward": median_ratio(further, seconds["forward"]),
        "products_over_forward": one_products,
        "class_products_over_forward": (three_products - one_products) / 2,
        "own_products_over_forward": own_products,
    }


def every_method(
    model: str, batch: int, runs: int, image_size: int | None = None
) -> dict[str, float]:
    """Forwards each method takes for one class, and for two if it depends on the class: by "method, classes"."""
    network = random_model(model, num_classes=1000, image_size=image_size)
    images = random_images(network, batch)
    classes = jnp.broadcast_to(jnp.array([3, 7]), (batch, 2))
    sides: dict[str, Side] = {"forward": partial(forward, network, images)}
    without_rise = [m for m in methods_of(network) if m != "rise"]  # 500 forwards by definition
    for method in without_rise:
        for count in (1, 2) if REGISTRY[method].by_class else (1,):
            sides[f"{method}, {count}"] = partial(
                vitx.explain, network, images, classes[:, :count], method
            )
    seconds = alternate(sides, runs)
    own = seconds.pop("forward")
    return {name: median_ratio(times, own) for name, times in seconds.items()}


NEWER = ("generic_attention", "attn_lrp", "cp_lrp", "libragrad", "attcat", "attn_lrp_gamma")


def newer(model: str = "vit_base_patch16_224", batch: int = 8, runs: int = 3) -> dict[str, float]:
    """Time of the methods of one forward and one backward, over a forward of the batch: `<method>_over_forward`.

    "gradient_form_over_forward" is the dearest of those that are a gradient under other rules, without gamma.
    """
    network = random_model(model, num_classes=1000)
    images = random_images(network, batch)
    classes = jnp.full((batch, 1), 3)
    sides: dict[str, Side] = {"forward": partial(forward, network, images)}
    for method in NEWER:
        sides[method] = partial(vitx.explain, network, images, classes, method)
    seconds = alternate(sides, runs)
    own = seconds.pop("forward")
    ratios = {f"{name}_over_forward": median_ratio(times, own) for name, times in seconds.items()}
    forms = [ratios[f"{name}_over_forward"] for name in ("attn_lrp", "cp_lrp", "libragrad")]
    return ratios | {"gradient_form_over_forward": max(forms)}


@jax.jit
def full_forward(model: VisionTransformer, images: jax.Array) -> jax.Array:
    """The logits, with all tokens of the last block computed."""
    tokens, rotate = model.embed(model.features(images)), model.rotation()
    for block in model.blocks:
        tokens, _ = block(tokens, rotate=rotate)
    return model.classify(tokens)


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


if __name__ == "__main__":
    main(**parse_options(main))
