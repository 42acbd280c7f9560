"""Relevance as x times a gradient under other rules: AttnLRP, CP-LRP, LibraGrad.

Each takes one forward and one backward pass. docs/methods.md has the sources and the rules.
"""

import jax

from vitx.explainable import Explainable
from vitx.ops import Array, Ops
from vitx.relevance.gradient_rules import ATTN_LRP, CP_LRP, with_gamma
from vitx.relevance.gradients import from_level, input_x_gradient, summed
from vitx.relevance.methods import under_rules
from vitx.relevance.registry import Forward, method


@method("AttnLRP", above_stem=True)
def _attn_lrp(
    model: Explainable,
    images: Array,
    ops: Ops,
    start_layer: int,
    lean: bool,
    *,
    level: str = "pixels",
) -> Forward:
    """AttnLRP with epsilon 0 (Achtibat et al., ICML 2024; lxt 2.1)."""
    return under_rules(model, images, *input_x_gradient(model, images, ATTN_LRP, level, lean))


@method("AttnLRP, gamma", above_stem=True)
def _attn_lrp_gamma(
    model: Explainable,
    images: Array,
    ops: Ops,
    start_layer: int,
    lean: bool,
    *,
    level: str = "pixels",
    gamma: float = 0.05,
    gamma_pixels: float = 0.25,
) -> Forward:
    """AttnLRP with the gamma rule in linear layers and in the patch embedding; constants of lxt's example."""
    ops = with_gamma(ATTN_LRP, gamma, gamma_pixels)
    return under_rules(model, images, *input_x_gradient(model, images, ops, level, lean))


@method("CP-LRP", above_stem=True)
def _cp_lrp(
    model: Explainable,
    images: Array,
    ops: Ops,
    start_layer: int,
    lean: bool,
    *,
    level: str = "pixels",
) -> Forward:
    """Attention as a constant (Ali et al., ICML 2022; lxt 2.1)."""
    return under_rules(model, images, *input_x_gradient(model, images, CP_LRP, level, lean))


@method("LibraGrad", above_stem=True, of_probability=True)
def _libragrad(
    model: Explainable,
    images: Array,
    ops: Ops,
    start_layer: int,
    lean: bool,
    *,
    level: str = "tokens",
) -> Forward:
    """The rules of CP-LRP on the tokens, of the softmax probability (Mehri et al., CVPR 2025).

    Where float32 rounds the probability to 1, the map is 0 everywhere, as published.
    """
    x, run = from_level(model, images, CP_LRP, level, lean)
    output, pullback = jax.vjp(run, x)

    def one_value(gradient: Array) -> Array:
        (gradient,) = jax.vjp(jax.nn.softmax, output)[1](gradient)
        return summed(model, x * pullback(gradient)[0], level)

    return under_rules(model, images, output, one_value)
