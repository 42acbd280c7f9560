"""The explanation methods. Batched over images; no map is upsampled or rescaled.

The first half has the maps as pure functions of attention, gradient and relevance. A map is the row of a matrix of
attention that the output reads, the mean of its rows with the weights (B, Q) of `Explainable.pooling_weights`, without
the prefix tokens' columns.

The second half has one function for each of the six methods of the published tables, which `registry.method` registers.
A new method is one such function.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from vitx.explainable import Explainable
from vitx.ops import Array, Ops
from vitx.relevance import rulesets
from vitx.relevance.registry import REGISTRY, Forward, method


def transformer_attribution(attributions: Sequence[Array], weights: Array) -> Array:
    """Row (B, N) of the product of (I + A_l) minus I, A_l = mean over heads of relu(gradient * relevance), (B, Q, N).

    Chefer et al., CVPR 2021, eq. 13-14. Rows are not normalised. I alone would give each token its weight, whatever
    is explained: with a class token in that token's own column, which no map has, but where patches are pooled in every
    column of a map, and far greater than the rest.
    """
    tokens = attributions[-1].shape[-1]
    start = jnp.pad(weights, ((0, 0), (0, tokens - weights.shape[1])))
    row = jnp.zeros_like(start)
    for matrix in reversed(attributions):
        queries = matrix.shape[1]  # the row is 0 beyond them
        row = row + jnp.einsum(
            "bq,bqn->bn", (start + row)[:, :queries], matrix, precision="highest"
        )
    return row


def rollout(attentions: Sequence[Array], weights: Array) -> Array:
    """Attention rollout (Abnar & Zuidema, 2020): row (B, N) of the product of the row-normalised (I + A_l)."""
    # A row of a product of matrices is a chain of vector-matrix products: N^2 a block, not N^3.
    tokens = attentions[-1].shape[-1]
    row = jnp.pad(weights, ((0, 0), (0, tokens - weights.shape[1])))
    for matrix in reversed(attentions):
        queries = matrix.shape[1]  # the row is 0 beyond them
        sums = jnp.pad(
            1 + matrix.sum(-1), ((0, 0), (0, tokens - queries)), constant_values=1
        )  # of the rows of I + A
        row = row / sums
        row = row + jnp.einsum("bq,bqn->bn", row[:, :queries], matrix, precision="highest")
    return row


def partial_lrp(relevance: Array) -> Array:
    """Positive part of the last block's relevance (B, heads, patches), mean over heads (Voita et al., 2019)."""
    return positive(relevance).mean(1)


def gradcam(attention: Array, gradient: Array) -> Array:
    """GradCAM on the last block's attention (B, heads, patches): heads weighted by their mean gradient, then ReLU."""
    return positive((attention * gradient.mean(-1, keepdims=True)).mean(1))


def positive(x: Array) -> Array:
    """The positive part; NaN stays NaN, which XLA's maximum, and so `jax.nn.relu`, may lose on a CPU."""
    return jnp.where(x < 0, 0, x)


_LRP_RULES = {"published": rulesets.LRP, "stable": rulesets.STABLE_LRP}
_ATTRIBUTION_RULES = {"published": rulesets.CHEFER_PAIRS, "stable": rulesets.STABLE_PAIRS}


@method("rollout", by_class=False, published_start_layer=1)
def _rollout(model: Explainable, images: Array, ops: Ops, start_layer: int, lean: bool) -> Forward:
    encoded, attentions = model.encode(embedded(model, images), ops)
    means = [attention.mean(1) for attention in attentions[start_layer:]]
    row = rollout(means, model.pooling_weights(encoded))[:, model.prefix_tokens :]
    maps = on_grid(model, row)
    return model.classify(encoded, ops), lambda gradient: maps


@method("raw attention", by_class=False)
def _raw_attention(
    model: Explainable, images: Array, ops: Ops, start_layer: int, lean: bool
) -> Forward:
    encoded, attentions = model.encode(embedded(model, images), ops)
    weights = model.pooling_weights(encoded)
    maps = on_grid(model, patches_of(model, attentions[-1], weights).mean(1))
    return model.classify(encoded, ops), lambda gradient: maps


@method("GradCAM", needs="")
def _gradcam(model: Explainable, images: Array, ops: Ops, start_layer: int, lean: bool) -> Forward:
    if not model.attention_shapes():
        return _gradcam_of_features(model, images, ops)
    logits, attention, pullback = last_block(model, images, ops)
    return logits, lambda gradient: on_grid(model, gradcam(attention, pullback(gradient)))


def _gradcam_of_features(model: Explainable, images: Array, ops: Ops) -> Forward:
    """Of a CNN: the last feature map's channels, weighted by their mean gradient (Selvaraju et al., ICCV 2017)."""

    def above(cells: Array) -> Array:
        return model.classify(model.encode(cells, ops)[0], ops)

    cells = embedded(model, images)  # (B, N, C)
    logits, pullback = jax.vjp(above, cells)

    def one_value(gradient: Array) -> Array:
        weights = pullback(gradient)[0].mean(1, keepdims=True)
        return on_grid(model, positive((weights * cells).sum(-1)))

    return logits, one_value


@method("LRP", rule_sets=_LRP_RULES, pixels=True, above_stem=True)
def _lrp(model: Explainable, images: Array, ops: Ops, start_layer: int, lean: bool) -> Forward:
    def forward(features: Array) -> Array:
        encoded, _ = model.encode(model.embed(features, ops), ops, lean=lean)
        return model.classify(encoded, ops)

    logits, pullback = jax.vjp(forward, model.features(images, rulesets.EXACT))
    return under_rules(model, images, logits, lambda gradient: pullback(gradient)[0].sum(-1))


