"""Affinities between near pixels (Ahn & Kwak, CVPR 2018): pairs of pixels, their labels and the loss.

A pair joins a from-pixel and one of its P neighbours inside a radius, each pair once: offsets point
downwards, or to the right in the same row. Arrays over pairs are (..., P, H, W): entry [p, i, j] joins
(i, j) and (i, j) + offsets[p]. As published, from-pixels lie at least the radius' reach from the left,
right and bottom border, and entries outside this window are empty; with `everywhere` all pairs inside
the image count.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vitx.data.palette import IGNORED

Array = jax.Array


def offsets(radius: int = 5) -> np.ndarray:
    """Offsets of the pairs, (P, 2) ints (dy, dx) with dy^2 + dx^2 < radius^2; 34 at radius 5.

    In the order (0, 1..radius-1), then row by row downwards, each from left to right. ValueError for
    a radius below 2, inside which no pixel has a neighbour.
    """
    if radius < 2:
        raise ValueError(f"radius must be an integer of at least 2, not {radius}")
    reach = radius - 1
    pairs = [(0, dx) for dx in range(1, radius)]
    for dy in range(1, radius):
        pairs += [(dy, dx) for dx in range(-reach, radius) if dy**2 + dx**2 < radius**2]
    return np.array(pairs)


def affinities(features: Array, radius: int = 5, everywhere: bool = False) -> Array:
    """W = exp(-mean_c |f_i - f_j|) of all pairs (docs/protocol.md, AffinityNet).

    Args:
      features: (..., H, W, C) floats.
      radius: of the neighbourhood; the grid must exceed its reach.
      everywhere: all pairs inside the image, not only those of the window of from-pixels.

    Returns:
      (..., P, H, W) in (0, 1], zero where there is no pair. In its gradient the slope
      of |x| at 0 is 0; the gradient needs the memory of the features, not P times as much.

    Raises:
      ValueError: for features that are not floats, or a grid too small for the radius.
    """
    features = jnp.asarray(features)
    if features.ndim < 3 or not jnp.issubdtype(features.dtype, jnp.floating):
        raise ValueError(
            f"features must be floats (..., H, W, C), not {features.dtype} {features.shape}"
        )
    require_pairs(features.shape[-3:-1], radius)
    if everywhere:
        around = _around(radius)
        wide = jnp.pad(features, ((0, 0),) * (features.ndim - 3) + (*around, (0, 0)))
        found = _within(_affinities(wide, radius), radius)
        height, width = found.shape[-2:]
        return jnp.where(jnp.asarray(inside((height, width), radius)), found, 0)
    return _affinities(features, radius)


def inside(grid: tuple[int, int], radius: int) -> np.ndarray:
    """Whether both pixels of a pair lie inside a grid (H, W): bools (P, H, W)."""
    moves = offsets(radius)
    y, x = moves[:, :1] + np.arange(grid[0]), moves[:, 1:] + np.arange(grid[1])
    return (y < grid[0])[:, :, None] & ((x >= 0) & (x < grid[1]))[:, None]


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _affinities(features: Array, radius: int) -> Array:
    reach = radius - 1
    height, width = features.shape[-3] - reach, features.shape[-2] - 2 * reach
    origin = features[..., :height, reach : reach + width, :]  # (..., h, w, C)

    def one(offset: Array) -> Array:
        start = (offset[0], reach + offset[1])
        target = block(features, start, (height, width), axis=-3)
        return jnp.exp(-jnp.abs(origin - target).mean(-1))

    # One offset at a time: unrolled, XLA's CPU backend keeps all P differences at once.
    values = lax.map(one, jnp.asarray(offsets(radius)))  # (P, ..., h, w)
    return widen(jnp.moveaxis(values, 0, -3), reach)


def _affinities_forward(features: Array, radius: int) -> tuple[Array, tuple[Array, Array]]:
    affinity = _affinities(features, radius)
    return affinity, (features, affinity)


def _affinities_backward(
    radius: int, residuals: tuple[Array, Array], cotangent: Array
) -> tuple[Array]:
    """The gradient at each pixel, summed over its pairs, in which it is either end."""
    features, affinity = residuals
    height, width, channels = features.shape[-3:]
    reach = radius - 1
    slope = -cotangent * affinity / channels  # (..., P, H, W), zero outside the window
    features_wide = _pad(features, reach, axes=(-3, -2))
    slope_wide = _pad(slope, reach, axes=(-2, -1))
    total = jnp.zeros_like(features)
    for p, (dy, dx) in enumerate(offsets(radius).tolist()):
        sent = slope_wide[..., p, reach - dy : reach - dy + height, reach - dx : reach - dx + width]
        for weight, y, x in ((slope[..., p, :, :], dy, dx), (sent, -dy, -dx)):
            other = features_wide[
                ..., reach + y : reach + y + height, reach + x : reach + x + width, :
            ]
            total += weight[..., None] * jnp.sign(features - other)  # (..., H, W, C)
    return (total,)


_affinities.defvjp(_affinities_forward, _affinities_backward)


def pair_labels(
    labels: Array, radius: int = 5, everywhere: bool = False
) -> tuple[Array, Array, Array]:
    """Kinds of pairs in a label map: both background, the same object class, or different labels.

    Args:
      labels: (..., H, W) ints: 0 background, classes from 1, 255 ignored (its pairs are left out).
      radius: as in `affinities`.
      everywhere: as in `affinities`.

    Returns:
      background, foreground, negative: bools, each (..., P, H, W), False where there is no pair.

    Raises:
      ValueError: for labels that are not integers, or a grid too small for the radius.
    """
    labels = jnp.asarray(labels)
    if labels.ndim < 2 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be ints (..., H, W), not {labels.dtype} {labels.shape}")
    require_pairs(labels.shape[-2:], radius)
    reach = radius - 1
    if everywhere:
        origin, target = labels[..., None, :, :], _neighbours(labels, radius)
        background, foreground, negative = _kinds(origin, target)
        return background, foreground, negative
    height, width = labels.shape[-2] - reach, labels.shape[-1] - 2 * reach
    origin = labels[..., None, :height, reach : reach + width]  # (..., 1, h, w)

    def one(offset: Array) -> Array:
        return block(labels, (offset[0], reach + offset[1]), (height, width), axis=-2)

    target = jnp.moveaxis(lax.map(one, jnp.asarray(offsets(radius))), 0, -3)  # (..., P, h, w)
    background, foreground, negative = (widen(kind, reach) for kind in _kinds(origin, target))
    return background, foreground, negative


def _neighbours(labels: Array, radius: int) -> Array:
    """The label at each offset from each pixel, IGNORED outside of the image: (..., H, W) -> (..., P, H, W)."""
    (height, width), reach = labels.shape[-2:], radius - 1
    around = ((0, 0),) * (labels.ndim - 2) + _around(radius)
    wide = jnp.pad(labels, around, constant_values=IGNORED)
    # Not by `lax.map`: XLA's compiler for CPUs failed on a fusion of it (jaxlib 0.10.2).
    shifted = [
        wide[..., dy : dy + height, reach + dx : reach + dx + width]
        for dy, dx in offsets(radius).tolist()
    ]
    return jnp.stack(shifted, -3)


def _kinds(origin: Array, target: Array) -> tuple[Array, Array, Array]:
    """Whether both labels are background, the same class, or different, none of them ignored."""
    known = (origin != IGNORED) & (target != IGNORED)
    same = known & (origin == target)
    return same & (origin == 0), same & (origin != 0), known & (origin != target)


def affinity_loss(
    affinity: Array,
    background: Array,
    foreground: Array,
    negative: Array,
    eps: float = 1e-6,
    axis_name: str | None = None,
) -> dict[str, Array]:
    """Cross-entropy of the affinities against pair labels (docs/protocol.md, AffinityNet).

    Args:
      affinity: (..., P, H, W) in [0, 1].
      background: bool pairs of the same shape, see `pair_labels`.
      foreground: likewise.
      negative: likewise.
      eps: added to the counts and inside the logarithms.
      axis_name: of a `jax.pmap` that the pairs are counted over; its devices' results sum to those of the batch.

    Returns:
      scalars: "background", "foreground", "negative", each a mean over its pairs in the batch (0
      where there are none), and "loss", a quarter, a quarter and half of them.

    Raises:
      ValueError: for labels of another shape than the affinity's.
    """
    kinds = {"background": background, "foreground": foreground, "negative": negative}
    for name, pairs in kinds.items():
        if pairs.shape != affinity.shape:
            raise ValueError(f"{name} pairs {pairs.shape} must have the shape {affinity.shape}")
    alike, unlike = -jnp.log(affinity + eps), -jnp.log(1 + eps - affinity)

    def mean(values: Array, pairs: Array) -> Array:
        count = pairs.sum().astype(values.dtype)
        count = count if axis_name is None else lax.psum(count, axis_name)
        return jnp.where(pairs, values, 0).sum() / (count + eps)

    terms = {
        "background": mean(alike, background),
        "foreground": mean(alike, foreground),
        "negative": mean(unlike, negative),
    }
    loss = terms["background"] / 4 + terms["foreground"] / 4 + terms["negative"] / 2
    return {"loss": loss, **terms}


def require_pairs(grid: tuple[int, ...], radius: int) -> None:
    """ValueError for a radius below 2, or where a grid (H, W) has no pairs."""
    offsets(radius)
    reach = radius - 1
    if grid[0] <= reach or grid[1] <= 2 * reach:
        raise ValueError(
            f"a grid of {grid[0]} x {grid[1]} has no pairs at radius {radius}: "
            f"it must be larger than {reach} x {2 * reach}"
        )


def _around(radius: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns to add to a grid so that its pixels are the window of from-pixels."""
    return (0, radius - 1), (radius - 1, radius - 1)


def _within(pairs: Array, radius: int) -> Array:
    """Arrays over pairs without the rows and columns of `_around`."""
    reach = radius - 1
    return pairs[..., :-reach, reach:-reach]


def block(x: Array, start: tuple[Array, Array], size: tuple[int, int], axis: int) -> Array:
    """A rectangle from `start`, in two neighbouring axes of which `axis` is the first."""
    rows = lax.dynamic_slice_in_dim(x, start[0], size[0], axis=axis)
    return lax.dynamic_slice_in_dim(rows, start[1], size[1], axis=axis + 1)


def widen(window: Array, reach: int) -> Array:
    """Arrays over the window of from-pixels (..., h, w) onto the grid (..., H, W)."""
    return jnp.pad(window, ((0, 0),) * (window.ndim - 2) + ((0, reach), (reach, reach)))


def _pad(x: Array, amount: int, axes: tuple[int, int]) -> Array:
    """Zeros all around two axes."""
    widths = [(0, 0)] * x.ndim
    for axis in axes:
        widths[axis] = (amount, amount)
    return jnp.pad(x, widths)
