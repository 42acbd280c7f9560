"""Checks of what `vitx.explain` is given: options, images, classes and targets."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.tree_util import Partial
from jax.typing import ArrayLike

from vitx.explainable import Explainable
from vitx.ops import Array
from vitx.relevance import targets
from vitx.relevance.precision import require_precision
from vitx.relevance.registry import REGISTRY

RULES = ("published", "stable")
MEMORY = ("auto", "fast", "lean")
HIGH_NORM = ("keep", "median")

_FAR = 16  # widths of the pixels' range outside it: noise stays within, pixels in [0, 255] do not


def prepared(
    model: Explainable,
    images: ArrayLike,
    classes: targets.Classes | None,
    target: targets.Target | None,
    methods: Sequence[str],
) -> tuple[Explainable, Array, Partial]:
    """The model, at the size of the images and without a head where that is explained, the images, and the target."""
    images = _check_images(images, model)
    model = _at_size(model, images)
    names = getattr(model, "class_names", None)
    explained = targets.parse(classes, target, len(images), model.num_classes, names)
    for method in methods:
        if REGISTRY[method].of_probability and explained.func not in targets.OF_CLASSES:
            raise ValueError(f"{method} explains the probability of a class: give classes as ints")
    if explained.func is targets.of_similarity and model.num_classes:
        model = model.without_head()
    return model, images, explained


def check_options(
    model: Explainable,
    method: str,
    start_layer: Any,
    rules: str,
    class_chunk: Any,
    memory: str,
    high_norm: str,
    precision: str,
) -> None:
    """Raises ValueError for an option, or a method, that the model does not have."""
    require_precision(precision)
    if not hasattr(model, "classify"):
        raise ValueError(f"a {type(model).__name__} has no classes to explain: give a classifier")
    if method not in REGISTRY:
        raise ValueError(f"method must be one of {', '.join(REGISTRY)}, not {method!r}")
    if rules not in RULES:
        raise ValueError(f"rules must be one of {', '.join(RULES)}, not {rules!r}")
    if memory not in MEMORY:
        raise ValueError(f"memory must be one of {', '.join(MEMORY)}, not {memory!r}")
    if high_norm not in HIGH_NORM:
        raise ValueError(f"high_norm must be one of {', '.join(HIGH_NORM)}, not {high_norm!r}")
    REGISTRY[method].require(model)
    layers = len(model.attention_shapes()) or 1
    if not _is_int(start_layer) or not 0 <= start_layer < layers:
        raise ValueError(f"start_layer must be an int in [0, {layers}), not {start_layer!r}")
    if not _is_int(class_chunk) or class_chunk < 1:
        raise ValueError(f"class_chunk must be an int of at least 1, not {class_chunk!r}")
    if precision != "highest" and rules == "published" and REGISTRY[method].rule_sets:
        warnings.warn(
            f"published rules of {method} divide by sums that cancel, and lose digits at precision={precision!r}: "
            'rules="stable" does not',
            stacklevel=3,
        )


def _check_images(images: ArrayLike, model: Explainable) -> Array:
    """The images as an array, of the model's size or, where it takes any, of at least a pixel."""
    if not isinstance(images, jax.Array):
        images = np.asarray(images)
    size = ("H", "W") if model.any_size else model.preprocess.size
    fits = images.ndim == 4 and images.shape[3] == 3 and images.size
    if not fits or not (model.any_size or images.shape[1:3] == size):
        raise ValueError(f"images must be (B, {size[0]}, {size[1]}, 3), B > 0, not {images.shape}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be normalised floats, not {images.dtype}")
    checked = jnp.asarray(images)
    values = jax.lax.stop_gradient(checked)
    finite = jnp.isfinite(values).all((1, 2, 3))
    # Inside another jit even a constant's values are traced.
    if not isinstance(finite, jax.core.Tracer):
        if not finite.all():
            raise ValueError(
                f"images[{finite.argmin()}] has a value that is not finite: leave it out"
            )
        _warn_of_pixels(float(values.min()), float(values.max()), model)
    return checked


def _warn_of_pixels(low: float, high: float, model: Explainable) -> None:
    """Warns of values that are hardly normalised pixels: far outside their range, or all of [0, 1] and nothing else."""
    mean, std = np.asarray(model.preprocess.mean), np.asarray(model.preprocess.std)
    least, most = float((-mean / std).min()), float(((1 - mean) / std).max())
    far = _FAR * (most - least)
    fractions = least < 0 <= low < 0.05 and 0.95 < high <= 1
    if least - far <= low and high <= most + far and not fractions:
        return
    warnings.warn(
        f"images are in [{low:.4g}, {high:.4g}], but normalised pixels of this model in [{least:.4g}, {most:.4g}]: "
        "model.preprocess(image) prepares a picture",
        stacklevel=5,
    )


def _at_size(model: Explainable, images: Array) -> Explainable:
    """The model whose grid is that of the images, where it takes any size."""
    size = (images.shape[1], images.shape[2])
    if size != model.preprocess.size:
        model = nnx.merge(*nnx.split(model))
        model.preprocess = replace(model.preprocess, size=size)
    return model


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
