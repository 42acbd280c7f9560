"""Checks of arguments: counts, image sizes, statistics. Numbers of NumPy and JAX become Python's."""

import math
import operator
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, TypeVar

import jax
import numpy as np

T = TypeVar("T")


def checked(name: str, value: Any, check: Callable[[Any], T]) -> T:
    """The value that `check` gives, or its ValueError with the argument's name before it."""
    try:
        return check(value)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from error


def positive_int(value: Any) -> int:
    """A count, at least 1, as an int.

    Args:
      value: a Python, NumPy or JAX integer, or an array () of one.

    Raises:
      ValueError: for anything else, such as 3.0, True or "3"; the caller adds the argument's name.
    """
    number = _whole(value)
    if number is None or number < 1:
        raise ValueError(f"must be a positive whole number, not {value!r}")
    return number


def positive_float(value: Any) -> float:
    """A positive, finite number as a float.

    Raises:
      ValueError: for anything else; the caller adds the argument's name.
    """
    number = _real(value)
    if number is None or not 0 < number < math.inf:
        raise ValueError(f"must be a positive number, not {value!r}")
    return number


def image_size(value: Any) -> tuple[int, int]:
    """A size (height, width) in pixels, each at least 1.

    Args:
      value: one side for both, or two sides in a sequence or an array (2,); integers of Python,
        NumPy or JAX.

    Raises:
      ValueError: for anything else; the caller adds the argument's name.
    """
    row = _row(value)
    found = [_whole(side) for side in ((value, value) if row is None else row)]
    sides = [side for side in found if side is not None and side >= 1]
    if len(found) == len(sides) == 2:
        return sides[0], sides[1]
    raise ValueError(f"must be a side or (H, W), positive whole numbers of pixels, not {value!r}")


def three_numbers(value: Any) -> tuple[float, float, float]:
    """Three finite numbers, one a colour channel, as floats.

    Args:
      value: a sequence or an array (3,); numbers of Python, NumPy or JAX.

    Raises:
      ValueError: for anything else; the caller adds the argument's name.
    """
    found = [_real(number) for number in _row(value) or ()]
    numbers = [number for number in found if number is not None and math.isfinite(number)]
    if len(found) == len(numbers) == 3:
        return numbers[0], numbers[1], numbers[2]
    raise ValueError(f"must be three numbers, not {value!r}")


def three_positive(value: Any) -> tuple[float, float, float]:
    """`three_numbers`, each above 0."""
    if min(numbers := three_numbers(value)) <= 0:
        raise ValueError(f"must be positive, not {value!r}")
    return numbers


def _row(value: Any) -> list[Any] | None:
    """The entries of a sequence, or of an array with one axis; None for anything else."""
    if isinstance(value, np.ndarray | jax.Array):
        # While JAX traces, entries of its arrays are traced too; those of NumPy's are numbers.
        return list(np.asarray(value)) if value.ndim == 1 else None
    is_row = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return list(value) if is_row else None


def _whole(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _real(value: Any) -> float | None:
    if isinstance(value, np.ndarray | jax.Array) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:  # an int beyond the largest float
        return None
