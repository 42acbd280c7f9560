"""Beyond Intuition (Chen et al., TMLR 2023): an attention map of relations, weighed by an integral of gradients.

Both methods take the positive mean W of the last block's gradient on the way from 0, the mean colour, to the image, and
multiply its row by that of a product R over blocks. Published blocks begin at 3 ("head") and 5 or 6 ("token"), counted
from 0, of twelve.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from vitx.explainable import Explainable
from vitx.ops import Array, Ops
from vitx.relevance import rulesets
from vitx.relevance.gradients import attention_product
from vitx.relevance.methods import embedded, on_grid, patches_of, positive, transformer_attribution
from vitx.relevance.registry import Forward, method
from vitx.relevance.rulesets import EXACT


def _by_head(gradient: Array, attention: Array) -> Array:
    """Sum over heads of A_h I_h, I_h the mean of |A_h^T G_h| as a share of all heads': (B, H, Q, N) -> (B, Q, N)."""
    product = jnp.einsum("bhqj,bhqk->bhjk", attention, gradient, precision="highest")
    importance = jnp.abs(product).mean((-2, -1))  # (B, H)
    total = importance.sum(-1, keepdims=True)
    share = importance / jnp.where(total == 0, 1, total)  # no head of a value without a gradient
    return jnp.einsum("bh,bhqn->bqn", share, attention, precision="highest")


_STEPS = {"steps": (2, 10_000)}  # one would be the path's beginning alone
_HEADS = replace(EXACT, probe=rulesets.probing_with_value(_by_head))


@method("Beyond Intuition, head", published_start_layer=3, ranges=_STEPS)
def _beyond_intuition_head(
    model: Explainable, images: Array, ops: Ops, start_layer: int, lean: bool, *, steps: int = 20
) -> Forward:
    """R = product of (I + sum_h I_h A_h), I_h from the gradient of the value; W o R."""
    integral = _integrated_last_gradient(model, images, steps)
    output, product = attention_product(model, images, _HEADS, start_layer, lean)
    return output, lambda gradient: integral(gradient) * product(gradient)


@method("Beyond Intuition, token", published_start_layer=5, ranges=_STEPS)
def _beyond_intuition_token(
    model: Explainable, images: Array, ops: Ops, start_layer: int, lean: bool, *, steps: int = 20
) -> Forward:
    """R = product of (I + E[A] diag(m)), m_j = |v_j W_proj| / |h_j|; W o |R|. R is the same for every value."""
    encoded, rotate, matrices = embedded(model, images), model.rotation(), []
    for number, block in enumerate(model.blocks):
        inputs = encoded
        encoded, attention = block(encoded, EXACT, rotate=rotate)
        if number >= start_layer:
            matrices.append(attention.mean(1) * _value_norms(block, inputs)[:, None])
    weights = model.pooling_weights(encoded)
    row = transformer_attribution(matrices, weights)[:, model.prefix_tokens :]
    relations = jnp.abs(on_grid(model, row))
    integral = _integrated_last_gradient(model, images, steps)
    return model.classify(encoded, EXACT), lambda gradient: integral(gradient) * relations


def _value_norms(block: Any, inputs: Array) -> Array:
    """|v_j W_proj| / |h_j| of each token of a block's inputs h (B, N, D): v with its bias, the projection without.

    The factor of a LayerScale belongs to the projection.
    """
    values = block.attn.values(block.norm1(inputs, EXACT), EXACT)  # (B, N, D)
    projected = EXACT.linear(values, block.attn.proj.kernel[...])
    projected = block.ls1(projected, EXACT) if block.ls1 else projected
    return jnp.linalg.norm(projected, axis=-1) / jnp.linalg.norm(inputs, axis=-1)


def _integrated_last_gradient(
    model: Explainable, images: Array, steps: int
) -> Callable[[Array], Array]:
    """From a gradient at the output to E[relu(mean over a of G_last at a x)] on the grid, a = 0, ..., 1 in `steps`."""
    shape = model.attention_shapes()[-1]

    def tokens_at(share: Array) -> Array:
        return model.below_last(embedded(model, images * share), EXACT)  # (B, N, D)

    images = images.astype(model.dtype)
    places = jnp.linspace(0, 1, steps, dtype=images.dtype)
    tokens = jax.lax.map(tokens_at, places)  # (steps, B, N, D): shared by all values

    def above(last: Array, probe: Array) -> tuple[Array, Array]:
        block = model.blocks[-1]
        encoded, _ = block(last, EXACT, probe, model.queries, model.rotation())
        return model.classify(encoded, EXACT), encoded

    def one_value(gradient: Array) -> Array:
        def step(total: Array, last: Array) -> tuple[Array, Array]:
            _, pullback, encoded = jax.vjp(lambda p: above(last, p), zeros, has_aux=True)
            return total + pullback(gradient)[0], model.pooling_weights(encoded)

        zeros = jnp.zeros((len(images), *shape), tokens.dtype)
        total, weights = jax.lax.scan(step, zeros, tokens)
        positive_part = positive(total / steps)
        return on_grid(model, patches_of(model, positive_part, weights[-1]).mean(1))  # the image's

    return one_value
