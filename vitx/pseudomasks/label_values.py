"""Values of label maps, one byte a pixel as in PASCAL VOC: 0 background, class + 1, 255 neutral."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitx.data.palette import IGNORED

MAX_CLASSES = IGNORED - 1


def label_values(classes: np.ndarray) -> np.ndarray:
    """The values of background and of classes (K,), -1 where padding, in a label map: uint8 (1 + K,)."""
    return np.concatenate([[0], classes + 1]).astype(np.uint8)


def require_byte_classes(classes: Any) -> None:
    """Checks that classes are integers that fit into a byte beside background and neutral.

    Args:
      classes: ints of any shape, -1 where padding; their values are not checked inside a `jit`.

    Raises:
      ValueError: for another type, or a class of 254 or more.
    """
    if not jnp.issubdtype(classes.dtype, jnp.integer):
        raise ValueError(f"classes must be integers, not {classes.dtype}")
    if isinstance(classes, jax.core.Tracer) or not classes.size:
        return
    largest = np.asarray(classes).max()  # JAX would trace it inside a jit
    if largest >= MAX_CLASSES:
        raise ValueError(
            f"class {largest} does not fit into label maps of 8 bits, in which 255 is neutral: "
            f"use at most {MAX_CLASSES} classes"
        )
