"""Layers: parameters, and the operation of `Ops` that reads them."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from vitx.ops import PLAIN, Array, Ops

ALL = slice(None)


class Linear(nnx.Module):
    """y = x W + b over the last axis, or x W; kernel (in, out), Xavier uniform at first."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(nnx.initializers.xavier_uniform()(rngs(), (inputs, outputs)))
        self.bias: Any = nnx.Param(jnp.zeros(outputs)) if bias else None

    def __call__(
        self, x: Array, ops: Ops = PLAIN, outputs: slice = ALL, bias: Array | None = None
    ) -> Array:
        """X (..., in) -> (..., out), or only the slice `outputs` of the output channels; `bias` in place of its own."""
        if bias is None and self.bias is not None:
            bias = self.bias[outputs]
        return ops.affine(x, self.kernel[:, outputs], bias)


class LayerScale(nnx.Module):
    """A learned factor for each channel (Touvron et al., ICCV 2021); 1 at first, as in a model without."""

    def __init__(self, width: int):
        self.gamma = nnx.Param(jnp.ones(width))

    def __call__(self, x: Array, ops: Ops = PLAIN) -> Array:
        """X (..., width) -> the same shape."""
        return ops.scale_channels(x, self.gamma[...])


class ChannelAffine(nnx.Module):
    """A factor and a shift of each channel: BatchNorm with constant statistics."""

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Array, ops: Ops = PLAIN) -> Array:
        """X (..., channels) -> the same shape."""
        return ops.bias(ops.scale_channels(x, self.scale[...]), self.bias[...])


class Conv(nnx.Module):
    """Convolution with kernel (h, w, in, out), zeros around as in PyTorch: the size stays but for the stride."""

    def __init__(
        self,
        side: int,
        inputs: int,
        outputs: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs(), (side, side, inputs, outputs)))
        self.bias: Any = nnx.Param(jnp.zeros(outputs)) if bias else None
        self.stride, self.dilation = stride, dilation

    def __call__(self, x: Array, ops: Ops = PLAIN) -> Array:
        """X (B, H, W, in) -> (B, ceil(H / stride), ceil(W / stride), out)."""
        kernel = self.kernel[...]
        padding = self.dilation * (kernel.shape[0] // 2)
        y = ops.conv(x, kernel, stride=self.stride, dilation=self.dilation, padding=padding)
        return y if self.bias is None else ops.bias(y, self.bias[...])


class LayerNorm(nnx.Module):
    """LayerNorm over the last axis."""

    def __init__(self, width: int, epsilon: float):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.epsilon = epsilon

    def __call__(self, x: Array, ops: Ops = PLAIN) -> Array:
        """X (..., width) -> the same shape."""
        return ops.layer_norm(x, self.scale[...], self.bias[...], epsilon=self.epsilon)


class GroupNorm(nnx.Module):
    """GroupNorm over (B, H, W, C); 32 groups as in the ResNetV2 stem."""

    epsilon = 1e-5

    def __init__(self, channels: int, groups: int = 32):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.groups = groups

    def __call__(self, x: Array, ops: Ops = PLAIN) -> Array:
        """X (B, H, W, C) -> the same shape."""
        return ops.group_norm(
            x, self.scale[...], self.bias[...], groups=self.groups, epsilon=self.epsilon
        )
