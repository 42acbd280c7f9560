"""`explain`: logits and maps from a model, images and classes, by one forward and one backward pass a class."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.tree_util import Partial
from jax.typing import ArrayLike

from vitx import parallel
from vitx.explainable import Explainable
from vitx.ops import Array
from vitx.relevance import (
    beyond_intuition,
    class_maps,
    gradients,
    lrp,
    methods,
    model_agnostic,
    outliers,
    targets,
)
from vitx.relevance.registry import REGISTRY

_REGISTERING = (  # they register their methods when they are imported
    methods,
    gradients,
    beyond_intuition,
    class_maps,
    lrp,
    model_agnostic,
)
METHODS = tuple(REGISTRY)
RULES = ("published", "stable")
MEMORY = ("auto", "fast", "lean")
HIGH_NORM = ("keep", "median")

_LEAN_BYTES = 1 << 30  # an image; beyond, "auto" is "lean"
_FAR = 16  # widths of the pixels' range outside it: noise stays within, pixels in [0, 255] do not


def explain(
    model: Explainable,
    images: ArrayLike,
    classes: targets.Classes | None = None,
    method: str = "transformer_attribution",
    start_layer: int = 0,
    rules: str = "published",
    class_chunk: int = 1,
    memory: str = "auto",
    target: targets.Target | None = None,
    high_norm: str = "keep",
    options: Mapping[str, Any] | None = None,
) -> tuple[Array, Array]:
    """Explains a value of a model's output, such as a logit, by a map over the image.

    Runs under `jit`, and may be called inside another. The logits have the model's own gradient, for every method, so
    that they may be part of a loss. Maps of relevance rules (the LRP family and LibraGrad) have none.

    Args:
      model: a classifier, such as a `VisionTransformer` or a `ConvNet`; see `vitx.explainable.Explainable`.
      images: normalised, (B, H, W, 3), of the model's size, for a CNN any; [0, 255] or [0, 1] causes a warning.
      classes: ints of any width or names, (B,) or (B, K); "cat" or "cat,dog" for all images; None for the predicted.
      method: one of `METHODS` that the model has, see `registry.methods_of`: a CNN has none that reads attention.
      start_layer: first block of the product or sum in "rollout", "transformer_attribution", "generic_attention",
        "legrad" and "beyond_intuition_*", whatever was published (docs/methods.md); others ignore it.
      rules: "published" (the published code's rules) or "stable" (the same with bounded denominators).
      class_chunk: of K values, how many go backward at once. More take more memory, and on a CPU more time, too.
      memory: "fast" keeps every block's intermediate values; "lean" computes them again where the method goes through
        all blocks, for about a fifth more time; "auto" is lean beyond 1 GB an image or half of the device's memory.
      target: in place of `classes`, what is explained (docs/explain.md): an int or ints, ("difference", a, b),
        ("probability", a), a function from the output (B, C) to (B,), or an embedding, for the cosine similarity of
        the pooled output with it: (D,); one an image, (B, D); K for all images, (K, D), written (1, K, D) where K may
        be B; or (B, K, D).
      high_norm: "median" puts the median of their neighbours at patch tokens of high norm (`outliers`); "keep".
      options: parameters of the method by name (docs/methods.md), such as {"steps": 50}.

    Returns:
      the output (B, C), the pooled one for an embedding as target, and raw maps (docs/protocol.md) on the token grid,
      (B, h, w) or (B, K, h, w), or where `registry.Method.gives_pixels` of pixels, (B, H, W) or (B, K, H, W).
      Methods of several forwards take a target's gradient at the image's own output.

    Raises:
      ValueError: for a method, option, start layer or target that model or method do not have, or images, classes or
        a target of another shape, type or range; inside another `jit` a class out of range has a map of zeros.
      MemoryError: where the device's memory is full, with remedies; inside another `jit` JAX's own error.
    """
    _check_options(model, method, start_layer, rules, class_chunk, memory, high_norm)
    images = _check_images(images, model)
    model, size = _at_size(model, images), images.shape[1:3]
    explained = _target(model, method, classes, target, len(images))
    if explained.func is targets.of_similarity and model.num_classes:
        model = model.without_head()
    memory = _fitting_memory(model, len(images)) if memory == "auto" else memory
    with parallel.out_of_memory(
        f"the device's memory does not hold the explanation of {len(images)} images at {size[0]} x {size[1]}: "
        'give memory="lean", class_chunk=1 or fewer images at once'
    ):
        static = method, start_layer, rules, class_chunk, memory, high_norm
        return _explain(model, images, explained, *static, REGISTRY[method].checked(options or {}))


def _target(
    model: Explainable,
    method: str,
    classes: targets.Classes | None,
    target: targets.Target | None,
    batch: int,
) -> Partial:
    """What is explained, see `targets.parse`, where the method can explain it."""
    names = getattr(model, "class_names", None)
    explained = targets.parse(classes, target, batch, model.num_classes, names)
    if REGISTRY[method].of_probability and explained.func not in targets.OF_CLASSES:
        raise ValueError(f"{method} explains the probability of a class: give classes as ints")
    return explained


def _check_options(
    model: Explainable,
    method: str,
    start_layer: Any,
    rules: str,
    class_chunk: Any,
    memory: str,
    high_norm: str,
) -> None:
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
        stacklevel=4,
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


def _fitting_memory(model: Explainable, batch: int) -> str:
    kept = _kept_bytes(model)
    lean = kept > _LEAN_BYTES or kept * batch > parallel.device_memory() / 2
    return "lean" if lean else "fast"


def _kept_bytes(model: Explainable) -> int:
    """Memory that "fast" keeps of an image: some 33 arrays of the tokens' size and two attention matrices a block."""
    itemsize = max(leaf.dtype.itemsize for leaf in jax.tree.leaves(model))
    shapes = [(heads, tokens) for heads, _, tokens in model.attention_shapes()]
    return itemsize * sum(n * (33 * model.width + 2 * heads * n) for heads, n in shapes)


@partial(
    jax.jit,
    static_argnames=(
        "method",
        "start_layer",
        "rules",
        "class_chunk",
        "memory",
        "high_norm",
        "options",
    ),
)
def _explain(
    model: Explainable,
    images: Array,
    target: Callable[[Array], Array],
    method: str,
    start_layer: int,
    rules: str,
    class_chunk: int,
    memory: str,
    high_norm: str = "keep",
    options: tuple[tuple[str, Any], ...] = (),
) -> tuple[Array, Array]:
    chosen = REGISTRY[method]
    # What runs outside a rule set has the precision of the rule sets.
    with jax.default_matmul_precision("highest"):
        ops = chosen.operations(rules)
        lean = memory == "lean"
        output, one_value = chosen.run(model, images, ops, start_layer, lean, **dict(options))
        gradients = target(output)  # (B, [K,] C)
        if gradients.ndim == 2:
            maps = one_value(gradients)
        elif chosen.by_class:
            maps = _each_value(one_value, gradients.swapaxes(0, 1), class_chunk).swapaxes(0, 1)
        else:
            maps = one_value(gradients[:, 0])
            maps = jnp.broadcast_to(maps[:, None], (*gradients.shape[:2], *maps.shape[1:]))
        if high_norm == "median":
            maps = outliers.smoothed(model, images, maps)
        return output, maps


def _each_value(one_value: Callable[[Array], Array], gradients: Array, chunk: int) -> Array:
    """Maps (K, B, h, w) of gradients at the output (K, B, C): a loop over chunks of K, where it is more than 1."""
    if len(gradients) == 1:
        return one_value(gradients[0])[None]
    if chunk == 1:
        return jax.lax.map(one_value, gradients)
    if chunk >= len(gradients):
        return jax.vmap(one_value)(gradients)
    return jax.lax.map(one_value, gradients, batch_size=chunk)
