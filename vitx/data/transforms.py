"""Augmenting training images; and reading, resizing and normalising, from `vitx.images`."""

import dataclasses

import numpy as np

from vitx.images.pixels import (
    Maps,
    Preprocess,
    image_size,
    normalise,
    normalise_fractions,
    read_image,
    require_floats,
    resize_image,
    resize_maps,
    resize_mask,
    to_fractions,
)

__all__ = [
    "GREY",
    "Augment",
    "Maps",
    "Preprocess",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "colour_jitter",
    "image_size",
    "mirror",
    "normalise",
    "normalise_fractions",
    "read_image",
    "resize_image",
    "resize_maps",
    "resize_mask",
    "to_fractions",
]

GREY = np.array([0.299, 0.587, 0.114], np.float32)  # luma of ITU-R 601, as Pillow and torchvision
# Pixels at a time: temporaries of whole images would be fresh pages, which cost more than the arithmetic.
_BLOCK = 2**14


def mirror(array: np.ndarray) -> np.ndarray:
    """Mirror (H, W, ...) left to right."""
    mirrored = np.empty(array.shape, array.dtype)
    # Channel by channel: copying three bytes at a time takes six times as long.
    for channel in np.ndindex(array.shape[2:]):
        mirrored[(..., *channel)] = array[(slice(None), slice(None, None, -1), *channel)]
    return mirrored


@dataclasses.dataclass(frozen=True)
class Augment:
    """Augmentation of training images; zeros change nothing.

    flip: mirror every second image, at random. brightness, contrast, saturation: a factor uniform in
    [1 - v, 1 + v] each, from 0 where v > 1. hue: a turn of the colour circle uniform in [-v, v],
    v <= 0.5. The four in a random order, as in torchvision's ColorJitter. patches: (kept, all), of
    which a model is to see `kept`, at random; None: all. scale: (least, most) factor of a window's
    picture, see `views.random_view`; long_side: (least, most) pixels of one that keeps its shape, see
    `views.random_crop`, in place of scale; both None: the whole picture at the model's size.
    dropout: whether each image gets a seed for the channels that its training step leaves out.
    """

    flip: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    patches: tuple[int, int] | None = dataclasses.field(default=None, kw_only=True)
    scale: tuple[float, float] | None = dataclasses.field(default=None, kw_only=True)
    long_side: tuple[int, int] | None = dataclasses.field(default=None, kw_only=True)
    dropout: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        for field in ("brightness", "contrast", "saturation", "hue"):
            if getattr(self, field) < 0:
                raise ValueError(f"augment.{field} = {getattr(self, field)} is negative")
        if self.hue > 0.5:
            raise ValueError(f"augment.hue = {self.hue}, but half a turn (0.5) is the largest")


def colour_jitter(
    pixels: np.ndarray, augment: Augment, generator: np.random.Generator
) -> np.ndarray:
    """Jitter the colours of float32 (H, W, 3) in [0, 1]; the same draws whatever the widths.

    Raises ValueError for pixels of other types than floats, which the adjustments below do not check.
    """
    require_floats(pixels)
    order = generator.permutation(4)
    fractions = generator.random(4)
    steps = (
        (adjust_brightness, 1, augment.brightness),
        (adjust_contrast, 1, augment.contrast),
        (adjust_saturation, 1, augment.saturation),
        (adjust_hue, 0, augment.hue),
    )
    for index in order:
        adjust, neutral, width = steps[index]
        if width:
            # Factors stay positive also where the width is over 1.
            low = max(neutral - width, 0) if neutral else -width
            pixels = adjust(pixels, low + (neutral + width - low) * fractions[index])
    return pixels


def adjust_brightness(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Blend float32 (H, W, 3) in [0, 1] with black; 1 changes nothing."""
    return _clip(pixels * np.float32(factor))


def adjust_contrast(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Blend float32 (H, W, 3) in [0, 1] with its mean grey; 1 changes nothing."""
    adjusted = pixels * np.float32(factor)
    adjusted += np.float32(1 - factor) * (pixels @ GREY).mean()
    return _clip(adjusted)


def adjust_saturation(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Blend float32 (H, W, 3) in [0, 1] with its own grey picture; 1 changes nothing."""
    adjusted = pixels * np.float32(factor)
    grey = np.float32(1 - factor) * (pixels @ GREY)  # (H, W)
    for channel in range(3):  # as in `mirror`
        adjusted[..., channel] += grey
    return _clip(adjusted)


def _clip(pixels: np.ndarray) -> np.ndarray:
    """Clips to [0, 1], in place."""
    return np.clip(pixels, 0, 1, out=pixels)


def adjust_hue(pixels: np.ndarray, turn: float) -> np.ndarray:
    """Turn the hue (HSV) of float32 (H, W, 3) in [0, 1] by a fraction of the colour circle."""
    rows = max(1, _BLOCK // pixels.shape[1])
    turned = np.empty(pixels.shape, pixels.dtype)
    for top in range(0, len(pixels), rows):
        turned[top : top + rows] = _turn_hue(pixels[top : top + rows], turn)
    return turned


def _turn_hue(pixels: np.ndarray, turn: float) -> np.ndarray:
    red, green, blue = (np.ascontiguousarray(pixels[..., channel]) for channel in range(3))
    value = np.maximum(np.maximum(red, green), blue)  # (H, W)
    chroma = value - np.minimum(np.minimum(red, green), blue)
    scale = 1 / np.where(chroma > 0, chroma, np.float32(1))
    sextant = np.where(
        value == red,
        (green - blue) * scale,
        np.where(value == green, 2 + (blue - red) * scale, 4 + (red - green) * scale),
    ) + np.float32(6 * turn)  # (H, W), the hue in sixths of the circle
    turned = np.empty_like(pixels)
    for channel, offset in enumerate((5, 3, 1)):  # back from HSV
        k = sextant + np.float32(offset)
        k -= 6 * np.floor(k * np.float32(1 / 6))  # several times faster than k % 6
        turned[..., channel] = value - chroma * np.clip(np.minimum(k, 4 - k), 0, 1)
    return turned
