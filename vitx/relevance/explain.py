"""`explain`: logits and maps from a model, images and classes, by one forward and one backward pass a class."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from vitx import parallel
from vitx.explainable import Explainable
from vitx.ops import Array
from vitx.relevance import (
    beyond_intuition,
    class_maps,
    gradients,
    lrp,
    model_agnostic,
    outliers,
    targets,
)
from vitx.relevance import methods as registered
from vitx.relevance.checks import check_options, prepared
from vitx.relevance.precision import products
from vitx.relevance.registry import REGISTRY, STABLE, method_of

_REGISTERING = (  # they register their methods when they are imported
    registered,
    gradients,
    beyond_intuition,
    class_maps,
    lrp,
    model_agnostic,
)
METHODS = tuple(REGISTRY)

_LEAN_BYTES = 1 << 30  # an image; beyond, "auto" is "lean"
# Times what one method keeps, for six or twelve in one program, measured (docs/performance.md).
_TOGETHER = 2


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
    precision: str = "highest",
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
      precision: of float32 products of linear layers and attention on a GPU or TPU: "highest"; "high", three bfloat16
        products; "tf32", which a TPU lacks. Published rules lose digits and cause a warning (docs/precision.md).

    Returns:
      the output (B, C), the pooled one for an embedding as target, and raw maps (docs/protocol.md) on the token grid,
      (B, h, w) or (B, K, h, w), or where `registry.Method.gives_pixels` of pixels, (B, H, W) or (B, K, H, W).
      Methods of several forwards take a target's gradient at the image's own output.

    Raises:
      ValueError: for a method, option, start layer or target that model or method do not have, or images, classes or
        a target of another shape, type or range; inside another `jit` a class out of range has a map of zeros.
      MemoryError: where the device's memory is full, with remedies; inside another `jit` JAX's own error.
    """
    check_options(model, method, start_layer, rules, class_chunk, memory, high_norm, precision)
    model, images, explained = prepared(model, images, classes, target, (method,))
    memory = _fitting_memory(model, len(images)) if memory == "auto" else memory
    with _remedies(images), products(precision):
        static = method, start_layer, rules, class_chunk, memory, high_norm
        return _explain(model, images, explained, *static, REGISTRY[method].checked(options or {}))


def explain_many(
    model: Explainable,
    images: ArrayLike,
    classes: targets.Classes | None = None,
    methods: Sequence[str] = registered.TABLE_METHODS,
    start_layers: Mapping[str, int] | None = None,
    rules: str = "published",
    class_chunk: int = 1,
    memory: str = "auto",
    target: targets.Target | None = None,
    high_norm: str = "keep",
    options: Mapping[str, Mapping[str, Any]] | None = None,
    precision: str = "highest",
) -> tuple[Array, dict[str, Array]]:
    """Explains a value by several methods, in one program, where the compiler computes what they share once.

    What they share is the forward pass, and the backward pass of methods whose gradient is the same. The numbers are
    those of `explain`, to rounding. With memory="lean" each method has a program of its own, and nothing is shared.

    Args:
      model: as for `explain`.
      images: likewise, (B, H, W, 3).
      classes: likewise, (B,) or (B, K) or names; None for the predicted.
      methods: names of `METHODS` that the model has, each once; "lrp/stable" has stable rules whatever `rules` says.
      start_layers: the first block of the product of a method, by its name in `METHODS`; others begin at the first.
      rules: as for `explain`, of the methods without "/stable".
      class_chunk: as for `explain`.
      memory: likewise; "auto" is lean where the values that all the methods keep would not fit.
      target: as for `explain`.
      high_norm: likewise; with "median" no method may give maps of pixels.
      options: parameters of the methods, by their names in `METHODS`.
      precision: as for `explain`.

    Returns:
      the output (B, C), and raw maps by the names in `methods`, in that order, each as `explain` returns it.

    Raises:
      ValueError: as `explain`; for no or repeated methods, and start layers or options of a method that is not there.
      MemoryError: as `explain`.
    """
    chosen = _chosen(methods, start_layers or {}, rules, options or {})
    for one in chosen:
        own = one.method, one.start_layer, one.rules
        check_options(model, *own, class_chunk, memory, high_norm, precision)
    names = [one.method for one in chosen]
    model, images, explained = prepared(model, images, classes, target, names)
    if memory == "auto":
        memory = _fitting_memory(model, len(images), 1 if len(chosen) == 1 else _TOGETHER)
    groups = [(one,) for one in chosen] if memory == "lean" else [chosen]
    maps: list[Array] = []
    with _remedies(images), products(precision):
        for group in groups:
            output, found = _explain_many(
                model, images, explained, group, class_chunk, memory, high_norm
            )
            maps += found
    return output, dict(zip(methods, maps, strict=True))


class _Chosen(NamedTuple):
    """What is compiled of a method of `explain_many`."""

    method: str
    start_layer: int
    rules: str
    options: tuple[tuple[str, Any], ...]


def _chosen(
    methods: Sequence[str],
    start_layers: Mapping[str, int],
    rules: str,
    options: Mapping[str, Mapping[str, Any]],
) -> tuple[_Chosen, ...]:
    if isinstance(methods, str) or not methods or len(set(methods)) < len(methods):
        raise ValueError(f"methods must be names of methods, each once, not {methods!r:.200}")
    named = [method_of(name).name for name in methods]
    for name in (*start_layers, *options):
        if name not in named:
            raise ValueError(f"start_layers or options has {name!r:.100}, which is not in methods")
    return tuple(
        _Chosen(
            method,
            start_layers.get(method, 0),
            "stable" if name.endswith(STABLE) else rules,
            REGISTRY[method].checked(options.get(method, {})),
        )
        for name, method in zip(methods, named, strict=True)
    )


def _remedies(images: Array) -> AbstractContextManager[None]:
    """Says what helps where the device's memory is full."""
    count, height, width, _ = images.shape
    return parallel.out_of_memory(
        f"the device's memory does not hold the explanation of {count} images at {height} x {width}: "
        'give memory="lean", class_chunk=1 or fewer images at once'
    )


def _fitting_memory(model: Explainable, batch: int, times: int = 1) -> str:
    kept = times * _kept_bytes(model)
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


@partial(jax.jit, static_argnames=("methods", "class_chunk", "memory", "high_norm"))
def _explain_many(
    model: Explainable,
    images: Array,
    target: Callable[[Array], Array],
    methods: tuple[_Chosen, ...],
    class_chunk: int,
    memory: str,
    high_norm: str,
) -> tuple[Array, list[Array]]:
    found = [
        _explain(model, images, target, *one[:3], class_chunk, memory, high_norm, one.options)
        for one in methods
    ]
    return found[0][0], [maps for _, maps in found]


def _each_value(one_value: Callable[[Array], Array], gradients: Array, chunk: int) -> Array:
    """Maps (K, B, h, w) of gradients at the output (K, B, C): a loop over chunks of K, where it is more than 1."""
    if len(gradients) == 1:
        return one_value(gradients[0])[None]
    if chunk == 1:
        return jax.lax.map(one_value, gradients)
    if chunk >= len(gradients):
        return jax.vmap(one_value)(gradients)
    return jax.lax.map(one_value, gradients, batch_size=chunk)
