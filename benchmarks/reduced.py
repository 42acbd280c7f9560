"""What faster matrix products cost a relevance map: ViT-Base on random weights, emulated by rounding operands.

Each row is a method whose rules have no denominator that cancels. Maps from products of the precision
(benchmarks/emulated.py) are compared with the float64 maps of the same float32 weights, image by image, by the
correlation over the map; for transformer attribution also the matrix of each block, whose least correlation counts.

python -m benchmarks.reduced [--images 20] [--model vit_base_patch16_224] [--precisions high,tf32,bfloat16]
    [--methods transformer_attribution/stable,attn_lrp_gamma]
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import vitx
from benchmarks.command import parse_options
from benchmarks.emulated import emulated
from benchmarks.models import in_both_precisions
from benchmarks.tables import print_table
from vitx.models.vit import VisionTransformer
from vitx.ops import Array
from vitx.relevance.rulesets import STABLE_PAIRS, Pair, twice

BLOCKS = "blocks"
METHODS = (
    BLOCKS,
    "transformer_attribution/stable",
    "lrp/stable",
    "attn_lrp_gamma",
    "attn_lrp",
    "libragrad",
    "generic_attention",
)
CLASS = 7


def blocks(model: VisionTransformer, images: Array) -> list[Array]:
    """The matrices (1, Q, N) of transformer attribution, one a block, under the stable rules."""
    tokens = model.embed(model.features(images))

    def forward(probes: list[Array]) -> Pair:
        encoded, _ = model.encode(twice(tokens), STABLE_PAIRS, probes)
        return model.classify(encoded, STABLE_PAIRS)

    probes = [jnp.zeros((1, q, n), tokens.dtype) for _, q, n in model.attention_shapes()]
    logits, pullback = jax.vjp(forward, probes)
    start = jax.nn.one_hot(jnp.array([CLASS]), logits.shape[-1], dtype=tokens.dtype)
    return pullback(Pair(start, start))[0]


def explained(method: str, model: VisionTransformer, images: Array) -> list[Array]:
    """The map (1, h, w) of a class by a method, named as in comparisons; of `BLOCKS` the matrices."""
    if method == BLOCKS:
        return blocks(model, images)
    name, _, rules = method.partition("/")
    classes = jnp.array([CLASS])
    return [vitx.explain(model, images, classes, name, rules=rules or "published")[1]]


def least_correlation(one: Sequence[Array], other: Sequence[Array]) -> float:
    """Over the pairs of arrays, of which those that are 0 in both say nothing."""
    pairs = [(np.ravel(x), np.ravel(y)) for x, y in zip(one, other, strict=True)]
    return min(np.corrcoef(x, y)[0, 1] for x, y in pairs if x.any() or y.any())


def rows(
    name: str, images: int, methods: Sequence[str], precisions: Sequence[str]
) -> Iterator[tuple[str, ...]]:
    """A row for each method: float32's least correlation, and for each precision the least and the median."""
    single, double, inputs = in_both_precisions(name, images)
    for method in methods:
        run = jax.jit(partial(explained, method))
        truth = [run(double, jnp.asarray(image, jnp.float64)) for image in inputs]
        programs: list[Callable[..., list[Array]]] = [run]
        programs += [emulated(partial(explained, method), precision) for precision in precisions]
        cells = []
        for program in programs:
            alike = [
                least_correlation(program(single, image), expected)
                for image, expected in zip(inputs, truth, strict=True)
            ]
            cells += [f"{min(alike):.6f}", f"{np.median(alike):.6f}"]
        yield method, cells[0], *cells[2:]


def main(
    images: int = 20,
    model: str = "vit_base_patch16_224",
    methods: Sequence[str] = METHODS,
    precisions: Sequence[str] = ("high", "tf32", "bfloat16"),
) -> None:
    """Prints a table in Markdown; `images` is how many are explained, one per call."""
    jax.config.update("jax_enable_x64", True)
    print(f"{model}, {images} images, {jax.devices()[0].device_kind}\n")
    header = [f"{name}: {which}" for name in precisions for which in ("least", "median")]
    print_table(
        ("correlation with float64", "float32: least", *header),
        rows(model, images, methods, precisions),
    )


if __name__ == "__main__":
    main(**parse_options(main))
