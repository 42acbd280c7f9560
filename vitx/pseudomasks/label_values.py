"""Values of label maps, one byte a pixel as in PASCAL VOC: 0 background, class + 1, 255 neutral."""

from typing import Any

import jax
import numpy as np

NEUTRAL = 255
MAX_CLASSES = NEUTRAL - 1


def require_byte_classes(classes: Any) -> None:
    """Checks that classes fit into a byte beside background and neutral, where their values are known.

    Args:
      classes: ints of any shape, -1 where padding.

    Raises:
      ValueError: where one is 254 or more.
    """
    if isinstance(classes, jax.core.Tracer) or not classes.size:
        return
    largest = np.asarray(classes).max()  # JAX would trace it inside a jit
    if largest >= MAX_CLASSES:
        raise ValueError(
            f"class {largest} does not fit into label maps of 8 bits, in which 255 is neutral: "
            f"use at most {MAX_CLASSES} classes"
        )
