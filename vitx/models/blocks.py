"""The blocks of a transformer: attention, MLPs, and the block that joins them."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from vitx.models.design import VIT, Design
from vitx.models.fused import attend, attends
from vitx.models.layers import LayerNorm, LayerScale, Linear
from vitx.models.rotary import Rotation
from vitx.ops import PLAIN, Array, Ops


class Mlp(nnx.Module):
    """Two linear layers around an activation, the name of an operation of `Ops`."""

    def __init__(self, width: int, hidden: int, activation: str = "gelu", *, rngs: nnx.Rngs):
        self.fc1 = Linear(width, hidden, rngs=rngs)
        self.fc2 = Linear(hidden, width, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Array, ops: Ops = PLAIN) -> Array:
        """X (B, N, D) -> (B, N, D)."""
        activation = getattr(ops, self.activation)
        return self.fc2(activation(self.fc1(x, ops)), ops)


class GatedMlp(nnx.Module):
    """fc2(activation(a) b), where a and b are the halves of fc1 (Shazeer, 2020); with a LayerNorm before fc2 or not."""

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: str = "silu",
        epsilon: float | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        self.fc1 = Linear(width, 2 * hidden, rngs=rngs)
        self.norm = None if epsilon is None else LayerNorm(hidden, epsilon)
        self.fc2 = Linear(hidden, width, rngs=rngs)
        self.activation, self.hidden = activation, hidden

    def __call__(self, x: Array, ops: Ops = PLAIN) -> Array:
        """X (B, N, D) -> (B, N, D)."""
        gate = getattr(ops, self.activation)(self.fc1(x, ops, slice(0, self.hidden)))
        product = ops.multiply(gate, self.fc1(x, ops, slice(self.hidden, None)))
        return self.fc2(product if self.norm is None else self.norm(product, ops), ops)


class Attention(nnx.Module):
    """Multi-head self-attention with one joint projection to queries, keys and values."""

    def __init__(self, width: int, heads: int, biases: str = "all", *, rngs: nnx.Rngs):
        self.qkv = Linear(width, 3 * width, biases == "all", rngs=rngs)
        self.q_bias: Any = nnx.Param(jnp.zeros(width)) if biases == "no key" else None
        self.v_bias: Any = nnx.Param(jnp.zeros(width)) if biases == "no key" else None
        self.proj = Linear(width, width, rngs=rngs)
        self.heads = heads

    def __call__(
        self,
        x: Array,
        ops: Ops = PLAIN,
        probe: Array | None = None,
        queries: int | None = None,
        rotate: Rotation | None = None,
    ) -> tuple[Array, Array]:
        """X (B, N, D) -> output (B, Q, D) of the first `queries` tokens, and attention (B, heads, Q, N)."""
        width = x.shape[-1]
        q_bias = None if self.q_bias is None else self.q_bias[...]
        query = self.qkv(x[:, :queries], ops, slice(0, width), q_bias)  # (B, Q, D)
        key = self.qkv(x, ops, slice(width, 2 * width))  # (B, N, D)
        value = self.values(x, ops)  # (B, N, D)
        query, key, value = self._split(query), self._split(key), self._split(value)
        if rotate is not None:
            query, key = rotate(query, ops), rotate(key, ops)  # (B, heads, Q or N, d)

        factor = (width // self.heads) ** -0.5
        scores = ops.attention_scores(query, key)  # (B, heads, Q, N)
        attention = ops.probe(ops.softmax(ops.scale(scores, factor=factor)), probe)
        if ops is PLAIN and probe is None and attends(query):
            # Under jit the attention above is then computed only where it is read.
            mixed = attend(query, key, value, factor=factor)
        else:
            mixed = ops.apply_attention(attention, value)  # (B, heads, Q, d)
        mixed = mixed.transpose(0, 2, 1, 3)  # (B, Q, heads, d)
        return self.proj(mixed.reshape(*mixed.shape[:2], width), ops), attention

    def values(self, x: Array, ops: Ops = PLAIN) -> Array:
        """The heads' values of X (B, N, D), side by side: (B, N, D)."""
        bias = None if self.v_bias is None else self.v_bias[...]
        return self.qkv(x, ops, slice(2 * x.shape[-1], None), bias)

    def _split(self, x: Array) -> Array:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(0, 2, 1, 3)


class Block(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        epsilon: float,
        design: Design = VIT,
        *,
        rngs: nnx.Rngs,
    ):
        self.norm1 = LayerNorm(width, epsilon)
        self.attn = Attention(width, heads, design.qkv_bias, rngs=rngs)
        self.ls1 = LayerScale(width) if design.layer_scale else None
        self.norm2 = LayerNorm(width, epsilon)
        norm = epsilon if design.mlp_norm else None
        self.mlp: Mlp | GatedMlp = (
            GatedMlp(width, hidden, design.activation, norm, rngs=rngs)
            if design.mlp == "gated"
            else Mlp(width, hidden, design.activation, rngs=rngs)
        )
        self.ls2 = LayerScale(width) if design.layer_scale else None

    def __call__(
        self,
        x: Array,
        ops: Ops = PLAIN,
        probe: Array | None = None,
        queries: int | None = None,
        rotate: Rotation | None = None,
    ) -> tuple[Array, Array]:
        """X (B, N, D) -> the first `queries` tokens (B, Q, D), and attention (B, heads, Q, N).

        `probe`: zeros added to the attention matrix, see `vitx.ops.probe`; None adds nothing. `rotate`: rotary
        positions.
        """
        skip, branch = ops.clone(x)
        mixed, attention = self.attn(self.norm1(branch, ops), ops, probe, queries, rotate)
        x = ops.add(skip[:, :queries], self.ls1(mixed, ops) if self.ls1 else mixed)
        skip, branch = ops.clone(x)
        mixed = self.mlp(self.norm2(branch, ops), ops)
        return ops.add(skip, self.ls2(mixed, ops) if self.ls2 else mixed), attention
