"""What is explained: a value of the model's output, as its gradient there, from which every method goes back.

A parsed target is a `Partial(gradient, *arrays)`: it maps the output (B, C) to the value's gradient (B, C), or to those
of K values (B, K, C). Its arrays are traced and its function is part of its structure, so that only another kind of
target, or another function, triggers a compilation.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from vitx.naming import find_classes
from vitx.ops import Array

Classes = ArrayLike | str | Sequence[Any]
Target = Classes | tuple[Any, ...] | Callable[[Array], Array]

_ROUNDING = 100  # times the type's epsilon: a direction that differs by less is the same
_FORMS = (
    'an int, ints (B,) or (B, K), ("difference", a, b), ("probability", a), an embedding of floats '
    "or a function"
)


def parse(
    classes: Classes | None,
    target: Target | None,
    batch: int,
    num_classes: int,
    names: Sequence[str] | None = None,
) -> Partial:
    """The gradient of what `vitx.explain` is asked for, as a function of the output.

    Args:
      classes: ints or names (B,) or (B, K); a text with one name or, between commas, several, for all images; or None.
      target: in place of `classes`, see `vitx.explain`; both None for the predicted class.
      batch: number of images, B.
      num_classes: of the model; 0 where its output is the pooled one.
      names: of the classes, where they are known.

    Raises:
      ValueError: for both, for what is no target, or one that the model's output does not have.
    """
    classes = _numbered(classes, batch, names)
    if isinstance(target, tuple) and target and isinstance(target[0], str):
        target = (target[0], *(_numbered(part, batch, names) for part in target[1:]))
    elif not callable(target):
        target = _numbered(target, batch, names)
    if classes is not None and target is not None:
        raise ValueError("give classes or target, not both")
    if target is None:
        _need_classes(num_classes)
        if classes is None:
            return Partial(of_predicted)
        return Partial(of_classes, _classes("classes", classes, batch, num_classes))
    if callable(target):
        return Partial(of_function, _function(target))
    if isinstance(target, tuple) and target and isinstance(target[0], str):
        return _named(target, batch, num_classes)
    array = _array(target)
    if jnp.issubdtype(array.dtype, jnp.floating):
        return Partial(of_similarity, _embedding(array, batch))
    _need_classes(num_classes)
    return Partial(of_classes, _classes("target", array, batch, num_classes, scalar=True))


# Gradients at the output.


def of_predicted(output: Array) -> Array:
    """That of the largest output, (B, C)."""
    return of_classes(output.argmax(-1), output)


def of_classes(classes: Array, output: Array) -> Array:
    """One-hot rows (B, [K,] C): of the outputs `classes` (B, [K])."""
    return jax.nn.one_hot(classes, output.shape[-1], dtype=output.dtype)


OF_CLASSES = (of_predicted, of_classes)


def of_difference(first: Array, second: Array, output: Array) -> Array:
    """e_a - e_b: of output a minus output b."""
    return of_classes(first, output) - of_classes(second, output)


def of_probability(classes: Array, output: Array) -> Array:
    """p_a (e_a - p): of the softmax probability p_a."""
    hot, probabilities = of_classes(classes, output), jax.nn.softmax(output)
    if hot.ndim == 3:
        probabilities = probabilities[:, None]
    return (hot * probabilities).sum(-1, keepdims=True) * (hot - probabilities)


def of_similarity(embedding: Array, output: Array) -> Array:
    """(u - cos n) / |y|: of the cosine similarity of the output y = |y| n and an embedding's direction u.

    It vanishes where u and n are one direction; there only rounding would be left, so that it is set to 0.

    Raises:
      ValueError: for an embedding of another length than the output's.
    """
    if embedding.shape[-1] != output.shape[-1]:
        raise ValueError(
            f"target must be an embedding of {output.shape[-1]} channels, as the model's output, "
            f"not {embedding.shape[-1]}"
        )
    if embedding.ndim == 3:
        output = output[:, None]
    towards, direction = (
        x / jnp.linalg.norm(x, axis=-1, keepdims=True)
        for x in (embedding.astype(output.dtype), output)
    )
    cosine = (towards * direction).sum(-1, keepdims=True)
    across = towards - cosine * direction
    rounding = _ROUNDING * jnp.finfo(output.dtype).eps
    across = jnp.where(jnp.linalg.norm(across, axis=-1, keepdims=True) > rounding, across, 0)
    return across / jnp.linalg.norm(output, axis=-1, keepdims=True)


def of_function(function: Partial, output: Array) -> Array:
    """That of a function from outputs (B, C) to values (B,).

    Raises:
      ValueError: where it returns something else.
    """
    values, pullback = jax.vjp(function, output)
    wanted = f"target must return floats {output.shape[:1]}, a value of each image"
    if not isinstance(values, jax.Array):
        raise ValueError(f"{wanted}, not a {type(values).__name__}")
    if values.shape != output.shape[:1] or not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError(f"{wanted}, not {values.dtype} {values.shape}")
    return pullback(jnp.ones_like(values))[0]


# Checks.


def _numbered(value: Any, batch: int, names: Sequence[str] | None) -> Any:
    """Numbers in place of names of classes; a text counts for all images. Anything else stays as it is."""
    texts = value if isinstance(value, str | list | tuple | np.ndarray) else ()
    array = np.asarray(texts) if _has_texts(texts) else np.empty(0)
    if array.dtype.kind != "U":
        return value
    if names is None:
        raise ValueError(
            f"the names of the model's classes are not known: give numbers instead of {value!r:.100}, or set "
            "model.class_names"
        )
    if isinstance(value, str):
        found = np.tile(np.array(find_classes(value, names), np.int32), (batch, 1))  # (B, K)
        return found if found.shape[1] > 1 else found[:, 0]
    each = [find_classes([str(text)], names)[0] for text in array.ravel()]
    return np.array(each, np.int32).reshape(array.shape)


def _has_texts(value: Any) -> bool:
    """Whether a text, or a list of lists of equal length, holds texts alone."""
    if isinstance(value, list | tuple):
        lengths = {len(part) for part in value if isinstance(part, list | tuple)}
        return len(lengths) <= 1 and bool(value) and all(map(_has_texts, value))
    return isinstance(value, str) or (isinstance(value, np.ndarray) and value.dtype.kind == "U")


def _need_classes(num_classes: int) -> None:
    if not num_classes:
        raise ValueError(
            "the model has no classes, its output is an embedding: give an embedding or a function "
            "as target, or a head by vitx.load(..., num_classes=)"
        )


def _function(function: Callable[..., Any]) -> Partial:
    try:
        hash(function)
    except TypeError:
        raise ValueError(
            f"target must be a function that can be hashed, not {function!r}: wrap it in one"
        ) from None
    # A Partial's own arrays stay traced.
    return function if isinstance(function, Partial) else Partial(function)


def _named(target: tuple[Any, ...], batch: int, num_classes: int) -> Partial:
    _need_classes(num_classes)
    match target:
        case ("difference", a, b):
            first, second = (
                _classes(f"target[{n}]", x, batch, num_classes, scalar=True)
                for n, x in ((1, a), (2, b))
            )
            if np.ndim(a) and np.ndim(b) and first.shape != second.shape:
                raise ValueError(
                    f"target[1] and target[2] must have one shape, not {first.shape} and "
                    f"{second.shape}"
                )
            shape = max(first.shape, second.shape, key=len)
            first, second = (
                x if x.shape == shape else jnp.broadcast_to(x[:, None], shape)
                for x in (first, second)
            )
            return Partial(of_difference, first, second)
        case ("probability", a):
            return Partial(
                of_probability, _classes("target[1]", a, batch, num_classes, scalar=True)
            )
    raise ValueError(f"target must be {_FORMS}, not {target!r}")


def _array(value: Any) -> Any:
    """Of numbers; JAX itself would wrap what 32 bits do not hold."""
    if isinstance(value, jax.Array):
        return value
    try:
        array = np.asarray(value)
    except ValueError:  # rows of several lengths
        array = np.empty(0, object)
    if not jnp.issubdtype(array.dtype, jnp.number):
        raise ValueError(f"target must be {_FORMS}, not {value!r}")
    return array


def _classes(name: str, value: Any, batch: int, num_classes: int, *, scalar: bool = False) -> Array:
    """Ints (B,) or (B, K) in range; with `scalar` also (), for all images."""
    classes = value if isinstance(value, jax.Array) else np.asarray(value)
    if scalar and classes.ndim == 0:
        classes = classes[None].repeat(batch)
    if classes.ndim not in (1, 2) or classes.shape[0] != batch or not classes.size:
        one = "an int, " if scalar else ""
        raise ValueError(f"{name} must be {one}({batch},) or ({batch}, K), not {classes.shape}")
    if not jnp.issubdtype(classes.dtype, jnp.integer):
        raise ValueError(f"{name} must be integers, not {classes.dtype}")
    if not isinstance(classes, jax.core.Tracer):
        # JAX would trace even a constant's minimum inside an outer jit; NumPy does not.
        values = np.asarray(classes)
        low, high = values.min(), values.max()
        if low < 0 or high >= num_classes:
            raise ValueError(f"{name} must be in [0, {num_classes}), found {low} to {high}")
    classes = jnp.asarray(classes)
    # A one-hot row of 8-bit classes would wrap, and so would 64-bit ones in 32 bits.
    return classes.astype(jnp.int32) if classes.dtype.itemsize < 4 else classes


def _embedding(value: Any, batch: int) -> Array:
    """Embeddings (B, D), of one value an image, or (B or 1, K, D); see `vitx.explain`."""
    shape = value.shape
    if not (value.size and (len(shape) in (1, 2) or (len(shape) == 3 and shape[0] in (1, batch)))):
        raise ValueError(
            f"target must be an embedding (D,), ({batch}, D), (K, D), (1, K, D) or "
            f"({batch}, K, D), not {shape}"
        )
    if not isinstance(value, jax.core.Tracer):
        lengths = np.linalg.norm(np.asarray(value, np.float64), axis=-1)
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            raise ValueError("target has an embedding that is zero or not finite")
    embedding = jnp.asarray(value)
    if embedding.ndim == 1:
        return jnp.broadcast_to(embedding, (batch, *shape))
    return embedding[None] if len(shape) == 2 and shape[0] != batch else embedding
