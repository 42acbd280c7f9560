"""A map in colour over a photograph that keeps its own colours."""

from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageColor

from vitx.images.pixels import Picture as AnyPicture
from vitx.images.pixels import to_pixels

Picture: TypeAlias = NDArray[np.uint8]
Colours: TypeAlias = str | Sequence[str]

# Dark to bright in nearly equal steps of lightness: the order shows in grey, too. Magenta and bright yellow are rare in
# photographs.
SEQUENTIAL: Final = ("#0b0638", "#4a0f8e", "#a3149c", "#e8397c", "#fb8f3f", "#fff04a")
# Blue below 0, red above, both darker as they grow: neither end reads as the better one.
DIVERGING: Final = ("#0a2f8f", "#3f7fe0", "#f4f4f4", "#ee5a3c", "#94000f")
_NOISE: Final = 1e-5  # of the largest value: a smaller spread is rounding
_NEGATIVE: Final = 0.01  # of the largest value: below it, a map has negative values that count
_OUTLIERS: Final = 0.005  # of the values of a signed map, which is drawn to the rest
_FADE: Final = (
    0.6  # power of a value in its colour's share: below 1, so that middling values are seen
)


def overlay(
    image: AnyPicture,
    map: ArrayLike,
    strength: float = 0.75,
    colours: Colours | None = None,
    diverging: bool | None = None,
    transparent: bool = True,
) -> Picture:
    """A map in colour over an image, which keeps its own colours.

    Args:
        image: a path, a Pillow image, or uint8 (H, W, 3).
        map: (h, w), of any scale; resized bicubically. One that shows nothing (`nothing_in`) leaves the image as it is.
        strength: the largest share of the colour, in [0, 1].
        colours: from low to high: names or "#rrggbb", two or more, or the name of a colour map of matplotlib. Default:
            `SEQUENTIAL`, or `DIVERGING`.
        diverging: whether the middle colour is 0, both ends equally far from it, so that the sign shows. Otherwise the
            colours reach from the least value to the greatest. Default: where the map has negative values.
        transparent: whether a value's colour covers the more of the image, the higher it is, or where the map is
            diverging, the further from 0. Otherwise all colours cover the same share.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ValueError: the map is not (h, w), a strength is out of range, there is no such colour, or the image cannot be
            read.
    """
    pixels, heatmap = to_pixels(image), np.asarray(map, np.float32)
    if heatmap.ndim != 2 or not heatmap.size:
        raise ValueError(f"a map to draw must be (h, w), not {heatmap.shape}")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be in [0, 1], not {strength}")
    diverging = is_diverging(heatmap) if diverging is None else diverging
    ramp = colour_ramp(colours, diverging)
    if nothing_in(heatmap):
        return pixels
    places = scaled(heatmap, pixels.shape[:2], diverging)  # (H, W), in [0, 1]
    share = np.full_like(places, strength)
    if transparent:
        share *= (np.abs(2 * places - 1) if diverging else places) ** _FADE
    mixed = pixels + share[..., None] * (colour_map(places, ramp) - pixels.astype(np.float32))
    return mixed.round().astype(np.uint8)


def scaled(heatmap: np.ndarray, size: tuple[int, int], diverging: bool) -> np.ndarray:
    """A map (h, w) at a size (H, W), its values brought to [0, 1]: by its range, or with 0 at 0.5.

    A diverging scale ends at the quantile of 99.5 % of the magnitudes: a few pixels of relevance are far larger.
    """
    height, width = size
    if diverging:
        sizes = np.abs(heatmap)
        reach = float(np.quantile(sizes, 1 - _OUTLIERS)) or float(sizes.max())
        low, high = -reach, reach
    else:
        low, high = float(heatmap.min()), float(heatmap.max())
    picture = Image.fromarray((heatmap - low) / (high - low))
    # Bicubic is smoother to look at; it overshoots the range.
    return np.clip(np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC)), 0, 1)


def is_diverging(heatmap: np.ndarray) -> bool:
    """Whether a map has negative values beside which the others do not make them rounding."""
    low, most = float(heatmap.min()), float(np.abs(heatmap).max())
    return low < -_NEGATIVE * most


def nothing_in(heatmap: np.ndarray) -> str:
    """Why a map shows nothing: "not finite", or "constant" but for rounding; "" where it shows something."""
    if not np.isfinite(heatmap).all():
        return "not finite"
    low, high = float(heatmap.min()), float(heatmap.max())
    return "constant" if high - low <= _NOISE * max(abs(low), abs(high)) else ""


def colour_ramp(colours: Colours | None, diverging: bool) -> np.ndarray:
    """Colours (n, 3) in [0, 255], evenly spaced from low to high, see `overlay`; ValueError for an unknown one."""
    if colours is None:
        colours = DIVERGING if diverging else SEQUENTIAL
    if isinstance(colours, str):
        from matplotlib import colormaps  # takes a while to import

        if colours not in colormaps:
            raise ValueError(f"matplotlib has no colour map {colours!r}")
        return 255 * colormaps[colours](np.linspace(0, 1, 256))[:, :3]
    if len(colours) < 2:
        raise ValueError(f"colours must be two or more, not {colours!r}")
    return np.array([ImageColor.getrgb(colour)[:3] for colour in colours], np.float64)


def colour_map(values: ArrayLike, ramp: np.ndarray | None = None) -> Picture:
    """Values (...) in [0, 1] -> uint8 colours (..., 3) of a ramp, by default `SEQUENTIAL`."""
    ramp = colour_ramp(None, diverging=False) if ramp is None else ramp
    values = np.clip(np.asarray(values, np.float64), 0.0, 1.0)
    places = np.linspace(0, 1, len(ramp))
    channels = [np.interp(values, places, ramp[:, channel]) for channel in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)
