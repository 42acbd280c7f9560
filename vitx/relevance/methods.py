"""The maps: pure functions of what the blocks showed. Batched over images; no map is upsampled or rescaled.

Each returns the class token's row without its own column, (B, N - 1). Attention-like lists have one entry a block,
(B, Q, N) averaged over heads, with Q = 1 in the last block: the class token's row is all that is read of it.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from vitx.ops import Array


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
