"""Mean field of the dense CRF for images of any size, in JAX, with its kernels on permutohedral lattices.

The step is that of `crf_exact`, with both kernels filtered as the published code does (Kraehenbuehl & Koltun, NeurIPS
2011): in two dimensions, and in five. The lattices of an image serve all its unaries and all iterations.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vitx.pseudomasks.crf_exact import CRFParameters
from vitx.pseudomasks.permutohedral import (
    MAX_CODES,
    Box,
    Lattice,
    Splat,
    link,
    locate,
    round_up,
    smooth,
)

Array = jax.Array

# Filtered at once: XLA's loops for CPU take less over 8 channels than over 6, and far less than over 16.
CHANNELS = 8


def mean_field(
    images: np.ndarray, probabilities: Any, present: np.ndarray, parameters: CRFParameters
) -> Any:
    """Posteriors of every image and set of unaries.

    Sizes nearby share a compiled program: pixels are padded to one of four numbers between powers of two, labels that
    are present to one of two, and vertices, which are counted first, to a power of two. No padding changes anything.

    Args:
      images: uint8 (B, H, W, 3).
      probabilities: floats (B, A, L, H, W), NumPy's or JAX's; the sets of an image share its lattices.
      present: bool (B, L), at least one label an image; the others stay at probability 0.
      parameters: of the CRF.

    Returns:
      float32 (B, A, L, H, W), NumPy's or JAX's as `probabilities`, summing to 1 over L.

    Raises:
      ValueError: see `boxes`.
    """
    (height, width), shape = images.shape[1:3], probabilities.shape
    xp, pixels = probabilities.__array_namespace__(), height * width
    near, alike = boxes(height, width, parameters)
    # Labels that are present come first, and no more are looked at than an image has of them.
    kept = min(round_up(int(present.sum(1).max()), 2), shape[2])
    chosen = np.argsort(~present, axis=1, kind="stable")[:, :kept].astype(np.int32)

    fill = (0, round_up(pixels, 4) - pixels)
    colours = np.pad(images.reshape(len(images), pixels, 3), ((0, 0), fill, (0, 0)))
    flat = probabilities.reshape(*shape[:3], pixels).astype(xp.float32)
    flat = xp.pad(flat, ((0, 0), (0, 0), (0, 0), fill))
    size = np.array([height, width], np.int32)
    splats = _locate(colours, size, (near, alike), (near.codes, alike.codes), parameters)
    least = max(pixels // 8, 2048)  # few images have fewer vertices, and gain little
    rows = [max(int(np.max(rows)), least) for rows in jax.device_get(_rows(splats))]
    capacities = round_up(rows[0]), round_up(rows[1])
    result = _infer(flat, present, chosen, size, splats, (near, alike), capacities, parameters)
    return xp.asarray(result)[..., :pixels].reshape(shape)


def boxes(height: int, width: int, parameters: CRFParameters) -> tuple[Box, Box]:
    """The boxes of an image's two lattices: of places, and of places and colours.

    Raises:
      ValueError: where one has more than 2^30 codes. With sxy 80 there is room for 2,000 x 2,000 pixels with srgb from
        2.5 up, or 20,000 x 20,000 with srgb 13.
    """
    p, ends = parameters, np.array([width - 1, height - 1])
    try:
        near = Box.of([*ends / p.sxy_gaussian])
        return near, Box.of([*ends / p.sxy_bilateral, *[255 / p.srgb] * 3])
    except OverflowError:
        raise ValueError(
            f"images of {height} x {width} have more than {MAX_CODES} lattice codes with sxy_gaussian="
            f"{p.sxy_gaussian:g}, sxy_bilateral={p.sxy_bilateral:g} and srgb={p.srgb:g}: use larger widths"
        ) from None


@functools.partial(jax.jit, static_argnames=("codes", "parameters"))
def _locate(
    images: Array,
    size: Array,
    boxes: tuple[Box, Box],
    codes: tuple[int, int],
    parameters: CRFParameters,
) -> tuple[Splat, Splat]:
    """Where pixels (B, N, 3) lie: in the lattice of places, and in each image's of places and colours."""
    pixel = jnp.arange(images.shape[1], dtype=jnp.int32)
    valid = pixel < size[0] * size[1]
    place = jnp.stack([pixel % size[1], pixel // size[1]]).astype(jnp.float32)
    near = locate(place / np.float32(parameters.sxy_gaussian), valid, boxes[0], codes[0])

    def one(image: Array) -> Splat:
        colours = image.T.astype(jnp.float32) / np.float32(parameters.srgb)
        features = jnp.concatenate([place / np.float32(parameters.sxy_bilateral), colours])
        return locate(features, valid, boxes[1], codes[1])

    return near, lax.map(one, images)


@jax.jit
def _rows(splats: tuple[Splat, Splat]) -> tuple[Array, Array]:
    return splats[0].rows, splats[1].rows


@functools.partial(jax.jit, static_argnames=("capacities", "parameters"))
def _infer(
    probabilities: Array,
    present: Array,
    chosen: Array,
    size: Array,
    splats: tuple[Splat, Splat],
    boxes: tuple[Box, Box],
    capacities: tuple[int, int],
    parameters: CRFParameters,
) -> Array:
    """Posteriors (B, A, L, N), of the labels chosen, int32 (B, L')."""
    n = probabilities.shape[-1]
    valid = jnp.arange(n, dtype=jnp.int32) < size[0] * size[1]
    near = _Kernel.of(link(splats[0], boxes[0], capacities[0]), valid, parameters.compat_gaussian)

    def one(inputs: tuple[Array, Array, Array, Splat]) -> Array:
        unnormalised, present, chosen, splat = inputs
        lattice = link(splat, boxes[1], capacities[1])
        alike = _Kernel.of(lattice, valid, parameters.compat_bilateral)
        log_unary = jnp.log(jnp.clip(unnormalised[:, chosen].swapaxes(0, 1), 1e-5, 1))
        log_unary = jnp.where(present[chosen][:, None, None], log_unary, -jnp.inf)  # (L', A, N)

        def step(_: int, q: Array) -> Array:
            x = q.reshape(-1, n)  # (L' A, N)
            return _softmax(log_unary + (near.message(x) + alike.message(x)).reshape(q.shape))

        q = lax.fori_loop(0, parameters.iterations, step, _softmax(log_unary))
        return jnp.zeros_like(unnormalised).at[:, chosen].set(q.swapaxes(0, 1))

    return lax.map(one, (probabilities, present, chosen, splats[1]))


class _Kernel(NamedTuple):
    """compat n_i K_ij n_j with n_i = (sum_j K_ij)^(-1/2)."""

    lattice: Lattice
    root: Array  # (1, N)
    compat: float

    @classmethod
    def of(cls, lattice: Lattice, valid: Array, compat: float) -> "_Kernel":
        norm = smooth(lattice, valid[:, None].astype(jnp.float32)).T
        return cls(lattice, jnp.where(valid[None], lax.rsqrt(norm + 1e-20), 0), compat)

    def message(self, x: Array) -> Array:
        """(C, N) -> (C, N), in groups of channels."""
        channels, n = x.shape
        width = min(round_up(channels), CHANNELS)
        groups = -(-channels // width)
        x = jnp.pad(self.root * x, ((0, groups * width - channels), (0, 0)))
        y = lax.map(lambda x: smooth(self.lattice, x.T).T, x.reshape(groups, width, n))
        return self.compat * self.root * y.reshape(-1, n)[:channels]


def _softmax(logits: Array) -> Array:
    """Of (L, A, N) over L, in loops: XLA would find the largest again for every label, and reduces slowly on CPU."""

    def over_labels(combine: Callable[[Array, Array], Array], start: float, x: Array) -> Array:
        first = jnp.full_like(x[0], start)
        return lax.scan(lambda carry, label: (combine(carry, label), None), first, x)[0][None]

    e = jnp.exp(logits - over_labels(jnp.maximum, -jnp.inf, logits))
    return e / over_labels(jnp.add, 0, e)
