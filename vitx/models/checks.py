"""Checks of numbers from callers and files; those of NumPy and JAX become Python's."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


def checked(name: str, value: Any, check: Callable[[Any], T]) -> T:
    """The value that `check` returns; its ValueError gets the argument's name in front."""
    try:
        return check(value)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from error


def positive_int(value: Any) -> int:
    """A count, at least 1; 3.0, True and "3" raise ValueError."""
    number = _numbers(value, "iu", ())
    if number is None or number < 1:
        raise ValueError(f"must be a positive whole number, not {value!r}")
    return int(number)


def positive_float(value: Any) -> float:
    """A finite number above 0."""
    number = _numbers(value, "iuf", ())
    if number is None or number <= 0:
        raise ValueError(f"must be a positive number, not {value!r}")
    return float(number)


def image_size(value: Any) -> tuple[int, int]:
    """A size (height, width) in pixels, from one side for both or from two."""
    sides = _numbers(value, "iu", (), (2,))
    if sides is None or sides.min() < 1:
        raise ValueError(
            f"must be a side or (H, W), positive whole numbers of pixels, not {value!r}"
        )
    height, width = np.broadcast_to(sides, 2).tolist()
    return height, width


def three_numbers(value: Any) -> tuple[float, float, float]:
    """Three finite numbers, one for each colour channel."""
    numbers = _numbers(value, "iuf", (3,))
    if numbers is None:
        raise ValueError(f"must be three numbers, not {value!r}")
    red, green, blue = numbers.astype(float).tolist()
    return red, green, blue


def three_positive(value: Any) -> tuple[float, float, float]:
    """`three_numbers`, each above 0."""
    if min(numbers := three_numbers(value)) <= 0:
        raise ValueError(f"must be positive, not {value!r}")
    return numbers


def share(value: Any) -> float:
    """A number above 0 and at most 1."""
    if (number := positive_float(value)) > 1:
        raise ValueError(f"must be at most 1, not {value!r}")
    return number


def one_of(known: Sequence[str]) -> Callable[[Any], str]:
    """A check that a value is one of some texts."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"must be one of {', '.join(known)}, not {value!r:.100}")
        return value

    return check


def _numbers(value: Any, kinds: str, *shapes: tuple[int, ...]) -> np.ndarray | None:
    """The value as a finite array of one of the shapes, of a type of one of NumPy's kinds; else None."""
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):  # rows of different lengths
        return None
    fits = array.dtype.kind in kinds and array.shape in shapes
    return array if fits and np.isfinite(array).all() else None
