"""Methods of gradients: of attention, of tokens and of pixels.

Each is registered for `vitx.explain` under its name. Its keyword-only arguments are the options of `vitx.explain`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vitx.explainable import Explainable
from vitx.ops import Array, Ops
from vitx.relevance import rulesets
from vitx.relevance.methods import (
    at_level,
    embedded,
    on_grid,
    positive,
    transformer_attribution,
)
from vitx.relevance.registry import Forward, method
from vitx.relevance.rulesets import EXACT


def _mean_positive(gradient: Array, attention: Array) -> Array:
    return positive(gradient * attention).mean(1)


_TIMES_ATTENTION = replace(EXACT, probe=rulesets.probing_with_value(_mean_positive))


@method("generic attention", published_start_layer=0)
def _generic_attention(
    model: Explainable, images: Array, ops: Ops, start_layer: int, lean: bool
) -> Forward:
    """The product of (I + E[relu(G * A)]) (Chefer, Gur and Wolf, ICCV 2021): one forward, one backward."""
    return attention_product(model, images, _TIMES_ATTENTION, start_layer, lean)


def attention_product(
    model: Explainable, images: Array, ops: Ops, start_layer: int, lean: bool
) -> Forward:
    """The output, and the row of the product of (I + M_l); the cotangent of the probes (B, Q, N) of `ops` is M_l."""
    tokens = embedded(model, images)

    def forward(probes: list[Array]) -> tuple[Array, Array]:
        encoded, _ = model.encode(tokens, ops, [*[None] * start_layer, *probes], lean)
        return model.classify(encoded, ops), encoded

    shapes = model.attention_shapes()[start_layer:]
    probes = [jnp.zeros((len(tokens), q, n), tokens.dtype) for _, q, n in shapes]
    output, pullback, encoded = jax.vjp(forward, probes, has_aux=True)
    weights = model.pooling_weights(encoded)

    def one_value(gradient: Array) -> Array:
        row = transformer_attribution(pullback(gradient)[0], weights)
        return on_grid(model, row[:, model.prefix_tokens :])

    return output, one_value


@method("attention x gradient")
def _attention_gradient(
    model: Explainable, images: Array, ops: Ops, start_layer: int, lean: bool
) -> Forward:
    """E[relu(G * A)] of the last block (Chefer, Gur and Wolf, ICCV 2021)."""
    return attention_product(model, images, _TIMES_ATTENTION, len(model.blocks) - 1, lean)


@method("LeGrad", published_start_layer=0)
def _legrad(model: Explainable, images: Array, ops: Ops, start_layer: int, lean: bool) -> Forward:
    """Sum over blocks of the mean over heads and queries of relu(ds_l / dA_l) (Bousselham et al., ICCV 2025).

    s_l is the value for the mean of all tokens of block l's output in place of its tokens. The published code begins
    at the last but one block.
    """
    tokens, rotate = embedded(model, images), model.rotation()
    pullbacks, encoded = [], tokens

    def value(block: Callable[..., tuple[Array, Array]], inputs: Array, probe: Array) -> Array:
        read, _ = block(inputs, EXACT, probe, rotate=rotate)
        mean = read.mean(1, keepdims=True)
        return model.classify(jnp.broadcast_to(mean, read.shape), EXACT)

    shapes = model.attention_shapes()
    for number, (block, (heads, _, count)) in enumerate(zip(model.blocks, shapes, strict=True)):
        if number >= start_layer:
            zeros = jnp.zeros((len(tokens), heads, count, count), tokens.dtype)
            pullbacks.append(jax.vjp(lambda p, b=block, t=encoded: value(b, t, p), zeros)[1])
        encoded, _ = block(encoded, EXACT, rotate=rotate)

    def one_value(gradient: Array) -> Array:
        columns = [positive(pullback(gradient)[0]).mean((1, 2)) for pullback in pullbacks]
        return on_grid(model, jnp.stack(columns).sum(0)[:, model.prefix_tokens :])

    return model.classify(encoded, EXACT), one_value


@method("AttCAT")
def _attcat(model: Explainable, images: Array, ops: Ops, start_layer: int, lean: bool) -> Forward:
    """Sum over blocks of the mean attention to a token times h * dy/dh there (Qiang et al., NeurIPS 2022)."""
    tokens, rotate = embedded(model, images), model.rotation()

    def forward(zeros: Sequence[Array]) -> tuple[Array, tuple[list[Array], list[Array]]]:
        inputs, columns, encoded = [], [], tokens
        for block, zero in zip(model.blocks, zeros, strict=True):
            inputs.append(encoded)
            encoded, attention = block(encoded + zero, EXACT, rotate=rotate)
            columns.append(attention.mean((1, 2)))  # (B, N)
        return model.classify(encoded, EXACT), (inputs, columns)

    zeros = [jnp.zeros_like(tokens) for _ in model.blocks]
    output, pullback, (inputs, columns) = jax.vjp(forward, zeros, has_aux=True)

    def one_value(gradient: Array) -> Array:
        triples = zip(inputs, columns, pullback(gradient)[0], strict=True)
        row = sum(column * (h * g).sum(-1) for h, column, g in triples)
        return on_grid(model, row[:, model.prefix_tokens :])

    return output, one_value


@method("input x gradient", needs="")
def _input_x_gradient(
    model: Explainable,
    images: Array,
    ops: Ops,
    start_layer: int,
    lean: bool,
    *,
    level: str = "pixels",
) -> Forward:
    """X dy/dx, summed over channels; `level`: x is the image, or the tokens that enter the first block."""
    return input_x_gradient(model, images, EXACT, level, lean)


def input_x_gradient(
    model: Explainable, images: Array, ops: Ops, level: str, lean: bool
) -> Forward:
    """X times the gradient under `ops`, summed over channels, on pixels or on the token grid."""
    x, run = from_level(model, images, ops, level, lean)
    output, pullback = jax.vjp(run, x)
    return output, lambda g: summed(model, x * pullback(g)[0], level)


def from_level(
    model: Explainable, images: Array, ops: Ops, level: str, lean: bool
) -> tuple[Array, Callable[[Array], Array]]:
    """The image (B, H, W, 3) or its tokens (B, P + N, D), and the function from there to the output under `ops`.

    Rules end above a stem: on a hybrid they go back to the stem's map (B, h, w, C), plain gradients to the image.
    """

    def above(tokens: Array) -> Array:
        return model.classify(model.encode(tokens, ops, lean=lean)[0], ops)

    if level == "tokens":
        return embedded(model, images), above
    if ops is EXACT:
        return images.astype(model.dtype), lambda x: above(model.embed(model.features(x, ops), ops))
    return model.features(images, EXACT), lambda x: above(model.embed(x, ops))


def summed(model: Explainable, x: Array, level: str) -> Array:
    """The sum over channels of pixels (B, H, W, 3) -> (B, H, W), or of tokens (B, P + N, D) -> (B, h, w)."""
    total = x.sum(-1)
    return on_grid(model, total[:, model.prefix_tokens :]) if level == "tokens" else total


@method("integrated gradients", needs="")
def _integrated_gradients(
    model: Explainable,
    images: Array,
    ops: Ops,
    start_layer: int,
    lean: bool,
    *,
    level: str = "pixels",
    steps: int = 20,
) -> Forward:
    """X times the integral of dy/dx from 0 to x, by Gauss and Legendre (Sundararajan et al., ICML 2017).

    It takes `steps` forwards and backwards for each value. A value of another kind than an output is the one whose
    gradient at the image's own output is explained.
    """
    x, run = from_level(model, images, EXACT, level, lean)
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    path = jnp.asarray((1 + nodes) / 2, x.dtype), jnp.asarray(weights / 2, x.dtype)

    def one_value(gradient: Array) -> Array:
        def step(total: Array, point: tuple[Array, Array]) -> tuple[Array, None]:
            place, weight = point
            return total + weight * jax.vjp(run, x * place)[1](gradient)[0], None

        total, _ = lax.scan(step, jnp.zeros_like(x), path)
        return summed(model, x * total, level)

    return run(x), one_value


@method("SmoothGrad", pixels=True, needs="")
def _smoothgrad(
    model: Explainable,
    images: Array,
    ops: Ops,
    start_layer: int,
    lean: bool,
    *,
    level: str = "pixels",
    samples: int = 20,
    noise: float = 0.15,
    seed: int = 0,
) -> Forward:
    """The mean gradient at `samples` noisy images, summed over channels (Smilkov et al., 2017).

    `noise` is its standard deviation as a share of the image's range; all images get the same noise. At the level
    "tokens" a map has the mean of each patch's pixels.
    """
    x, run = from_level(model, images, EXACT, "pixels", lean)
    axes = (1, 2, 3)
    deviation = noise * (x.max(axes, keepdims=True) - x.min(axes, keepdims=True))
    keys = jax.random.split(jax.random.key(seed), samples)

    def one_value(gradient: Array) -> Array:
        def step(total: Array, key: Array) -> tuple[Array, None]:
            shift = jax.random.normal(key, x.shape[1:], jnp.float32)[None].astype(x.dtype)
            return total + jax.vjp(run, x + deviation * shift)[1](gradient)[0], None

        total, _ = lax.scan(step, jnp.zeros_like(x), keys)
        return at_level(model, (total / samples).sum(-1), level)

    return run(x), one_value
