"""Mean field of the dense CRF with its kernels exact, O(N^2), in JAX.

One step (Kraehenbuehl & Koltun, NeurIPS 2011, Algorithm 1, with the normalisation and the Potts
compatibility of their published code):

    Q <- softmax_l(-U + sum_m compat_m K_m Q),   K_m(i, j) = n_i n_j exp(-|f_i - f_j|^2 / 2)

n_i = (sum_j exp(-|f_i - f_j|^2 / 2))^(-1/2), the pixel itself included. The features f are
positions over sxy, and for the bilateral kernel colours over srgb as well.
"""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array


@dataclass(frozen=True)
class CRFParameters:
    """Widths in pixels and grey levels, weights, and number of iterations (docs/protocol.md, "Labels").

    Raises:
      ValueError: where a width is not above 0, a weight is negative, any is not finite, or iterations are not a whole
        number from 0 up.
    """

    iterations: int = 10
    sxy_gaussian: float = 3
    compat_gaussian: float = 3
    sxy_bilateral: float = 80
    srgb: float = 13
    compat_bilateral: float = 10

    def __post_init__(self) -> None:
        if not isinstance(self.iterations, (int, np.integer)) or self.iterations < 0:
            raise ValueError(f"iterations must be a whole number from 0 up, not {self.iterations}")
        for name in ("sxy_gaussian", "sxy_bilateral", "srgb"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, not {getattr(self, name)}")
        for name in ("compat_gaussian", "compat_bilateral"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be from 0 up and finite, not {getattr(self, name)}")


@partial(jax.jit, static_argnames="parameters")
def mean_field(
    images: Array, probabilities: Array, present: Array, parameters: CRFParameters
) -> Array:
    """Posteriors of every image and set of unaries.

    Args:
      images: uint8 (B, H, W, 3).
      probabilities: floats (B, A, L, H, W); the sets of an image share its kernels.
      present: bool (B, L), at least one label an image; the others stay at probability 0.
      parameters: of the CRF.

    Returns:
      (B, A, L, H, W), summing to 1 over L. Memory: two to three N x N arrays, whatever B is.
    """
    height, width = images.shape[1:3]
    dtype = probabilities.dtype
    # The Gaussian of positions is the product of one along y and one along x.
    narrow = [_gaussian(size, parameters.sxy_gaussian, dtype) for size in (height, width)]
    narrow = [_normalise(kernel) for kernel in narrow]
    wide = jnp.kron(*(_gaussian(size, parameters.sxy_bilateral, dtype) for size in (height, width)))

    def one(inputs: tuple[Array, Array, Array]) -> Array:
        image, unnormalised, labels = inputs
        kernel = wide * jnp.exp(_squared_distances(image, dtype) / (-2 * parameters.srgb**2))
        root = lax.rsqrt(kernel.sum(1, keepdims=True))  # (N, 1)
        log_unary = jnp.log(jnp.clip(unnormalised, 1e-5, 1))  # (A, L, H, W)
        log_unary = jnp.where(labels[None, :, None, None], log_unary, -jnp.inf)
        log_unary = log_unary.transpose(2, 3, 0, 1)  # (H, W, A, L)

        def step(_: int, q: Array) -> Array:
            columns = q.reshape(height * width, -1)  # (N, A L)
            near = jnp.einsum("yu,xv,uval->yxal", *narrow, q, precision="highest")
            alike = root * jnp.matmul(kernel, root * columns, precision="highest")
            message = (
                parameters.compat_gaussian * near
                + parameters.compat_bilateral * alike.reshape(q.shape)
            )
            return jax.nn.softmax(log_unary + message, axis=-1)

        start = jax.nn.softmax(log_unary, axis=-1)
        return lax.fori_loop(0, parameters.iterations, step, start).transpose(2, 3, 0, 1)

    return lax.map(one, (images, probabilities, present))


def _gaussian(size: int, sigma: float, dtype: jnp.dtype) -> Array:
    """exp(-(i - j)^2 / 2 sigma^2), (size, size)."""
    place = np.arange(size)
    return jnp.asarray(np.exp(-0.5 * ((place[:, None] - place[None]) / sigma) ** 2), dtype)


def _normalise(kernel: Array) -> Array:
    root = lax.rsqrt(kernel.sum(1))
    return root[:, None] * kernel * root[None]


def _squared_distances(image: Array, dtype: jnp.dtype) -> Array:
    """|c_i - c_j|^2 of the colours of uint8 (H, W, 3), (N, N).

    As one product, (-2 c_i, |c_i|^2, 1) . (c_j, 1, |c_j|^2): every term is a whole number that
    float32 holds, so nothing is lost to cancellation.
    """
    colours = image.reshape(-1, 3).astype(dtype)
    squares = jnp.square(colours).sum(1, keepdims=True)
    ones = jnp.ones_like(squares)
    left = jnp.concatenate([-2 * colours, squares, ones], axis=1)
    right = jnp.concatenate([colours, ones, squares], axis=1)
    return jnp.matmul(left, right.T, precision="highest")
