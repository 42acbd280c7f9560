"""A tensor of a file that is read when it is needed."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tensor:
    """A tensor that may still be in its file: its shape, and a function that reads it."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    def reshape(self, *shape: int) -> "Tensor":
        """The same numbers in another shape."""
        return Tensor(shape, lambda: self.read().reshape(shape))

    def rows(self, start: int, stop: int) -> "Tensor":
        """A slice of the first axis."""
        return Tensor((stop - start, *self.shape[1:]), lambda: self.read()[start:stop])

    def transpose(self, *axes: int) -> "Tensor":
        """The same numbers with other axes."""
        return Tensor(tuple(self.shape[a] for a in axes), lambda: self.read().transpose(axes))
