"""Operations with another gradient: rules of relevance in units of a gradient.

X times such a gradient is relevance. Values are those of `EXACT` to the bit. In all sets LayerNorm's 1 / sigma is a
constant (its mean is not), and an activation's derivative is f(u) / u (Ali et al., ICML 2022; Achtibat et al.,
"AttnLRP", ICML 2024).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from vitx import ops as plain
from vitx.ops import Array, Ops
from vitx.relevance.precision import of_product
from vitx.relevance.rulesets import EXACT

_OFFSET = 1e-10  # of the divisions by an activation's input and by a layer's
_GAMMA_OFFSET = 1e-6


def _constant_deviation(x: Array, weight: Array, shift: Array, *, epsilon: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    inverse = lax.stop_gradient(lax.rsqrt(jnp.square(centred).mean(-1) + epsilon))[..., None]
    axes = tuple(range(x.ndim - 1))
    weight, shift = jnp.expand_dims(weight, axes), jnp.expand_dims(shift, axes)
    return centred * inverse * weight + shift


def _ratio(activation: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The activation f with the derivative f(u) / (u + 1e-10)."""

    @jax.custom_jvp
    def apply(u: Array) -> Array:
        return activation(u)

    @apply.defjvp
    def derivative(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        (u,), (du,) = primals, tangents
        y = apply(u)
        return y, y / (u + _OFFSET) * du

    return apply


@jax.custom_vjp
def _half(x: Array) -> Array:
    """X with half of its gradient."""
    return x


_half.defvjp(lambda x: (x, None), lambda _, cotangent: (cotangent / 2,))


def _halved(product: Callable[..., Array]) -> Callable[[Array, Array], Array]:
    return lambda x, y: product(_half(x), _half(y))


def _first_constant(product: Callable[..., Array]) -> Callable[[Array, Array], Array]:
    return lambda x, y: product(lax.stop_gradient(x), y)


_COMMON = replace(
    EXACT,
    layer_norm=_constant_deviation,
    multiply=_halved(plain.multiply),
    **{name: _ratio(getattr(plain, name)) for name in ("gelu", "quick_gelu", "tanh_gelu", "silu")},
)
ATTN_LRP = replace(
    _COMMON,
    attention_scores=_halved(EXACT.attention_scores),
    apply_attention=_halved(EXACT.apply_attention),
    pool_values=_halved(EXACT.pool_values),
)
"""AttnLRP (Achtibat et al., ICML 2024) with epsilon 0.

The factors of a product take half each, the softmax has its own gradient."""
CP_LRP = replace(
    _COMMON,
    apply_attention=_first_constant(EXACT.apply_attention),
    pool_values=_first_constant(EXACT.pool_values),
)
"""Conservative propagation (Ali et al., ICML 2022), where attention is a constant and the values take everything."""


@dataclass(frozen=True)
class GammaOps(Ops):
    """A set of operations whose linear layers favour what has the sign of their output, by `gamma` (see `_gamma`)."""

    gamma: float = 0.0
    gamma_pixels: float = 0.0

    def affine(self, x: Array, weight: Array, b: Array | None, *, pixels: bool = False) -> Array:
        """As `Ops.affine`, under the gamma rule."""
        b = jnp.zeros(weight.shape[-1], weight.dtype) if b is None else b
        return _gamma(self.gamma_pixels if pixels else self.gamma, x, weight, b)


def with_gamma(ops: Ops, gamma: float, gamma_pixels: float) -> GammaOps:
    """A set of operations with the gamma rule in its linear layers, and in the one that reads pixels."""
    return GammaOps(**vars(ops), gamma=gamma, gamma_pixels=gamma_pixels)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gamma(gamma: float, x: Array, weight: Array, b: Array) -> Array:
    """X W + b under the gamma rule (Montavon et al., 2019, for outputs of either sign as in zennit) in closed form.

    With z = x W + b, s = sign(z), M = |x| |W| + |b|, d = z + gamma / 2 (z + s M) + 1e-6 s and S = g z / d:
    R_x = (1 + gamma / 2) x (S W^T) + gamma / 2 |x| ((S s) |W|^T), and the gradient is R_x / (x + 1e-10 sign(x)).
    |d| is at least |z|, so that nothing cancels.
    """
    return _affine(x, weight, b)


def _affine(x: Array, weight: Array, b: Array) -> Array:
    return plain.bias(plain.linear(x, weight, of_product(x)), b)


def _gamma_forward(
    gamma: float, x: Array, weight: Array, b: Array
) -> tuple[Array, tuple[Array, ...]]:
    z = _affine(x, weight, b)
    sign = _sign(z)
    magnitude = _affine(jnp.abs(x), jnp.abs(weight), jnp.abs(b))
    denominator = z + gamma / 2 * (z + sign * magnitude) + _GAMMA_OFFSET * sign
    return z, (x, weight, z / denominator, sign)


def _gamma_backward(
    gamma: float, kept: tuple[Array, ...], cotangent: Array
) -> tuple[Array, None, None]:
    x, weight, ratio, sign = kept
    product = partial(jnp.matmul, precision=of_product(cotangent))
    share = cotangent * ratio
    own, favoured = product(share, weight.T), product(share * sign, jnp.abs(weight).T)
    relevance = (1 + gamma / 2) * x * own + gamma / 2 * jnp.abs(x) * favoured
    return relevance / (x + _OFFSET * _sign(x)), None, None


_gamma.defvjp(_gamma_forward, _gamma_backward)


def _sign(x: Array) -> Array:
    """1 or -1; 1 for 0."""
    return jnp.where(x < 0, -1, 1).astype(x.dtype)
