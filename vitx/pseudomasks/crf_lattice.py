"""Mean field of the dense CRF for images of any size, in JAX, with its kernels on permutohedral lattices.

The step is that of `crf_exact`, with both kernels filtered as in the published code (Kraehenbuehl & Koltun, NeurIPS
2011): in two dimensions, and in five. All unaries and iterations of an image share its lattices.
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
    Simplices,
    link,
    locate,
    round_up,
    smooth,
)

Array = jax.Array

# Filtered at once: XLA's loops on a CPU take less time over 8 channels than over 6, and far less than over 16.
CHANNELS = 8
# A smaller capacity than this, or than an eighth of the pixels, would save little and compile more programs.
LEAST_ROWS = 2048


def mean_field(
    images: np.ndarray, probabilities: Any, present: np.ndarray, parameters: CRFParameters
) -> Any:
    """Posteriors of every image and set of unaries.

    Sizes nearby share compiled programs: pixels and lattice codes are padded to one of four numbers between powers of
    two, labels that are present to one of two, and vertices, which are counted first, to a power of two. Padding
    changes the order of sums alone.

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
    xp, (height, width) = probabilities.__array_namespace__(), images.shape[1:3]
    pixels, labels = height * width, present.shape[1]
    gaussian, bilateral = boxes(height, width, parameters)
    # The labels that are present, first; no more than the image with most of them has.
    most = min(round_up(int(present.sum(1).max()), 2), labels)
    sent = np.argsort(~present, axis=1, kind="stable")[:, :most]  # (B, L')
    unnormalised = xp.stack([p[:, some] for p, some in zip(probabilities, sent, strict=True)])

    fill = (0, round_up(pixels, 4) - pixels)
    colours = np.pad(images.reshape(len(images), pixels, 3), ((0, 0), fill, (0, 0)))
    flat = unnormalised.reshape(*unnormalised.shape[:3], pixels).astype(xp.float32)
    flat = xp.pad(flat, ((0, 0), (0, 0), (0, 0), fill))
    size = np.array([height, width], np.int32)
    features = _features(width, parameters, flat.shape[-1])
    codes = gaussian.codes, bilateral.codes
    simplices, rows = _locate(colours, size, features, (gaussian, bilateral), codes)
    least = max(pixels // 8, LEAST_ROWS)
    capacities = [round_up(max(int(np.max(number)), least)) for number in jax.device_get(rows)]
    lattices = _link(simplices, (gaussian, bilateral), tuple(capacities))
    del simplices  # otherwise an image takes twice the memory
    compat = np.array([parameters.compat_gaussian, parameters.compat_bilateral], np.float32)
    iterations = np.int32(parameters.iterations)
    shown = np.take_along_axis(present, sent, 1)
    result = xp.asarray(_infer(flat, shown, size, lattices, compat, iterations))

    # Where each label was sent to; labels that were not sent are behind the others, and 0.
    back = np.full(present.shape, most)
    np.put_along_axis(back, sent, np.arange(most)[None], 1)
    result = xp.pad(result[..., :pixels], ((0, 0), (0, 0), (0, 1), (0, 0)))
    found = [q[:, place] for q, place in zip(result, back, strict=True)]
    return xp.stack(found).reshape(probabilities.shape)


def boxes(height: int, width: int, parameters: CRFParameters) -> tuple[Box, Box]:
    """The boxes of an image's two lattices, of the Gaussian and of the bilateral kernel.

    Raises:
      ValueError: where one has more than 2^30 codes. With sxy 80, images of 2,000 x 2,000 have fewer with srgb from
        2.5 up.
    """
    p, ends = parameters, np.array([width - 1, height - 1])
    try:
        gaussian = Box.of([*ends / p.sxy_gaussian])
        return gaussian, Box.of([*ends / p.sxy_bilateral, *[255 / p.srgb] * 3])
    except OverflowError:
        raise ValueError(
            f"images of {height} x {width} have more than {MAX_CODES} lattice codes with sxy_gaussian="
            f"{p.sxy_gaussian:g}, sxy_bilateral={p.sxy_bilateral:g} and srgb={p.srgb:g}: use larger widths"
        ) from None


class _Features(NamedTuple):
    """Places of N pixels (2, N) over either sxy, and grey levels (256,) over srgb, float32.

    Divided by NumPy. XLA multiplies by the reciprocal, which rounds differently: on the border of two simplices, where
    whole places often lie, the vertices would differ from those of pydensecrf.
    """

    near: np.ndarray
    far: np.ndarray
    greys: np.ndarray


def _features(width: int, parameters: CRFParameters, n: int) -> _Features:
    place = np.stack(np.divmod(np.arange(n, dtype=np.int32), width)[::-1]).astype(np.float32)
    greys = np.arange(256, dtype=np.float32)
    widths = parameters.sxy_gaussian, parameters.sxy_bilateral, parameters.srgb
    return _Features(
        *(x / np.float32(w) for x, w in zip((place, place, greys), widths, strict=True))
    )


@functools.partial(jax.jit, static_argnames="codes")
def _locate(
    images: Array,
    size: Array,
    features: _Features,
    boxes: tuple[Box, Box],
    codes: tuple[int, int],
) -> tuple[tuple[Simplices, Simplices], tuple[Array, Array]]:
    """Where pixels (B, N, 3) lie in the Gaussian lattice and in each image's bilateral one; the lattices' rows."""
    valid = jnp.arange(images.shape[1], dtype=jnp.int32) < size[0] * size[1]
    gaussian = locate(jnp.asarray(features.near), valid, boxes[0], codes[0])

    def one(image: Array) -> Simplices:
        alike = jnp.concatenate([features.far, jnp.asarray(features.greys)[image.T]])
        return locate(alike, valid, boxes[1], codes[1])

    bilateral = lax.map(one, images)
    return (gaussian, bilateral), (gaussian.rows, bilateral.rows)


@functools.partial(jax.jit, static_argnames="capacities")
def _link(
    simplices: tuple[Simplices, Simplices], boxes: tuple[Box, Box], capacities: tuple[int, int]
) -> tuple[Lattice, Lattice]:
    gaussian = link(simplices[0], boxes[0], capacities[0])
    return gaussian, lax.map(lambda one: link(one, boxes[1], capacities[1]), simplices[1])


@jax.jit
def _infer(
    probabilities: Array,
    present: Array,
    size: Array,
    lattices: tuple[Lattice, Lattice],
    compat: Array,
    iterations: Array,
) -> Array:
    """Posteriors (B, A, L, N); compat is float32 (2,), of the Gaussian and of the bilateral kernel."""
    n = probabilities.shape[-1]
    valid = jnp.arange(n, dtype=jnp.int32) < size[0] * size[1]
    gaussian = _Kernel.of(lattices[0], valid, compat[0])

    def one(inputs: tuple[Array, Array, Lattice]) -> Array:
        unnormalised, present, lattice = inputs
        bilateral = _Kernel.of(lattice, valid, compat[1])
        log_unary = jnp.log(jnp.clip(unnormalised.swapaxes(0, 1), 1e-5, 1))
        log_unary = jnp.where(present[:, None, None], log_unary, -jnp.inf)  # (L, A, N)

        def step(_: int, q: Array) -> Array:
            x = q.reshape(-1, n)  # (L A, N)
            message = gaussian.message(x) + bilateral.message(x)
            return _softmax(log_unary + message.reshape(q.shape))

        q = lax.fori_loop(0, iterations, step, _softmax(log_unary))
        return q.swapaxes(0, 1)

    return lax.map(one, (probabilities, present, lattices[1]))


class _Kernel(NamedTuple):
    """compat n_i K_ij n_j with n_i = (sum_j K_ij)^(-1/2)."""

    lattice: Lattice
    root: Array  # (1, N)
    compat: Array

    @classmethod
    def of(cls, lattice: Lattice, valid: Array, compat: Array) -> "_Kernel":
        norm = smooth(lattice, valid[:, None].astype(jnp.float32)).T
        return cls(lattice, jnp.where(valid[None], lax.rsqrt(norm + 1e-20), 0), compat)

    def message(self, x: Array) -> Array:
        """(C, N) -> (C, N), in groups of channels."""
        channels, n = x.shape
        at_once = min(round_up(channels), CHANNELS)
        groups = -(-channels // at_once)
        x = jnp.pad(self.root * x, ((0, groups * at_once - channels), (0, 0)))
        y = lax.map(lambda x: smooth(self.lattice, x.T).T, x.reshape(groups, at_once, n))
        return self.compat * self.root * y.reshape(-1, n)[:channels]


def _softmax(logits: Array) -> Array:
    """Over L of (L, A, N), in loops: XLA would find the largest again for every label, and reduces slowly on a CPU."""

    def over_labels(combine: Callable[[Array, Array], Array], start: float, x: Array) -> Array:
        first = jnp.full_like(x[0], start)
        return lax.scan(lambda carry, label: (combine(carry, label), None), first, x)[0][None]

    e = jnp.exp(logits - over_labels(jnp.maximum, -jnp.inf, logits))
    return e / over_labels(jnp.add, 0, e)
