"""The explanation methods. Batched over images; no map is upsampled or rescaled.

The first half has the maps as pure functions of attention, gradient and relevance. Each returns the class token's row
without its own column, (B, N - 1). Lists have one entry a block, (B, Q, N) averaged over heads, with Q = 1 in the last
block, of which only the class token's row is read.

The second half has one function a method: it runs the forward pass, and `method` registers it with all that the
comparison, the tables and the reports must know. A new method is one such function.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from vitx.ops import Array, Ops
from vitx.relevance import rulesets

Forward = tuple[Array, Callable[[Array], Array]]
"""Logits (B, C), and a function from one-hot rows (B, C) to raw maps (B, h, w)."""
Run = Callable[[Any, Array, Ops, int, bool], Forward]
"""(model, images (B, H, W, 3), operations, first block of the product, lean memory) -> `Forward`."""


def transformer_attribution(attributions: Sequence[Array], start_layer: int) -> Array:
    """Product of (I + A_l) from `start_layer` up, A_l = mean over heads of relu(gradient * relevance).

    Chefer et al., CVPR 2021, eq. 13-14. Rows are not normalised.
    """
    return _follow_class_token(attributions, start_layer, row_normalised=False)


def rollout(attentions: Sequence[Array], start_layer: int) -> Array:
    """Attention rollout (Abnar & Zuidema, 2020): product of the row-normalised (I + A_l)."""
    return _follow_class_token(attentions, start_layer, row_normalised=True)


def raw_attention(attention: Array) -> Array:
    """The last block's attention (B, heads, Q, N), mean over heads."""
    return attention[:, :, 0, 1:].mean(1)


def partial_lrp(relevance: Array) -> Array:
    """The last block's attention relevance (B, heads, Q, N), positive part, mean over heads (Voita et al., 2019)."""
    return _positive(relevance[:, :, 0, 1:]).mean(1)


def gradcam(attention: Array, gradient: Array) -> Array:
    """GradCAM on the last block's attention: heads weighted by the spatial mean of their gradient, then ReLU.

    Both (B, heads, Q, N).
    """
    weight = gradient[:, :, 0, 1:].mean(-1, keepdims=True)  # (B, heads, 1)
    return _positive((attention[:, :, 0, 1:] * weight).mean(1))


def _positive(x: Array) -> Array:
    """The positive part; NaN stays NaN, which XLA's maximum, and so `jax.nn.relu`, may lose on a CPU."""
    return jnp.where(x < 0, 0, x)


def _follow_class_token(
    matrices: Sequence[Array], start_layer: int, *, row_normalised: bool
) -> Array:
    # Row 0 of a product of matrices is a chain of vector-matrix products: N^2 a block, not N^3.
    last = matrices[-1]
    row = jnp.zeros_like(last[:, 0]).at[:, 0].set(1.0)  # (B, N)
    for matrix in reversed(matrices[start_layer:]):
        if (
            row_normalised
        ):  # rows of I + A sum to 1 + sum(A); the last block's one row scales all of e_0
            row = row / (1 + matrix.sum(-1))
        queries = matrix.shape[1]
        row = row + jnp.einsum("bq,bqn->bn", row[:, :queries], matrix, precision="highest")
    return row[:, 1:]


@dataclass(frozen=True)
class Method:
    """An explanation method.

    Attributes:
      name: as in `vitx.explain`.
      title: in tables and on pages.
      run: the forward pass, and what goes back from a class.
      by_class: whether its maps depend on the class.
      rule_sets: its operations by the name of the rules; empty where it needs no relevance rules.
      published_start_layer: the first block of its product in the published tables; None where it has no product.
    """

    name: str
    title: str
    run: Run
    by_class: bool
    rule_sets: Mapping[str, Ops]
    published_start_layer: int | None

    def operations(self, rules: str) -> Ops:
        """The operations under "published" or "stable" rules; plain ones at full precision where it has no rules."""
        return self.rule_sets[rules] if self.rule_sets else rulesets.EXACT


_REGISTERED: dict[str, Method] = {}
REGISTRY: Mapping[str, Method] = MappingProxyType(_REGISTERED)
"""All methods by name, in the order of the published tables."""

_LRP_RULES = {"published": rulesets.LRP, "stable": rulesets.STABLE_LRP}


def method(
    title: str,
    *,
    by_class: bool = True,
    rule_sets: Mapping[str, Ops] = MappingProxyType({}),
    published_start_layer: int | None = None,
) -> Callable[[Run], Run]:
    """Registers a function as the method of its name, less the leading underscore; see `Method`."""

    def register(run: Run) -> Run:
        name = run.__name__.removeprefix("_")
        _REGISTERED[name] = Method(name, title, run, by_class, rule_sets, published_start_layer)
        return run

    return register


@method("rollout", by_class=False, published_start_layer=1)
def _rollout(model: Any, images: Array, ops: Ops, start_layer: int, lean: bool) -> Forward:
    encoded, attentions = model.encode(_tokens(model, images), ops)
    maps = _on_grid(model, rollout([a.mean(1) for a in attentions], start_layer))
    return model.classify(encoded, ops), lambda hot: maps


