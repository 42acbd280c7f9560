"""The precision of an explanation's matrix products, which accelerators trade for speed."""

from contextlib import AbstractContextManager
from typing import Final

import jax
import jax.numpy as jnp
from jax import lax

from vitx.ops import Array

_GPU: Final = {"high": "BF16_BF16_F32_X3", "tf32": "TF32_TF32_F32"}
_TPU: Final = {"high": "high"}  # three passes of bfloat16
PRECISIONS: Final = ("highest", *_GPU)


def require_precision(precision: str) -> None:
    """Raises ValueError for an unknown precision, or one that the device does not have."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision == "tf32" and jax.default_backend() == "tpu":
        raise ValueError('a TPU has no TF32: give precision="high"')


def products(precision: str) -> AbstractContextManager[None]:
    """Matrix products of float32 have the precision where they are traced, see `of_product`.

    "highest" is full float32; "high" three products of bfloat16 parts, added in float32; "tf32" one of operands rounded
    to TensorFloat-32. A CPU computes float32 whatever is asked for.
    """
    names = {"gpu": _GPU, "tpu": _TPU}.get(jax.default_backend(), {})
    return jax.default_matmul_precision(names.get(precision, "highest"))


def of_product(x: Array) -> lax.Precision | lax.DotAlgorithmPreset:
    """The precision of a product of x: that of `products`, and full precision outside of it, whatever JAX's default.

    Relevance is ill-conditioned: the reduced precision that GPUs and TPUs default to would change the maps.
    """
    chosen = jax.default_matmul_precision.value
    if x.dtype != jnp.float32:
        return lax.Precision.HIGHEST
    if chosen in _GPU.values():
        return lax.DotAlgorithmPreset[chosen]
    return lax.Precision.HIGH if chosen in _TPU.values() else lax.Precision.HIGHEST
