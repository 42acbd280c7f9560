"""Which masked images a model gets right: each different one is computed once, in batches of one size."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from vitx.ops import Array

Model = Callable[[Array], Array]
COMPUTE = ("float32", "tf32", "bfloat16")
"""Types of a forward's products, the parameters' own, TensorFloat-32 on GPUs, or all in bfloat16."""


_PRECISIONS = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "highest"}


def masked_outcomes(
    model: Model,
    normalise: Model,
    pixels: Array,
    targets: Array,
    ranks: Array,
    removed: Array,
    fill: Array,
    compute: str = "float32",
) -> Array:
    """Whether masked images are right, for each ranking of an image's pixels and each number of removed ones.

    Rankings of an image that are equal, such as those of the predicted and the target class where both are one, or of
    maps without contrast, have equal masked images. The others go through the model in batches of B: where none are
    equal, one ranking of every image after the other.

    Args:
      model: from normalised images (B, H, W, 3) to logits (B, classes).
      normalise: from pixels to normalised images.
      pixels: (B, H, W, 3).
      targets: the class that is right, int32 (B,).
      ranks: each pixel's place in the order of removal, int (R, B, H, W) for R rankings.
      removed: numbers of pixels, int (F,).
      fill: value of removed pixels.
      compute: one of `COMPUTE`; "bfloat16" is for a model that is a pytree.

    Returns:
      bool (R, F, B).
    """
    reduced = in_bfloat16(model) if compute == "bfloat16" else model
    rankings, batch = ranks.shape[:2]
    images = jnp.arange(batch)[None]
    source = first_equal(ranks) * batch + images  # (R, B): places in (R * B,)
    repeats = source != jnp.arange(rankings)[:, None] * batch + images
    order = jnp.argsort(repeats.reshape(-1), stable=True)  # the different ones first
    batches = -(-(~repeats).sum() // batch)
    flat = ranks.reshape(-1, *ranks.shape[2:])

    def step(number: Array, found: Array) -> Array:
        places = lax.dynamic_slice_in_dim(order, number * batch, batch)
        at = places % batch
        chosen, given, classes = flat[places], pixels[at], targets[at]

        def masked(count: Array) -> Array:
            with jax.default_matmul_precision(_PRECISIONS[compute]):
                images = normalise(jnp.where((chosen < count)[..., None], fill, given))
                return jnp.argmax(reduced(images), -1).astype(jnp.int32) == classes

        return found.at[:, places].set(lax.map(masked, removed), unique_indices=True)

    found = jnp.zeros((len(removed), rankings * batch), bool)
    found = lax.fori_loop(0, batches, step, found)
    return found[:, source].swapaxes(0, 1)


def first_equal(ranks: Array) -> Array:
    """For each ranking (R, B, ...) the number of the first that is equal for the image, int (R, B)."""
    axes = tuple(range(2, ranks.ndim))
    equal = lax.map(lambda one: (ranks == one[None]).all(axes), ranks)  # (R, R, B)
    return equal.argmax(1)


def in_bfloat16(model: Any) -> Any:
    """The model whose floating-point parameters are bfloat16."""

    def reduced(x: Array) -> Array:
        return x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(reduced, model)
