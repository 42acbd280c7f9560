"""Layers: parameters, and the operation of `Ops` that reads them."""

import jax.numpy as jnp
from flax import nnx

from vitx.ops import PLAIN, Array, Ops

ALL = slice(None)


class Linear(nnx.Module):
    """y = x W + b over the last axis; kernel (in, out), Xavier uniform at first."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(nnx.initializers.xavier_uniform()(rngs(), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: Array, ops: Ops = PLAIN, outputs: slice = ALL) -> Array:
        """X (..., in) -> (..., out), or only the slice `outputs` of the output channels."""
        return ops.bias(ops.linear(x, self.kernel[:, outputs]), self.bias[outputs])


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