@method("partial LRP", rule_sets=_LRP_RULES)
def _partial_lrp(
    model: Explainable, images: Array, ops: Ops, start_layer: int, lean: bool
) -> Forward:
    logits, _, pullback = last_block(model, images, ops)

    def one_value(gradient: Array) -> Array:
        return on_grid(model, partial_lrp(pullback(gradient)))

    return under_rules(model, images, logits, one_value)


@method("transformer attribution", rule_sets=_ATTRIBUTION_RULES, published_start_layer=0)
def _transformer_attribution(
    model: Explainable, images: Array, ops: Ops, start_layer: int, lean: bool
) -> Forward:
    return attribution(model, images, start_layer, ops, lean=lean)


TABLE_METHODS = tuple(REGISTRY)
"""The methods of [Re]'s tables."""


def attribution(
    model: Explainable, images: Array, start_layer: int, ops: Ops, *, lean: bool = False
) -> Forward:
    """Transformer attribution under any rule set of pairs; `rulesets.attribution_rule_set` builds further ones.

    Args:
      model: such as a `VisionTransformer`.
      images: normalised, (B, H, W, 3).
      start_layer: first block of the product.
      ops: a rule set of pairs.
      lean: computes the blocks again on the way back.

    Returns:
      logits (B, classes), and a function from gradients at the output (B, classes) to maps (B, h, w).
    """
    tokens = embedded(model, images)

    def forward(probes: list[Array]) -> tuple[Any, Any]:
        all_probes = [*[None] * start_layer, *probes]
        encoded, _ = model.encode(rulesets.twice(tokens), ops, all_probes, lean)
        return model.classify(encoded, ops), encoded

    shapes = model.attention_shapes()[start_layer:]
    probes = [jnp.zeros((len(tokens), q, n), tokens.dtype) for _, q, n in shapes]
    logits, pullback, encoded = jax.vjp(forward, probes, has_aux=True)
    weights = model.pooling_weights(encoded.gradient)

    def one_value(gradient: Array) -> Array:
        # Of a start whose sum is 0 the normalised adds leave rounding, hence its positive part.
        (attributions,) = pullback(rulesets.Pair(gradient, positive(gradient)))
        return on_grid(
            model, transformer_attribution(attributions, weights)[:, model.prefix_tokens :]
        )

    return under_rules(model, images, logits.gradient, one_value)


def last_block(
    model: Explainable, images: Array, ops: Ops
) -> tuple[Array, Array, Callable[[Array], Array]]:
    """The output, the last block's attention to patches (B, heads, patches), and the pullback of gradients to it."""
    tokens = embedded(model, images)
    *below, last = model.attention_shapes()

    def forward(probe: Array) -> tuple[Array, tuple[Array, Array]]:
        encoded, attentions = model.encode(tokens, ops, [*[None] * len(below), probe])
        return model.classify(encoded, ops), (attentions[-1], encoded)

    probe = jnp.zeros((len(tokens), *last), tokens.dtype)
    logits, pullback, (attention, encoded) = jax.vjp(forward, probe, has_aux=True)
    patches = partial(patches_of, model, weights=model.pooling_weights(encoded))
    return logits, patches(attention), lambda gradient: patches(pullback(gradient)[0])


def under_rules(
    model: Explainable, images: Array, logits: Array, one_value: Callable[[Array], Array]
) -> Forward:
    """Gives the logits the model's gradient, and the maps none: under relevance rules a cotangent is no gradient."""
    return _with_gradient(model, images, logits), lambda gradient: jax.lax.stop_gradient(
        one_value(gradient)
    )


@jax.custom_vjp
def _with_gradient(model: Explainable, images: Array, logits: Array) -> Array:
    """The logits, whose gradient is that of model(images). Only a caller who differentiates pays for it."""
    return logits


def _logits_forward(model: Explainable, images: Array, logits: Array) -> tuple[Array, Any]:
    _, pullback = jax.vjp(lambda model, images: model(images, rulesets.EXACT), model, images)
    return logits, pullback


def _logits_backward(pullback: Any, cotangent: Array) -> tuple[Any, ...]:
    return *pullback(cotangent), jnp.zeros_like(cotangent)


_with_gradient.defvjp(_logits_forward, _logits_backward)


def embedded(model: Explainable, images: Array) -> Array:
    """The tokens (B, P + N, D) that enter the first block."""
    return model.embed(model.features(images, rulesets.EXACT), rulesets.EXACT)


def patches_of(model: Explainable, attention: Array, weights: Array) -> Array:
    """Attention (B, heads, Q, N) -> the patches' part of the row that the output reads, (B, heads, patches)."""
    row = (attention * weights[:, None, :, None]).sum(-2)
    return row[..., model.prefix_tokens :]


def on_grid(model: Explainable, patches: Array) -> Array:
    """One value for each patch, (B, patches) -> maps (B, h, w)."""
    return patches.reshape(-1, *model.grid)


def at_level(model: Explainable, maps: Array, level: str) -> Array:
    """Maps of pixels (B, H, W); at the level "tokens" the mean of each patch's pixels instead, (B, h, w)."""
    if level == "pixels":
        return maps
    rows, columns = (
        jax.nn.one_hot(jnp.arange(side) * cells // side, cells, axis=0, dtype=maps.dtype)
        for side, cells in zip(maps.shape[1:], model.grid, strict=True)
    )
    rows, columns = (one / one.sum(1, keepdims=True) for one in (rows, columns))
    return jnp.einsum("ih,bhw,jw->bij", rows, maps, columns, precision="highest")
