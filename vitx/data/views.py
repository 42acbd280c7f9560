"""Random views of a picture and its mask: scaled, then cut out or padded to one size."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class View:
    """A window onto a scaled picture.

    size: (H, W) of the window. scaled: (H, W) of the picture before it is cut. corner: row and column of the window's
    first pixel in the picture, negative where the picture is smaller.
    """

    size: tuple[int, int]
    scaled: tuple[int, int]
    corner: tuple[int, int]

    def cut(self, picture: np.ndarray, fill: np.ndarray | int) -> np.ndarray:
        """The window (H, W, ...) of a scaled picture, with `fill` where it has no pixels."""
        window = np.empty((*self.size, *picture.shape[2:]), picture.dtype)
        window[...] = fill
        taken, put = [], []
        for length, extent, start in zip(self.size, self.scaled, self.corner, strict=True):
            first = max(start, 0)
            last = max(first, min(start + length, extent))
            taken.append(slice(first, last))
            put.append(slice(first - start, last - start))
        window[tuple(put)] = picture[tuple(taken)]
        return window


def random_view(
    size: tuple[int, int], scale: tuple[float, float], generator: np.random.Generator
) -> View:
    """A window of `size` at a random place of a picture scaled to `size` times a factor uniform in `scale`."""
    factor = generator.uniform(*scale)
    return _random_window(size, _scaled(size, factor), generator)


def random_crop(
    size: tuple[int, int],
    picture: tuple[int, int],
    long_side: tuple[int, int],
    generator: np.random.Generator,
) -> View:
    """A window of `size` at a random place of a picture (H, W) whose long side becomes a length drawn in `long_side`.

    The picture keeps its shape, as in psa (Ahn & Kwak, CVPR 2018).
    """
    length = int(generator.integers(*long_side, endpoint=True))
    return _random_window(size, _scaled(picture, length / max(picture)), generator)


def _scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _random_window(
    size: tuple[int, int], scaled: tuple[int, int], generator: np.random.Generator
) -> View:
    corner = []
    for length, extent in zip(size, scaled, strict=True):
        slack = extent - length
        corner.append(int(generator.integers(min(slack, 0), max(slack, 0), endpoint=True)))
    return View(size, scaled, (corner[0], corner[1]))
