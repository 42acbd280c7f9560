"""The operations a model may use, and `Ops`, the set of them that it is called with.

A model never writes `x + y` or `x @ w`: it calls `ops.add` or `ops.linear`. `PLAIN` is ordinary arithmetic. A rule
set of `vitx.relevance.rulesets` computes the same values, at full float32 precision unless an explanation asks for
less, and its cotangents are relevance. Reshapes, transposes and slices need no operation: their transpose is right for
both. Arrays are positional arguments, constants are keyword arguments.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Precision = lax.Precision | lax.DotAlgorithmPreset | None


def linear(x: Array, weight: Array, precision: Precision = None) -> Array:
    """Product x (..., in) times weight (in, out), without the bias, which takes no relevance."""
    return jnp.matmul(x, weight, precision=precision)


def bias(x: Array, b: Array) -> Array:
    """X (..., C) plus b (C,)."""
    return x + _last_axis(b, x)


def add(x: Array, y: Array) -> Array:
    """Sum of two branches of one shape."""
    return x + y


def clone(x: Array) -> tuple[Array, Array]:
    """One value for two branches: the mirror of `add`."""
    return x, x


def attention_scores(query: Array, key: Array, precision: Precision = None) -> Array:
    """QK^T: query (B, H, Q, D), key (B, H, N, D) -> (B, H, Q, N)."""
    return jnp.einsum("bhqd,bhnd->bhqn", query, key, precision=precision)


def apply_attention(attention: Array, value: Array, precision: Precision = None) -> Array:
    """AV: attention (B, H, Q, N), value (B, H, N, D) -> (B, H, Q, D)."""
    return jnp.einsum("bhqn,bhnd->bhqd", attention, value, precision=precision)


def scale(x: Array, *, factor: float) -> Array:
    """X times a constant."""
    return x * factor


def scale_channels(x: Array, weight: Array) -> Array:
    """X (..., C) times a learned vector (C,): LayerScale (Touvron et al., ICCV 2021)."""
    return x * _last_axis(weight, x)


def multiply(x: Array, y: Array) -> Array:
    """Product of two branches of one shape, as in a gated MLP."""
    return x * y


def rotate(x: Array, cosine: Array, sine: Array) -> Array:
    """Rotary positions (Su et al., 2021) of queries or keys x (B, H, N, D): channel i turns with channel i + D / 2.

    Cosine and sine of the angles are (N, D), or (B, N, D) of each image's own tokens; the sine's first half has the
    opposite sign.
    """
    half = x.shape[-1] // 2
    partner = jnp.concatenate([x[..., half:], x[..., :half]], -1)
    cosine, sine = (table.reshape(-1, 1, *table.shape[-2:]) for table in (cosine, sine))
    return x * cosine + partner * sine


@jax.custom_jvp
def softmax(x: Array) -> Array:
    """Softmax over the last axis."""
    return jax.nn.softmax(x, axis=-1)


@softmax.defjvp
def _softmax_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    y = softmax(x)
    return y, y * (dx - (y * dx).sum(-1, keepdims=True))


@jax.custom_jvp
def gelu(x: Array) -> Array:
    """Exact GELU (erf), as in ViT."""
    return jax.nn.gelu(x, approximate=False)


@gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    cumulative = (1 + lax.erf(x * math.sqrt(0.5))) / 2
    density = jnp.exp(-jnp.square(x) / 2) / math.sqrt(2 * math.pi)
    return gelu(x), (cumulative + x * density) * dx


def quick_gelu(x: Array) -> Array:
    """CLIP's approximation of GELU: x sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


def tanh_gelu(x: Array) -> Array:
    """GELU's approximation by tanh, as in SigLIP."""
    return jax.nn.gelu(x, approximate=True)


def silu(x: Array) -> Array:
    """X sigmoid(x), the gate of SwiGLU."""
    return jax.nn.silu(x)


def layer_norm(x: Array, weight: Array, shift: Array, *, epsilon: float) -> Array:
    """LayerNorm over the last axis, biased variance."""
    centred = x - x.mean(-1, keepdims=True)
    # Axes of 1 come last: XLA moves them past an operation with one reader only, and would then
    # not see that two methods of `explain_many` compute the same forward.
    inverse = lax.rsqrt(jnp.square(centred).mean(-1) + epsilon)[..., None]
    return centred * inverse * _last_axis(weight, x) + _last_axis(shift, x)


def probe(attention: Array, zeros: Array | None) -> Array:
    """Adds a zero probe to the attention, whose cotangent is the gradient or relevance at this point."""
    return attention if zeros is None else attention + zeros


def concatenate(x: Array, y: Array) -> Array:
    """Two values side by side on the last axis."""
    return jnp.concatenate([x, y], -1)


def mean_tokens(x: Array) -> Array:
    """Mean over the tokens: (B, N, D) -> (B, 1, D)."""
    return x.mean(1, keepdims=True)


def best_tokens(x: Array, count: Array) -> Array:
    """Mean over the tokens with the `count` largest values, of each channel: (B, N, C) -> (B, 1, C).

    Their choice has no gradient: only the values above the threshold do.
    """
    return _mean_of_chosen(x, x, count)


