"""`explain`: logits and maps from a model, images and classes, by one forward and one backward pass a class."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vitx import parallel
from vitx.ops import Array, Explainable
from vitx.relevance.methods import REGISTRY

METHODS = tuple(REGISTRY)
RULES = ("published", "stable")
MEMORY = ("auto", "fast", "lean")

_LEAN_BYTES = 1 << 30  # an image; beyond, "auto" is "lean"


def explain(
    model: Explainable,
    images: ArrayLike,
    classes: ArrayLike | None = None,
    method: str = "transformer_attribution",
    start_layer: int = 0,
    rules: str = "published",
    class_chunk: int = 1,
    memory: str = "auto",
) -> tuple[Array, Array]:
    """Explains a model's logits by maps over the image. Runs under `jit`, and may be called inside another.

    The logits have the model's own gradient, for every method, so that they may be part of a loss. Maps of relevance
    rules ("lrp", "partial_lrp", "transformer_attribution") have no gradient: `jax.lax.stop_gradient`.

    Args:
      model: a classifier, such as a `VisionTransformer`; see `vitx.ops.Explainable`.
      images: normalised, (B, H, W, 3).
      classes: ints of any width, (B,) or (B, K); None for the predicted class.
      method: one of `METHODS`.
      start_layer: first block of the product in "rollout" and "transformer_attribution"; others ignore it.
      rules: "published" (the published code's rules) or "stable" (the same with bounded denominators).
      class_chunk: classes that go backward at once. More take memory in proportion, and on a CPU more time, too.
      memory: "fast" keeps every block's intermediate values; "lean" computes them again for "lrp" and
        "transformer_attribution", for about a fifth more time; "auto" is lean where they take over 1 GB an image,
        or over half of the device's memory for the batch.

    Returns:
      logits (B, classes), and raw maps (see docs/protocol.md) on the token grid, (B, h, w) or (B, K, h, w). The maps of
      "lrp" on a model without a stem are of pixels, (B, H, W) or (B, K, H, W).

    Raises:
      ValueError: for a model without classes, an unknown method or rule, a start layer that the model does not have, or
        images or classes of a shape, type or range that does not fit. Values are not checked inside another `jit`:
        there a class out of range gives a map of zeros.
      MemoryError: where the device's memory is full, with remedies; inside another `jit` JAX's own error.
    """
    _check_options(model, method, start_layer, rules, class_chunk, memory)
    images, size = _check_images(images, model.preprocess.size), model.preprocess.size
    if classes is not None:
        classes = _check_classes(classes, len(images), model.num_classes)
    if memory == "auto":
        kept = _kept_bytes(model)
        lean = kept > _LEAN_BYTES or kept * len(images) > parallel.device_memory() / 2
        memory = "lean" if lean else "fast"
    with parallel.out_of_memory(
        f"the device's memory does not hold the explanation of {len(images)} images at {size[0]} x {size[1]}: "
        'give memory="lean", class_chunk=1 or fewer images at once'
    ):
        return _explain(model, images, classes, method, start_layer, rules, class_chunk, memory)


def _check_options(
    model: Explainable, method: str, start_layer: Any, rules: str, class_chunk: Any, memory: str
) -> None:
    if not hasattr(model, "classify"):
        raise ValueError(f"a {type(model).__name__} has no classes to explain: give a classifier")
    if method not in REGISTRY:
        raise ValueError(f"method must be one of {', '.join(REGISTRY)}, not {method!r}")
    if rules not in RULES:
        raise ValueError(f"rules must be one of {', '.join(RULES)}, not {rules!r}")
    if memory not in MEMORY:
        raise ValueError(f"memory must be one of {', '.join(MEMORY)}, not {memory!r}")
    layers = len(model.attention_shapes())
    if not _is_int(start_layer) or not 0 <= start_layer < layers:
        raise ValueError(f"start_layer must be an int in [0, {layers}), not {start_layer!r}")
    if not _is_int(class_chunk) or class_chunk < 1:
        raise ValueError(f"class_chunk must be an int of at least 1, not {class_chunk!r}")


def _check_images(images: ArrayLike, size: tuple[int, int]) -> Array:
    if not isinstance(images, jax.Array):
        images = np.asarray(images)
    if images.ndim != 4 or images.shape[1:] != (*size, 3) or not len(images):
        raise ValueError(f"images must be (B, {size[0]}, {size[1]}, 3), B > 0, not {images.shape}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be normalised floats, not {images.dtype}")
    checked = jnp.asarray(images)
    finite = jnp.isfinite(checked).all((1, 2, 3))
    # Inside another jit even a constant's values are traced.
    if not isinstance(finite, jax.core.Tracer) and not finite.all():
        raise ValueError(f"images[{finite.argmin()}] has a value that is not finite: leave it out")
    return checked


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check_classes(classes: Any, batch: int, num_classes: int) -> Array:
    if not isinstance(classes, jax.Array):
        classes = np.asarray(classes)  # JAX would wrap what 32 bits do not hold
    if classes.ndim not in (1, 2) or classes.shape[0] != batch or not classes.size:
        raise ValueError(f"classes must be ({batch},) or ({batch}, K), not {classes.shape}")
    if not jnp.issubdtype(classes.dtype, jnp.integer):
        raise ValueError(f"classes must be integers, not {classes.dtype}")
    if not isinstance(classes, jax.core.Tracer):
        # JAX would trace even a constant's minimum inside an outer jit; NumPy does not.
        values = np.asarray(classes)
        low, high = values.min(), values.max()
        if low < 0 or high >= num_classes:
            raise ValueError(f"classes must be in [0, {num_classes}), found {low} to {high}")
    classes = jnp.asarray(classes)
    # A one-hot row of 8-bit classes would wrap, and so would 64-bit ones in 32 bits.
    return classes.astype(jnp.int32) if classes.dtype.itemsize < 4 else classes


def _kept_bytes(model: Explainable) -> int:
    """Memory that "fast" keeps of an image: some 33 arrays of the tokens' size and two attention matrices a block."""
    itemsize = max(leaf.dtype.itemsize for leaf in jax.tree.leaves(model))
    shapes = [(heads, tokens) for heads, _, tokens in model.attention_shapes()]
    return itemsize * sum(n * (33 * model.width + 2 * heads * n) for heads, n in shapes)


@partial(jax.jit, static_argnames=("method", "start_layer", "rules", "class_chunk", "memory"))
def _explain(
    model: Explainable,
    images: Array,
    classes: Array | None,
    method: str,
    start_layer: int,
    rules: str,
    class_chunk: int,
    memory: str,
) -> tuple[Array, Array]:
    chosen = REGISTRY[method]
    # What runs outside a rule set has the precision of the rule sets.
    with jax.default_matmul_precision("highest"):
        ops = chosen.operations(rules)
        logits, one_class = chosen.run(model, images, ops, start_layer, memory == "lean")
        if classes is None:
            classes = logits.argmax(-1)
        hot = jax.nn.one_hot(classes, logits.shape[-1], dtype=logits.dtype)  # (B, [K,] C)
        if hot.ndim == 2:
            return logits, one_class(hot)
        if not chosen.by_class:
            maps = one_class(hot[:, 0])
            return logits, jnp.broadcast_to(maps[:, None], (*classes.shape, *maps.shape[1:]))
        maps = _each_class(one_class, hot.swapaxes(0, 1), class_chunk)  # (K, B, h, w)
        return logits, maps.swapaxes(0, 1)


def _each_class(one_class: Callable[[Array], Array], hot: Array, chunk: int) -> Array:
    """Maps (K, B, h, w) of one-hot rows (K, B, C): a loop over chunks of classes, where there is more than one."""
    if len(hot) == 1:
        return one_class(hot[0])[None]
    if chunk == 1:
        return jax.lax.map(one_class, hot)
    if chunk >= len(hot):
        return jax.vmap(one_class)(hot)
    return jax.lax.map(one_class, hot, batch_size=chunk)
