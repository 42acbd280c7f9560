"""Accuracy while the most (or least) relevant pixels are removed (docs/protocol.md, Table 2).

Ranking, masking and all forwards run in one jitted program. One ranking of a heatmap serves every
fraction, and the clean forward serves every heatmap of an image and both directions; equal masked
images are computed once (`masked`). The model runs on B images at a time, so the memory is that of
one forward, however many fractions and heatmaps there are.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitx.data.transforms import resize_maps
from vitx.evaluation.masked import COMPUTE, Model, masked_outcomes
from vitx.evaluation.ranking import (
    are_increasing,
    pixel_counts,
    rankable,
    removal_ranks,
    require_rankable,
)
from vitx.ops import Array

FRACTIONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
DIRECTIONS = ("positive", "negative")

Statistics = float | Sequence[float]
Explain = Callable[[Any, Array, Array], tuple[Array, Array]]
Found = TypeVar("Found")


def perturbation_curve(
    model: Model,
    pixels: ArrayLike,
    heatmaps: ArrayLike,
    targets: ArrayLike,
    positive: bool = True,
    mean: Statistics = 0.5,
    std: Statistics = 0.5,
    *,
    fractions: Sequence[float] = FRACTIONS,
    fill: float = 0.0,
    batch_size: int = 32,
) -> dict[str, NDArray[np.float64]]:
    """Accuracy after removing the most relevant pixels, or else the least relevant.

    Args:
        model: normalised images (B, H, W, 3) -> logits (B, classes); a Flax NNX module or any
            function.
        pixels: (N, H, W, 3) in [0, 1].
        heatmaps: (N, H, W) finite numbers of any type; only their order matters.
        targets: (N,) true classes, ints in [0, classes).
        positive: remove the highest values first, else the lowest first. Among equal values the
            lower index goes first.
        mean: of the model's normalisation, one value or three.
        std: likewise, above 0.
        fractions: of the pixels to remove, increasing within [0, 1]; floor(H * W * fraction) pixels
            are removed.
        fill: value of removed pixels, in [0, 1], before the normalisation.
        batch_size: images at once; it changes time and memory alone.

    Returns:
        accuracy (F,) and auc, its trapezoid over `fractions`: at most 0.9 for the default ones.

    Raises:
        ValueError: shapes or types do not fit; pixels, targets, `fill`, `mean` or `std` are out of
            range; a heatmap is not finite; or fractions are not increasing.
    """
    pixels, heatmaps, targets = np.asarray(pixels), np.asarray(heatmaps), np.asarray(targets)
    _check_arrays(pixels, heatmaps[:, None], targets)
    require_rankable(heatmaps)
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError(
            f"pixels reach {pixels.min():g} to {pixels.max():g}, not [0, 1]: divide by 255 only"
        )
    direction = DIRECTIONS[0 if positive else 1]
    count = len(pixels)
    batch_size = min(batch_size, count)
    correct = []
    for start in range(0, count, batch_size):
        # The last batch repeats its last image, so that one program serves all.
        rows = np.arange(start, start + batch_size).clip(max=count - 1)
        batch = pixels[rows], heatmaps[rows], targets[rows]
        found = perturb_batch(
            model, *batch, fractions, mean, std, fill=fill, directions=(direction,)
        )
        correct.append(np.asarray(found[direction])[: count - start])
    accuracy = np.concatenate(correct).mean(0, dtype=np.float64)  # (F,)
    return {"accuracy": accuracy, "auc": area_under_curve(accuracy, fractions)}


def perturb_batch(
    model: Model,
    pixels: ArrayLike,
    heatmaps: ArrayLike,
    targets: ArrayLike,
    fractions: Sequence[float] = FRACTIONS,
    mean: Statistics = 0.5,
    std: Statistics = 0.5,
    *,
    fill: float = 0.0,
    directions: Sequence[str] = DIRECTIONS,
) -> dict[str, Array]:
    """Whether the model is right after each removal; arguments as for `perturbation_curve`.

    The heatmaps are (B, H, W), or (B, M, H, W): several per image, which share the clean forward.
    `directions` are "positive" (highest values first), "negative" (lowest first), or both.

    Returns:
        bool (B, F), or (B, M, F), for each direction.
    """
    pixels, heatmaps, targets = jnp.asarray(pixels), rankable(heatmaps), _class_indices(targets)
    single = heatmaps.ndim == 3
    heatmaps = heatmaps[:, None] if single else heatmaps  # (B, M, H, W)
    found = _program(model, None, pixels, heatmaps, targets, mean, std, fill, fractions, directions)
    return {name: right[:, 0] if single else right for name, right in found.items()}


def explain_and_perturb(
    model: Model,
    explain: Explain,
    pixels: ArrayLike,
    targets: ArrayLike,
    fractions: Sequence[float] = FRACTIONS,
    mean: Statistics = 0.5,
    std: Statistics = 0.5,
    *,
    fill: float = 0.0,
    directions: Sequence[str] = DIRECTIONS,
    compute: str = "float32",
) -> dict[str, Array]:
    """Explanation, upsampling, ranking and all masked forwards in one jitted program.

    `explain(model, images, targets)` takes normalised images (B, H, W, 3) and targets (B,), and
    returns logits (B, classes), which are the clean forward, and M maps for each image (B, M, h, w),
    such as those of several methods. It is traced once where it is the same object in every call.
    `compute` is the type of the masked forwards' products, see `COMPUTE`; the clean forward stays
    as it is. The other arguments are those of `perturb_batch`.

    Returns:
        bool (B, M, F) for each direction, "clean" bool (B,) for the unperturbed images, and the "maps" (B, M, h, w).
    """
    pixels, targets = jnp.asarray(pixels), _class_indices(targets)
    options = mean, std, fill, fractions, directions, compute
    return _program(model, explain, pixels, None, targets, *options)


def explain_pixels(
    model: Any,
    explain: Callable[[Any, Array, Array], Found],
    pixels: ArrayLike,
    targets: ArrayLike,
    mean: Statistics = 0.5,
    std: Statistics = 0.5,
) -> Found:
    """What `explain` returns for pixels in [0, 1]; arguments as for `explain_and_perturb`."""
    pixels, targets = jnp.asarray(pixels), _class_indices(targets)
    _check_arrays(pixels, None, targets)
    return explain(model, _normalised(pixels, *_statistics(mean, std, pixels.dtype)), targets)


def area_under_curve(
    accuracy: ArrayLike, fractions: Sequence[float] = FRACTIONS
) -> NDArray[np.float64]:
    """Trapezoid of accuracies (..., F) over the removed fractions -> (...)."""
    return np.asarray(
        np.trapezoid(np.asarray(accuracy, np.float64), np.asarray(fractions, np.float64), axis=-1)
    )


def _program(
    model: Model,
    explain: Explain | None,
    pixels: Array,
    heatmaps: Array | None,
    targets: Array,
    mean: Statistics,
    std: Statistics,
    fill: float,
    fractions: Sequence[float],
    directions: Sequence[str],
    compute: str = "float32",
) -> dict[str, Array]:
    """Checks the options and calls the program; a model that is a pytree goes in as arrays."""
    _check_arrays(pixels, heatmaps, targets)
    fractions, directions = tuple(float(f) for f in fractions), tuple(directions)
    if not are_increasing(fractions):
        raise ValueError(f"fractions {fractions} must increase within [0, 1]")
    if unknown := set(directions) - set(DIRECTIONS):
        raise ValueError(f"unknown direction {unknown.pop()!r}: it is 'positive' or 'negative'")
    if not 0 <= fill <= 1:
        raise ValueError(f"fill must be in [0, 1], as the pixels are, not {fill}")
    if compute not in COMPUTE:
        raise ValueError(f"compute must be one of {', '.join(COMPUTE)}, not {compute!r}")
    means, stds = _statistics(mean, std, pixels.dtype)
    is_pytree = all(isinstance(leaf, Array | np.ndarray) for leaf in jax.tree.leaves(model))
    run = _jitted if is_pytree else _jitted_function
    if compute == "bfloat16" and not is_pytree:
        raise ValueError('compute="bfloat16" is for a model of arrays, not for a function')
    # Unless `compute` says otherwise, masked forwards run at the precision of `explain`: a curve is of one model.
    arrays = model, pixels, heatmaps, targets, means, stds, fill
    with jax.default_matmul_precision("highest"):
        found = run(*arrays, explain, fractions, directions, compute)
    largest, classes = found.pop("largest"), found.pop("classes")
    if not isinstance(largest, jax.core.Tracer) and largest >= classes:
        raise ValueError(f"target {largest} must be in [0, {classes}), the model's classes")
    return found


def _perturb(
    model: Model,
    pixels: Array,  # (B, H, W, 3)
    heatmaps: Array | None,  # (B, M, H, W); None: `explain` makes them
    targets: Array,  # (B,)
    mean: Array,
    std: Array,
    fill: Array,
    explain: Explain | None,
    fractions: tuple[float, ...],
    directions: tuple[str, ...],
    compute: str,
) -> dict[str, Array]:
    *_, height, width, _ = pixels.shape
    normalise = partial(_normalised, mean=mean, std=std)

    if heatmaps is None:
        assert explain is not None
        logits, maps = explain(model, normalise(pixels), targets)  # (B, classes), (B, M, h, w)
        heatmaps = resize_maps(maps, (height, width))  # min-max would not change the order
    else:
        logits = model(normalise(pixels))
    clean = jnp.argmax(logits, -1).astype(jnp.int32) == targets  # (B,)
    ranks = jnp.stack([removal_ranks(heatmaps, name) for name in directions])  # (D, B, M, H, W)
    ranks = jnp.moveaxis(ranks, 2, 1)  # (D, M, B, H, W)

    # Where no pixel is removed, the clean forward counts.
    counts = pixel_counts(height * width, fractions)
    removed = jnp.asarray([count for count in counts if count], jnp.int32)  # (F',)
    rankings = ranks.reshape(-1, *ranks.shape[2:])
    masked = normalise, pixels, targets, rankings, removed, fill, compute
    found = masked_outcomes(model, *masked)  # (D * M, F', B)
    kept = jnp.broadcast_to(clean, (len(found), len(counts) - len(removed), len(clean)))
    found = jnp.concatenate([kept, found], 1)  # (D * M, F, B)
    found = found.reshape(*ranks.shape[:2], *found.shape[1:])  # (D, M, F, B)
    figures = {name: jnp.moveaxis(found[index], -1, 0) for index, name in enumerate(directions)}
    figures |= {"largest": targets.max(), "classes": jnp.int32(logits.shape[-1])}
    return figures if explain is None else figures | {"maps": maps, "clean": clean}


def _normalised(pixels: Array, mean: Array, std: Array) -> Array:
    return (pixels - mean[None, None, None]) / std[None, None, None]  # (B, H, W, 3)


def _statistics(mean: Statistics, std: Statistics, dtype: Any) -> list[Array]:
    """Three means and three standard deviations."""
    means, stds = (np.asarray(value, dtype) for value in (mean, std))  # as they are computed with
    if not np.isfinite(means).all():
        raise ValueError(f"mean must be finite, not {mean}")
    if not (np.isfinite(stds).all() and (stds > 0).all()):
        raise ValueError(f"std must be above 0 and finite, not {std}")
    return [jnp.broadcast_to(jnp.asarray(value, dtype), (3,)) for value in (mean, std)]


_OPTIONS = ("explain", "fractions", "directions", "compute")
_jitted = jax.jit(_perturb, static_argnames=_OPTIONS)
_jitted_function = jax.jit(_perturb, static_argnames=("model", *_OPTIONS))


def _class_indices(targets: ArrayLike) -> Array:
    """Targets as int32; ValueError where they are not integers or, if their values are known, negative."""
    targets = targets if isinstance(targets, Array) else np.asarray(targets)
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(f"targets must be integers, not {targets.dtype}")
    if not isinstance(targets, jax.core.Tracer):
        values = np.asarray(targets)
        if values.size and not 0 <= values.min() <= values.max() < 2**31:
            raise ValueError(
                f"targets must be classes from 0 up, found {values.min()} to {values.max()}"
            )
    return jnp.asarray(targets).astype(jnp.int32)


def _check_arrays(pixels: Any, heatmaps: Any, targets: Any) -> None:
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or not len(pixels):
        raise ValueError(f"pixels {pixels.shape} must be (N, H, W, 3) with at least one image")
    if targets.shape != pixels.shape[:1]:
        raise ValueError(f"targets {targets.shape} must be {pixels.shape[:1]}, one class per image")
    if heatmaps is not None:
        found, wanted = (len(heatmaps), *heatmaps.shape[2:]), pixels.shape[:3]
        if heatmaps.ndim != 4 or found != wanted:
            raise ValueError(f"heatmaps {found} must be {wanted}, as the pixels")
    if not jnp.issubdtype(pixels.dtype, jnp.floating):
        raise ValueError(f"pixels are {pixels.dtype}: divide by 255, they must be floats in [0, 1]")