def best_tokens_magnitude(x: Array, count: Array) -> Array:
    """The mean size |x| of the values that `best_tokens` chooses, (B, 1, C)."""
    return _mean_of_chosen(x, jnp.abs(x), count)


def _mean_of_chosen(x: Array, values: Array, count: Array) -> Array:
    ranked = jnp.sort(lax.stop_gradient(x), axis=1, descending=True)
    threshold = lax.dynamic_slice_in_dim(ranked, count.astype(int) - 1, 1, axis=1)
    chosen = (x >= threshold).astype(x.dtype)
    return (values * chosen).sum(1, keepdims=True) / chosen.sum(1, keepdims=True)


def pool_values(attention: Array, value: Array, precision: Precision = None) -> Array:
    """`apply_attention` in a pooling layer, whose attention relevance rules hold constant."""
    return apply_attention(attention, value, precision)


def conv(
    x: Array,
    kernel: Array,
    *,
    stride: int,
    dilation: int = 1,
    padding: int | None = None,
    precision: Precision = None,
) -> Array:
    """Convolution of x (B, H, W, C) with kernel (h, w, C, out).

    `padding`: zeros on each side, as in PyTorch; None for TF's 'SAME', asymmetric when strided.
    """
    if kernel.shape[:2] == (1, 1) and not padding:
        # On a CPU its gradients take a half to a quarter of the time of a convolution's.
        return linear(x[:, ::stride, ::stride], kernel[0, 0], precision)
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME" if padding is None else [(padding, padding)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


def group_norm(x: Array, weight: Array, shift: Array, *, groups: int, epsilon: float) -> Array:
    """GroupNorm of x (B, H, W, C): statistics per image over space and the C / groups channels of a group."""
    grouped = x.reshape(*x.shape[:3], groups, -1)  # (B, H, W, G, C / G)
    centred = grouped - grouped.mean((1, 2, 4), keepdims=True)
    variance = jnp.square(centred).mean((1, 2, 4), keepdims=True)
    normal = (centred * lax.rsqrt(variance + epsilon)).reshape(x.shape)
    return normal * _last_axis(weight, x) + _last_axis(shift, x)


def relu(x: Array) -> Array:
    """max(x, 0)."""
    return jax.nn.relu(x)


def max_pool(x: Array, *, stride: int = 2, padding: int | None = None) -> Array:
    """3 x 3 maximum over x (B, H, W, C); `padding` as in `conv`."""
    sides = "SAME" if padding is None else [(0, 0), *[(padding, padding)] * 2, (0, 0)]
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, stride, stride, 1), sides)


def _last_axis(parameter: Array, x: Array) -> Array:
    return jnp.expand_dims(parameter, tuple(range(x.ndim - 1)))


@dataclass(frozen=True)
class Ops:
    """A set of operations, with the signatures of the functions above; equal and hashed by identity of them.

    `pixels` is the linear layer that reads the image itself: its input is bounded, which some rules use.
    `conv`, `group_norm`, `relu` and `max_pool` belong to the hybrid's stem and to CNNs, below every explanation.
    """

    linear: Callable[..., Any] = linear
    pixels: Callable[..., Any] = linear
    bias: Callable[..., Any] = bias
    add: Callable[..., Any] = add
    clone: Callable[..., Any] = clone
    attention_scores: Callable[..., Any] = attention_scores
    apply_attention: Callable[..., Any] = apply_attention
    scale: Callable[..., Any] = scale
    scale_channels: Callable[..., Any] = scale_channels
    multiply: Callable[..., Any] = multiply
    rotate: Callable[..., Any] = rotate
    softmax: Callable[..., Any] = softmax
    gelu: Callable[..., Any] = gelu
    quick_gelu: Callable[..., Any] = quick_gelu
    tanh_gelu: Callable[..., Any] = tanh_gelu
    silu: Callable[..., Any] = silu
    layer_norm: Callable[..., Any] = layer_norm
    probe: Callable[..., Any] = probe
    concatenate: Callable[..., Any] = concatenate
    mean_tokens: Callable[..., Any] = mean_tokens
    best_tokens: Callable[..., Any] = best_tokens
    pool_values: Callable[..., Any] = pool_values
    conv: Callable[..., Any] = conv
    group_norm: Callable[..., Any] = group_norm
    relu: Callable[..., Any] = relu
    max_pool: Callable[..., Any] = max_pool

    def affine(self, x: Array, weight: Array, b: Array | None, *, pixels: bool = False) -> Array:
        """A linear layer with its bias, if it has one; `pixels`: whether it reads the image itself.

        A set whose rule counts the bias as an input overrides it.
        """
        y = (self.pixels if pixels else self.linear)(x, weight)
        return y if b is None else self.bias(y, b)


PLAIN = Ops()
"""Ordinary arithmetic, at the backend's default matrix precision, for training and prediction.

`vitx.models.fused` takes the place of its scores, softmax and product where it can and no probe sees the attention.
"""
