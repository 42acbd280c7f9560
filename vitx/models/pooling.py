"""How the output reads the tokens: the weight of each, and attention pooling."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.lax import Precision

from vitx.models.blocks import Mlp
from vitx.models.design import Design
from vitx.models.layers import LayerNorm, Linear
from vitx.ops import PLAIN, Array, Ops, linear


class AttentionPool(nnx.Module):
    """Multi-head attention of a learned probe over the tokens, and an MLP with a skip connection.

    Zhai et al., "Scaling Vision Transformers", CVPR 2022; the pooling of SigLIP (ICCV 2023).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        epsilon: float,
        activation: str,
        *,
        rngs: nnx.Rngs,
    ):
        self.latent = nnx.Param(0.02 * jax.random.normal(rngs(), (1, 1, width)))
        self.q = Linear(width, width, rngs=rngs)
        self.kv = Linear(width, 2 * width, rngs=rngs)
        self.proj = Linear(width, width, rngs=rngs)
        self.norm = LayerNorm(width, epsilon)
        self.mlp = Mlp(width, hidden, activation, rngs=rngs)
        self.heads = heads

    def __call__(self, tokens: Array, ops: Ops = PLAIN) -> Array:
        """Tokens (B, N, D) -> (B, 1, D)."""
        batch, count, width = tokens.shape
        value = self.kv(tokens, ops, slice(width, None))  # (B, N, D)
        value = value.reshape(batch, count, self.heads, -1).transpose(
            0, 2, 1, 3
        )  # (B, heads, N, d)
        mixed = ops.pool_values(self.attention(tokens, ops), value).transpose(0, 2, 1, 3)
        pooled = self.proj(mixed.reshape(batch, 1, width), ops)
        skip, branch = ops.clone(pooled)
        return ops.add(skip, self.mlp(self.norm(branch, ops), ops))

    def attention(self, tokens: Array, ops: Ops = PLAIN) -> Array:
        """The probe's attention (B, heads, 1, N) to tokens (B, N, D)."""
        batch, count, width = tokens.shape
        # The query is the same for all images, so its product with the keys is a linear layer.
        query = (
            linear(self.latent[0], self.q.kernel[...], precision=Precision.HIGHEST)
            + self.q.bias[...][None]
        )
        query = query.reshape(self.heads, -1, 1)  # (heads, d, 1)
        weight = query * jnp.eye(self.heads, dtype=query.dtype)[:, None]  # (heads, d, heads)
        key = self.kv(tokens, ops, slice(0, width))  # (B, N, D)
        scores = ops.linear(key, weight.reshape(width, self.heads))  # (B, N, heads)
        scores = scores.transpose(0, 2, 1).reshape(batch, self.heads, 1, count)
        return ops.softmax(ops.scale(scores, factor=(width // self.heads) ** -0.5))


def pooling_weights(design: Design, tokens: Array, probe: Array | None = None) -> Array:
    """The weight of each token (B, Q, D) in the output, (B, Q), with sum 1.

    1 for a class token, 1/2 for each of two; 1 / N for each of N patches that are averaged or chosen among; the mean of
    the parts for "class+mean" and "pooled+best"; for attention pooling that of the `probe` (B, heads, 1, N), averaged
    over the heads.
    """
    count, prefix = tokens.shape[1], design.prefix_tokens
    position = jnp.arange(count)
    patches = jnp.where(position < prefix, 0.0, 1 / max(count - prefix, 1))
    first = jnp.where(position == 0, 1.0, 0.0)
    by_pooling = {
        "class": first,
        "class+distillation": jnp.where(position < 2, 0.5, 0.0),
        "class+mean": (first + patches) / 2,
    }
    pooled = by_pooling.get(design.pooling, patches)[None]
    if probe is not None:
        pooled = jnp.pad(probe.mean((1, 2)), ((0, 0), (prefix, 0)))
    by_head = {"best": patches[None], "pooled+best": (pooled + patches[None]) / 2}
    weights = by_head.get(design.head, pooled)
    return jnp.broadcast_to(weights, tokens.shape[:2]).astype(tokens.dtype)
