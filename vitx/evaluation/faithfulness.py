"""How far a map says what the output depends on: curves of removal and insertion, SaCo, infidelity, sensitivity.

Images are normalised, (B, H, W, 3), maps (B, H, W) on their pixels, classes ints (B,), and scores softmax
probabilities of these classes. Everything is batched and jitted; one ranking of a map serves all fractions.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.sparse.linalg import cg

from vitx.evaluation.ranking import are_increasing, pixel_counts, removal_ranks
from vitx.ops import Array

FRACTIONS = tuple(i / 10 for i in range(11))
Fill = Callable[[Array, Array], Array]
"""Images (B, H, W, 3) and where to fill them (B, H, W) -> images."""


def score_curve(
    model: Callable[[Array], Array],
    images: Array,
    maps: Array,
    classes: Array,
    fill: Fill,
    *,
    fractions: Sequence[float] = FRACTIONS,
    highest_first: bool = True,
    insert: bool = False,
    patch: int = 1,
) -> Array:
    """Scores (B, F) as more and more of each image is removed, or inserted into the filled image.

    Deletion and insertion (Petsiuk et al., BMVC 2018) take pixels, the highest first. MoRF and LeRF (Samek et al.,
    2017; Achtibat et al., ICML 2024) take patches, the highest and the lowest first. `perturbation.area_under_curve` is
    the area; that between LeRF and MoRF is the difference of two.

    Args:
      model: normalised images -> logits (B, C).
      images: normalised, (B, H, W, 3).
      maps: (B, H, W).
      classes: ints (B,).
      fill: what replaces the removed parts; create it once, a new one per call triggers recompilation.
      fractions: of the pixels or patches, increasing within [0, 1].
      highest_first: the order of the map.
      insert: begins with the filled image, and puts the image's own pixels in.
      patch: side of the squares that go together, by the mean of the map; it divides H and W.

    Raises:
      ValueError: for fractions or a patch that do not fit.
    """
    height, width = maps.shape[1:]
    if not are_increasing(fractions):
        raise ValueError(f"fractions {tuple(fractions)} must increase within [0, 1]")
    if patch < 1 or height % patch or width % patch:
        raise ValueError(f"patch {patch} must divide the map's {height} x {width} pixels")
    counts = pixel_counts(height * width // patch**2, fractions)
    with jax.default_matmul_precision("highest"):
        return _curve(model, images, maps, classes, fill, counts, highest_first, insert, patch)


@partial(jax.jit, static_argnames=("fill", "counts", "highest_first", "insert", "patch"))
def _curve(
    model: Any,
    images: Array,
    maps: Array,
    classes: Array,
    fill: Fill,
    counts: tuple[int, ...],
    highest_first: bool,
    insert: bool,
    patch: int,
) -> Array:
    batch, height, width = maps.shape
    cells = maps.reshape(batch, height // patch, patch, width // patch, patch).mean((2, 4))
    ranks = removal_ranks(cells, "positive" if highest_first else "negative")
    ranks = ranks.repeat(patch, 1).repeat(patch, 2)  # (B, H, W)

    def scored(count: Array) -> Array:
        chosen = ranks < count
        return probabilities(model, fill(images, ~chosen if insert else chosen), classes)

    return lax.map(scored, jnp.asarray(counts, jnp.int32)).T  # (B, F)


def probabilities(model: Callable[[Array], Array], images: Array, classes: Array) -> Array:
    """Softmax probabilities (B,) of the classes (B,)."""
    return jnp.take_along_axis(jax.nn.softmax(model(images)), classes[:, None], 1)[:, 0]


# Fills of removed pixels.


def with_value(value: tuple[float, float, float]) -> Fill:
    """A colour, in the input's normalised units."""

    def fill(images: Array, removed: Array) -> Array:
        colour = jnp.asarray(value, images.dtype)[None, None, None]
        return jnp.where(removed[..., None], colour, images)

    return fill


def with_mean(images: Array, removed: Array) -> Array:
    """The image's own mean colour."""
    return jnp.where(removed[..., None], images.mean((1, 2), keepdims=True), images)


def with_blur(sigma: float) -> Fill:
    """The image under a Gaussian of standard deviation `sigma` pixels, its border repeated."""
    reach = int(np.ceil(3 * sigma))
    kernel = np.exp(-np.square(np.arange(-reach, reach + 1) / sigma) / 2)
    kernel = kernel / kernel.sum()

    def fill(images: Array, removed: Array) -> Array:
        blurred = images
        for axis in (1, 2):
            sides = [(reach, reach) if a == axis else (0, 0) for a in range(4)]
            padded = jnp.pad(blurred, sides, mode="edge")
            length = images.shape[axis]
            parts = [
                float(weight) * lax.slice_in_dim(padded, start, start + length, axis=axis)
                for start, weight in enumerate(kernel)
            ]
            blurred = sum(parts[1:], start=parts[0])
        return jnp.where(removed[..., None], blurred, images)

    return fill


