"""Attention by a kernel that forms no matrix of attention, for training and prediction."""

from typing import Literal

import jax
import jax.numpy as jnp

from vitx import parallel
from vitx.ops import Array


def attend(
    query: Array,
    key: Array,
    value: Array,
    *,
    factor: float,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Array:
    """The product of softmax(QK^T times a factor) and V by a fused kernel.

    Query (B, H, Q, D), key and value (B, H, N, D) -> (B, H, Q, D), see `jax.nn.dot_product_attention`.
    """
    heads_last = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
    with jax.numpy_dtype_promotion("standard"):  # its own sums are float32
        mixed = jax.nn.dot_product_attention(
            *heads_last, scale=factor, implementation=implementation
        )
    return mixed.transpose(0, 2, 1, 3)


def attends(query: Array) -> bool:
    """Whether there is a fused kernel for queries (B, H, Q, D).

    cuDNN's takes half precision and D in eights up to 128, on GPUs of compute capability 8.0 (A100) and above.
    """
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    width = query.shape[-1]
    fits = half and width <= 128 and width % 8 == 0
    return fits and parallel.compute_capability() >= parallel.AMPERE
