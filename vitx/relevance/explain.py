"""Model, images and classes in; logits and maps out: one forward, and one backward pass a class."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vitx.device_memory import device_bytes, remedy
from vitx.ops import Array, Ops
from vitx.relevance import bundles, methods

METHODS = (
    "rollout",
    "raw_attention",
    "gradcam",
    "lrp",
    "partial_lrp",
    "transformer_attribution",
)
CLASS_AGNOSTIC = ("rollout", "raw_attention")
RULES = ("published", "stable")
MEMORY = ("auto", "fast", "lean")

_LEAN_BYTES = 1 << 30  # an image; beyond, "auto" is "lean"


def explain(
    model: Any,
    images: ArrayLike,
    classes: ArrayLike | None = None,
    method: str = "transformer_attribution",
    start_layer: int = 0,
    rules: str = "published",
    class_chunk: int = 1,
    memory: str = "auto",
) -> tuple[Array, Array]:
    """Explains a model's logits by maps over the image. Runs under `jit`, and may be called inside another.

    The logits carry the model's own gradient, for every method, so that they may be part of a loss. Maps that were made
    with relevance rules ("lrp", "partial_lrp", "transformer_attribution") are cut off by `jax.lax.stop_gradient`.

    Args:
      model: a `VisionTransformer`.
      images: normalised, (B, H, W, 3).
      classes: ints of any width, (B,) or (B, K); None for the predicted class.
      method: one of `METHODS`.
      start_layer: first block of the product in "rollout" and "transformer_attribution"; others ignore it.
      rules: "published" (the published code's rules) or "stable" (the same with bounded denominators).
      class_chunk: classes that go backward at once. More take memory in proportion, and on a CPU more time, too.
      memory: "fast" keeps what the forward computed in every block; "lean" computes it anew for "lrp" and
        "transformer_attribution", for about a fifth more time; "auto" is lean where that would be over 1 GB an image,
        or over half of the device's memory for the batch.

    Returns:
      logits (B, classes), and raw maps (see docs/protocol.md) on the token grid, (B, h, w) or (B, K, h, w). "lrp" on a
      model without a stem gives pixels, (B, H, W) or (B, K, H, W).

    Raises:
      ValueError: for a model without classes, an unknown method or rule, a start layer that the model does not have, or
        images or classes of a shape, type or range that does not fit. Values are not checked inside another `jit`.
      MemoryError: where the device's memory ends, naming what uses less of it; inside another `jit` JAX's own error.
    """
    _check_options(model, method, start_layer, rules, class_chunk, memory)
    if not isinstance(images, jax.Array):
        images = np.asarray(images)
    size = tuple(model.preprocess.size)
    if images.ndim != 4 or images.shape[1:] != (*size, 3) or not len(images):
        raise ValueError(f"images must be (B, {size[0]}, {size[1]}, 3), B > 0, not {images.shape}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be normalised floats, not {images.dtype}")
    images = jnp.asarray(images)
    finite = jnp.isfinite(images).all((1, 2, 3))
    # Inside another jit even a constant's values are traced.
    if not isinstance(finite, jax.core.Tracer) and not finite.all():
        raise ValueError(f"images[{finite.argmin()}] has a value that is not finite: leave it out")
    if classes is not None:
        classes = _check_classes(classes, len(images), model.num_classes)
    if memory == "auto":
        kept = _kept_bytes(model, images.dtype.itemsize)
        lean = kept > _LEAN_BYTES or kept * len(images) > device_bytes() / 2
        memory = "lean" if lean else "fast"
    with remedy(
        f"the device's memory does not hold the explanation of {len(images)} images at {size[0]} x {size[1]}: "
        'give memory="lean", class_chunk=1 or fewer images at once'
    ):
        return _explain(model, images, classes, method, start_layer, rules, class_chunk, memory)


def _check_options(
    model: Any, method: str, start_layer: Any, rules: str, class_chunk: Any, memory: str
) -> None:
    if not hasattr(model, "classify"):
        raise ValueError(f"a {type(model).__name__} has no classes to explain: give a classifier")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    if rules not in RULES:
        raise ValueError(f"rules must be one of {', '.join(RULES)}, not {rules!r}")
    if memory not in MEMORY:
        raise ValueError(f"memory must be one of {', '.join(MEMORY)}, not {memory!r}")
    layers = len(model.blocks)
    if not _is_int(start_layer) or not 0 <= start_layer < layers:
        raise ValueError(f"start_layer must be an int in [0, {layers}), not {start_layer!r}")
    if not _is_int(class_chunk) or class_chunk < 1:
        raise ValueError(f"class_chunk must be an int of at least 1, not {class_chunk!r}")


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
    return jnp.asarray(classes).astype(jnp.int32)  # a one-hot row of 8-bit classes would wrap


def _kept_bytes(model: Any, itemsize: int) -> int:
    """What "fast" keeps of an image: some 33 arrays as wide as the tokens and two attention matrices a block."""
    tokens, width = 1 + model.grid[0] * model.grid[1], model.head.kernel.shape[0]
    one = 33 * width + 2 * model.blocks[0].attn.heads * tokens
    return len(model.blocks) * tokens * one * itemsize


@partial(jax.jit, static_argnames=("method", "start_layer", "rules", "class_chunk", "memory"))
def _explain(
    model: Any,
    images: Array,
    classes: Array | None,
    method: str,
    start_layer: int,
    rules: str,
    class_chunk: int,
    memory: str,
) -> tuple[Array, Array]:
    # Convolutions and whatever else runs outside a bundle follow the same precision as the bundles.
    with jax.default_matmul_precision("highest"):
        logits, one_class = _METHODS[method](model, images, start_layer, rules, memory == "lean")
    if classes is None:
        classes = logits.argmax(-1)
    hot = jax.nn.one_hot(classes, logits.shape[-1], dtype=logits.dtype)  # (B, [K,] C)
    if hot.ndim == 2:
        return logits, one_class(hot)
    if method in CLASS_AGNOSTIC:
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


# Each of these runs the forward and returns the logits (B, C) and a function from one-hot rows (B, C) to maps.


def _transformer_attribution(
    model: Any, images: Array, start_layer: int, rules: str, lean: bool
) -> Any:
    ops = bundles.CHEFER_PAIRS if rules == "published" else bundles.STABLE_PAIRS
    return attribution(model, images, start_layer, ops, lean=lean)


def attribution(
    model: Any, images: Array, start_layer: int, ops: Ops, *, lean: bool = False
) -> tuple[Array, Callable[[Array], Array]]:
    """Transformer attribution under any bundle of pairs, `bundles.attribution_bundle` makes others.

    Args:
      model: a `VisionTransformer`.
      images: normalised, (B, H, W, 3).
      start_layer: first block of the product.
      ops: a bundle of pairs.
      lean: computes the blocks anew on the way back.

    Returns:
      logits (B, classes), and a function from one-hot rows (B, classes) to maps (B, h, w).
    """
    tokens = _tokens(model, images)

    def forward(taps: list[Array]) -> Any:
        encoded = _encoded(model, bundles.twice(tokens), ops, [None] * start_layer + taps, lean)
        return model.classify(encoded, ops)

    counts = _queries(model, tokens)[start_layer:]
    taps = [jnp.zeros((len(tokens), q, tokens.shape[1]), tokens.dtype) for q in counts]
    logits, pull = jax.vjp(forward, taps)

    def one_class(hot: Array) -> Array:
        (attributions,) = pull(bundles.twice(hot))
        return _on_grid(model, methods.transformer_attribution(attributions, 0))

    return _under_rules(model, images, logits.gradient, one_class)


def _attention_only(model: Any, images: Array, start_layer: int, method: str) -> Any:
    ops = bundles.EXACT
    encoded, attentions = model.encode(_tokens(model, images), ops)
    if method == "rollout":
        maps = methods.rollout([a.mean(1) for a in attentions], start_layer)
    else:
        maps = methods.raw_attention(attentions[-1])
    return model.classify(encoded, ops), lambda hot: _on_grid(model, maps)


def _rollout(model: Any, images: Array, start_layer: int, rules: str, lean: bool) -> Any:
    return _attention_only(model, images, start_layer, "rollout")


def _raw_attention(model: Any, images: Array, start_layer: int, rules: str, lean: bool) -> Any:
    return _attention_only(model, images, start_layer, "raw_attention")


def _last_block(model: Any, images: Array, ops: Ops) -> Any:
    """Logits, the last block's attention, and the pullback to it, both (B, heads, 1, N)."""
    tokens = _tokens(model, images)
    batch, count, _ = tokens.shape
    free = [None] * (len(model.blocks) - 1)

    def forward(tap: Array) -> tuple[Array, Array]:
        encoded, attentions = model.encode(tokens, ops, [*free, tap])
        return model.classify(encoded, ops), attentions[-1]

    tap = jnp.zeros((batch, model.blocks[-1].attn.heads, 1, count), tokens.dtype)
    logits, pull, attention = jax.vjp(forward, tap, has_aux=True)
    return logits, attention, lambda hot: pull(hot)[0]


def _gradcam(model: Any, images: Array, start_layer: int, rules: str, lean: bool) -> Any:
    logits, attention, pull = _last_block(model, images, bundles.EXACT)
    return logits, lambda hot: _on_grid(model, methods.gradcam(attention, pull(hot)))


def _partial_lrp(model: Any, images: Array, start_layer: int, rules: str, lean: bool) -> Any:
    ops = bundles.LRP if rules == "published" else bundles.STABLE_LRP
    logits, _, pull = _last_block(model, images, ops)
    return _under_rules(
        model, images, logits, lambda hot: _on_grid(model, methods.partial_lrp(pull(hot)))
    )


def _lrp(model: Any, images: Array, start_layer: int, rules: str, lean: bool) -> Any:
    ops = bundles.LRP if rules == "published" else bundles.STABLE_LRP

    def forward(features: Array) -> Array:
        encoded = _encoded(model, model.embed(features, ops), ops, None, lean)
        return model.classify(encoded, ops)

    logits, pull = jax.vjp(forward, model.features(images, bundles.EXACT))
    return _under_rules(model, images, logits, lambda hot: pull(hot)[0].sum(-1))


def _under_rules(
    model: Any, images: Array, logits: Array, one_class: Callable[[Array], Array]
) -> tuple[Array, Callable[[Array], Array]]:
    """Gives the logits the model's gradient, and the maps none: under relevance rules a cotangent is no gradient."""
    return _with_gradient(model, images, logits), lambda hot: jax.lax.stop_gradient(one_class(hot))


@jax.custom_vjp
def _with_gradient(model: Any, images: Array, logits: Array) -> Array:
    """The logits, whose gradient is that of model(images). Only a caller who differentiates pays for it."""
    return logits


def _logits_forward(model: Any, images: Array, logits: Array) -> tuple[Array, Any]:
    _, pull = jax.vjp(lambda model, images: model(images, bundles.EXACT), model, images)
    return logits, pull


def _logits_backward(pull: Any, cotangent: Array) -> tuple[Any, ...]:
    return *pull(cotangent), jnp.zeros_like(cotangent)


_with_gradient.defvjp(_logits_forward, _logits_backward)


def _encoded(model: Any, tokens: Any, ops: Ops, taps: list[Array | None] | None, lean: bool) -> Any:
    return model.encode_lean(tokens, ops, taps) if lean else model.encode(tokens, ops, taps)[0]


def _tokens(model: Any, images: Array) -> Array:
    return model.embed(model.features(images, bundles.EXACT), bundles.EXACT)


def _queries(model: Any, tokens: Array) -> list[int]:
    return [tokens.shape[1]] * (len(model.blocks) - 1) + [1]


def _on_grid(model: Any, row: Array) -> Array:
    return row.reshape(len(row), *model.grid)


_METHODS = {
    "rollout": _rollout,
    "raw_attention": _raw_attention,
    "gradcam": _gradcam,
    "lrp": _lrp,
    "partial_lrp": _partial_lrp,
    "transformer_attribution": _transformer_attribution,
}