_NEIGHBOURS = {
    (row, column): 1 / 12 if row and column else 1 / 6
    for row in (-1, 0, 1)
    for column in (-1, 0, 1)
    if row or column
}


def with_neighbours(noise: float = 0.01, seed: int = 0, iterations: int = 1000) -> Fill:
    """Noisy linear interpolation (ROAD; Rong et al., ICML 2022): each removed pixel is the mean of its neighbours.

    Direct neighbours weigh twice as much as diagonal ones. The equations are solved by conjugate gradients, in at most
    `iterations` steps (some 700 for nine tenths of 224 x 224 pixels in one piece), and normal noise of standard
    deviation `noise` is added where pixels were removed.
    """

    def fill(images: Array, removed: Array) -> Array:
        gone = removed[..., None].astype(images.dtype)  # (B, H, W, 1)
        total = _neighbour_sum(jnp.ones_like(gone))

        def equations(x: Array) -> Array:
            return gone * (total * x - _neighbour_sum(gone * x)) + (1 - gone) * x

        known = gone * _neighbour_sum((1 - gone) * images)
        solved, _ = cg(equations, known, tol=1e-7, maxiter=iterations)
        shift = jax.random.normal(jax.random.key(seed), images.shape[1:], jnp.float32)
        solved = solved + noise * shift.astype(images.dtype)[None]
        return jnp.where(removed[..., None], solved, images)

    return fill


def _neighbour_sum(x: Array) -> Array:
    """The weighted sum over the eight neighbours in the image of each pixel of x (B, H, W, C)."""
    _, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    parts = [
        weight * padded[:, 1 + row : 1 + row + height, 1 + column : 1 + column + width]
        for (row, column), weight in _NEIGHBOURS.items()
    ]
    return sum(parts[1:], start=parts[0])


# Single figures.


@partial(jax.jit, static_argnames=("fill", "groups"))
def saco(
    model: Any, images: Array, maps: Array, classes: Array, fill: Fill, groups: int = 10
) -> Array:
    """Salience-guided faithfulness (Wu et al., CVPR 2024), (B,), in [-1, 1].

    The pixels fall into `groups` of one size by their salience. Each pair of groups weighs by the difference of their
    salience, positive where the removal of the more salient group lowers the score at least as much.
    """
    _, height, width = maps.shape
    ranks = removal_ranks(maps, "positive")
    group = ranks * groups // (height * width)  # (B, H, W), 0 the most salient
    clean = probabilities(model, images, classes)

    def one(number: Array) -> tuple[Array, Array]:
        member = group == number
        drop = clean - probabilities(model, fill(images, member), classes)
        return (maps * member.astype(maps.dtype)).sum((1, 2)), drop

    salience, drop = lax.map(one, jnp.arange(groups, dtype=group.dtype))  # (G, B)
    more = salience[:, None] - salience[None]  # (G, G, B)
    agree = jnp.where(drop[:, None] >= drop[None], 1, -1).astype(maps.dtype)
    upper = jnp.triu(jnp.ones((groups, groups), maps.dtype), 1)[..., None]
    weights = (more * upper * agree).sum((0, 1))
    size = (jnp.abs(more) * upper).sum((0, 1))
    return weights / jnp.where(size == 0, 1, size)


@jax.jit
def infidelity(
    model: Any, images: Array, maps: Array, classes: Array, perturbations: Array
) -> Array:
    """The mean of (I . map - (f(x) - f(x - I)))^2 over perturbations I (Yeh et al., NeurIPS 2019), (B,).

    The perturbations are (P, B, H, W, 3), f is the class's logit, and a map's value counts for each channel of its
    pixel.
    """

    def value(x: Array) -> Array:
        return jnp.take_along_axis(model(x), classes[:, None], 1)[:, 0]

    clean = value(images)

    def one(shift: Array) -> Array:
        expected = (shift * maps[..., None]).sum((1, 2, 3))
        return jnp.square(expected - (clean - value(images - shift)))

    return lax.map(one, perturbations).mean(0)


def sensitivity(
    explain: Callable[[Array], Array],
    images: Array,
    radius: float = 0.02,
    samples: int = 10,
    seed: int = 0,
) -> Array:
    """The largest relative change of a map under uniform noise within `radius` (Yeh et al., NeurIPS 2019), (B,).

    Args:
      explain: normalised images (B, H, W, 3) -> maps (B, h, w) of fixed classes.
      images: normalised.
      radius: in the input's normalised units.
      samples: number of noisy images.
      seed: of the noise, which is the same for all images.
    """
    usual = explain(images)
    size = jnp.linalg.norm(usual.reshape(len(usual), -1), axis=-1)
    largest = jnp.zeros_like(size)
    for key in jax.random.split(jax.random.key(seed), samples):
        noise = jax.random.uniform(key, images.shape[1:], jnp.float32, -radius, radius)
        change = explain(images + noise[None].astype(images.dtype)) - usual
        change = jnp.linalg.norm(change.reshape(len(usual), -1), axis=-1)
        largest = jnp.maximum(largest, change / jnp.where(size == 0, 1, size))
    return largest