@method("raw attention", by_class=False)
def _raw_attention(model: Any, images: Array, ops: Ops, start_layer: int, lean: bool) -> Forward:
    encoded, attentions = model.encode(_tokens(model, images), ops)
    maps = _on_grid(model, raw_attention(attentions[-1]))
    return model.classify(encoded, ops), lambda hot: maps


@method("GradCAM")
def _gradcam(model: Any, images: Array, ops: Ops, start_layer: int, lean: bool) -> Forward:
    logits, attention, pullback = last_block(model, images, ops)
    return logits, lambda hot: _on_grid(model, gradcam(attention, pullback(hot)))


@method("LRP", rule_sets=_LRP_RULES)
def _lrp(model: Any, images: Array, ops: Ops, start_layer: int, lean: bool) -> Forward:
    def forward(features: Array) -> Array:
        encoded = _encoded(model, model.embed(features, ops), ops, None, lean)
        return model.classify(encoded, ops)

    logits, pullback = jax.vjp(forward, model.features(images, rulesets.EXACT))
    return _under_rules(model, images, logits, lambda hot: pullback(hot)[0].sum(-1))


@method("partial LRP", rule_sets=_LRP_RULES)
def _partial_lrp(model: Any, images: Array, ops: Ops, start_layer: int, lean: bool) -> Forward:
    logits, _, pullback = last_block(model, images, ops)
    return _under_rules(
        model, images, logits, lambda hot: _on_grid(model, partial_lrp(pullback(hot)))
    )


@method(
    "transformer attribution",
    rule_sets={"published": rulesets.CHEFER_PAIRS, "stable": rulesets.STABLE_PAIRS},
    published_start_layer=0,
)
def _transformer_attribution(
    model: Any, images: Array, ops: Ops, start_layer: int, lean: bool
) -> Forward:
    return attribution(model, images, start_layer, ops, lean=lean)


def attribution(
    model: Any, images: Array, start_layer: int, ops: Ops, *, lean: bool = False
) -> Forward:
    """Transformer attribution under any rule set of pairs; `rulesets.attribution_rule_set` builds further ones.

    Args:
      model: a `VisionTransformer`.
      images: normalised, (B, H, W, 3).
      start_layer: first block of the product.
      ops: a rule set of pairs.
      lean: computes the blocks anew on the way back.

    Returns:
      logits (B, classes), and a function from one-hot rows (B, classes) to maps (B, h, w).
    """
    tokens = _tokens(model, images)

    def forward(probes: list[Array]) -> Any:
        encoded = _encoded(model, rulesets.twice(tokens), ops, [None] * start_layer + probes, lean)
        return model.classify(encoded, ops)

    counts = _queries(model, tokens)[start_layer:]
    probes = [jnp.zeros((len(tokens), q, tokens.shape[1]), tokens.dtype) for q in counts]
    logits, pullback = jax.vjp(forward, probes)

    def one_class(hot: Array) -> Array:
        (attributions,) = pullback(rulesets.twice(hot))
        return _on_grid(model, transformer_attribution(attributions, 0))

    return _under_rules(model, images, logits.gradient, one_class)


def last_block(model: Any, images: Array, ops: Ops) -> Any:
    """Logits, the last block's attention, and the pullback to it, both (B, heads, 1, N)."""
    tokens = _tokens(model, images)
    batch, count, _ = tokens.shape
    free = [None] * (len(model.blocks) - 1)

    def forward(probe: Array) -> tuple[Array, Array]:
        encoded, attentions = model.encode(tokens, ops, [*free, probe])
        return model.classify(encoded, ops), attentions[-1]

    probe = jnp.zeros((batch, model.blocks[-1].attn.heads, 1, count), tokens.dtype)
    logits, pullback, attention = jax.vjp(forward, probe, has_aux=True)
    return logits, attention, lambda hot: pullback(hot)[0]


def _under_rules(
    model: Any, images: Array, logits: Array, one_class: Callable[[Array], Array]
) -> Forward:
    """Gives the logits the model's gradient, and the maps none: under relevance rules a cotangent is no gradient."""
    return _with_gradient(model, images, logits), lambda hot: jax.lax.stop_gradient(one_class(hot))


@jax.custom_vjp
def _with_gradient(model: Any, images: Array, logits: Array) -> Array:
    """The logits, whose gradient is that of model(images). Only a caller who differentiates pays for it."""
    return logits


def _logits_forward(model: Any, images: Array, logits: Array) -> tuple[Array, Any]:
    _, pullback = jax.vjp(lambda model, images: model(images, rulesets.EXACT), model, images)
    return logits, pullback


def _logits_backward(pullback: Any, cotangent: Array) -> tuple[Any, ...]:
    return *pullback(cotangent), jnp.zeros_like(cotangent)


_with_gradient.defvjp(_logits_forward, _logits_backward)


def _encoded(
    model: Any, tokens: Any, ops: Ops, probes: list[Array | None] | None, lean: bool
) -> Any:
    return model.encode_lean(tokens, ops, probes) if lean else model.encode(tokens, ops, probes)[0]


def _tokens(model: Any, images: Array) -> Array:
    return model.embed(model.features(images, rulesets.EXACT), rulesets.EXACT)


def _queries(model: Any, tokens: Array) -> list[int]:
    return [tokens.shape[1]] * (len(model.blocks) - 1) + [1]


def _on_grid(model: Any, row: Array) -> Array:
    return row.reshape(len(row), *model.grid)
