"""Reading, resizing, normalising and augmenting images.

Images are uint8 (H, W, 3) until `normalise`. Resizing follows docs/protocol.md, "Images": Pillow's
antialiased bilinear for images, nearest for masks, bilinear without antialiasing for maps.
"""

import dataclasses
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vitx.data.pictures import load_picture, open_picture, stored_size, upright_size

GREY = np.array([0.299, 0.587, 0.114], np.float32)  # luma of ITU-R 601, as Pillow and torchvision
# Pixels at a time: temporaries of whole images would be fresh pages, which cost more than the arithmetic.
_BLOCK = 2**14

Maps = TypeVar("Maps", jax.Array, np.ndarray)

# What Pillow raises for damaged files: TypeError for TIFFs with text in place of numbers, DecompressionBombError for
# later frames that are too large.
_DAMAGED = (
    OSError, SyntaxError, ValueError, TypeError, struct.error, zlib.error, Image.DecompressionBombError
)  # fmt: skip


class Preprocess(Protocol):
    """A model's input: mean and std of each channel, in [0, 1], and (H, W); `model.preprocess` is one."""

    @property
    def mean(self) -> Sequence[float]: ...  # noqa: D102

    @property
    def std(self) -> Sequence[float]: ...  # noqa: D102

    @property
    def size(self) -> tuple[int, int]: ...  # noqa: D102


def read_image(
    source: str | os.PathLike | bytes, name: str | None = None, *, upright: bool = True
) -> np.ndarray:
    """The picture in a file, or in its bytes, as uint8 RGB (H, W, 3).

    It is turned as its EXIF orientation says, unless `upright` is false; damaged EXIF turns nothing.
    Palette, grey, CMYK and 16-bit grey pictures are converted, transparency is dropped. Raises
    FileNotFoundError for a missing file, and ValueError naming the file (or `name`, for bytes) for
    one that is damaged, no picture, or beyond the limit on pixels (`pictures.open_picture`).
    """
    if isinstance(source, bytes):
        data, name = source, name or "image bytes"
    else:
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"no image file {path}")
        data, name = path.read_bytes(), name or str(path)
    try:
        with open_picture(data) as image:
            return np.array(_to_rgb(load_picture(image, data, upright=upright)))
    except _DAMAGED as error:
        raise ValueError(f"cannot read the image {name}: {error}") from error


def image_size(data: bytes, name: str, *, upright: bool = False) -> tuple[int, int]:
    """Height and width of an image file's bytes, without decoding pixels; `upright`: after its EXIF turn.

    Raises ValueError, naming `name`, where they cannot be read.
    """
    try:
        with open_picture(data) as image:
            return upright_size(image, data) if upright else stored_size(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"cannot read the image {name}: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips at 255
        grey = np.clip(np.asarray(image).astype(np.int64) // 256, 0, 255)
        image = Image.fromarray(grey.astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize uint8 (H, W, 3) to `size` (H, W): Pillow's bilinear, which antialiases; ValueError for other types."""
    return _resize(image, size, Image.Resampling.BILINEAR)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize the labels uint8 (H, W) to `size` (H, W): nearest; ValueError for other types."""
    return _resize(mask, size, Image.Resampling.NEAREST)


def _resize(array: np.ndarray, size: tuple[int, int], resample: Image.Resampling) -> np.ndarray:
    if array.dtype != np.uint8:
        raise ValueError(f"resizing wants uint8, got {array.dtype}; normalise afterwards")
    if array.shape[:2] == tuple(size):
        return array
    height, width = size
    return np.array(Image.fromarray(array).resize((width, height), resample))


def resize_maps(maps: Maps, size: tuple[int, int]) -> Maps:
    """Resize float maps (..., h, w) to (..., H, W): bilinear, half-pixel centres, no antialiasing.

    The same as torch's Upsample with align_corners=False, also when shrinking. A constant map stays
    so exactly, where resizing would leave rounding noise. NumPy arrays are resized by NumPy, for
    the many sizes of a dataset's images: JAX would compile for each of them. Raises ValueError for
    maps that are no floats or smaller than 1 x 1, or a size that is.
    """
    if min(size) < 1:
        raise ValueError(f"resize_maps wants a size (H, W) of at least 1 x 1, not {tuple(size)}")
    if not jnp.issubdtype(maps.dtype, jnp.floating):
        raise ValueError(f"resize_maps wants floats, got {maps.dtype}; use resize_mask for labels")
    if 0 in maps.shape[-2:]:
        raise ValueError(f"resize_maps wants maps of at least 1 x 1, got {maps.shape}")
    low, high = maps.min((-2, -1), keepdims=True), maps.max((-2, -1), keepdims=True)
    if isinstance(maps, np.ndarray):
        return np.where(low == high, low, _lerp(_lerp(maps, size[0], -2), size[1], -1))
    resized = jax.image.resize(maps, (*maps.shape[:-2], *size), method="bilinear", antialias=False)
    return jnp.where(low == high, low, resized)


def _lerp(maps: np.ndarray, length: int, axis: int) -> np.ndarray:
    """Resizes one axis, the last or the last but one."""
    centres = (np.arange(length) + 0.5) * (maps.shape[axis] / length) - 0.5
    below = np.floor(centres)
    share = (centres - below).astype(maps.dtype)  # of the cell above
    first, last = (
        np.take(maps, np.clip(below + step, 0, maps.shape[axis] - 1).astype(int), axis)
        for step in (0, 1)
    )
    last -= first
    last *= share if axis == -1 else share[:, None]
    return np.add(first, last, out=first)


def normalise(image: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """The model's input of uint8 (..., 3): (x / 255 - mean) / std, float32; ValueError for other types."""
    return normalise_fractions(to_fractions(image), preprocess)


def to_fractions(image: np.ndarray) -> np.ndarray:
    """uint8 in [0, 255] to float32 in [0, 1]; ValueError for other types."""
    if image.dtype != np.uint8:
        raise ValueError(f"images must be uint8 in [0, 255], not {image.dtype}")
    return np.divide(image, np.float32(255), dtype=np.float32)


def normalise_fractions(pixels: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """(x - mean) / std of float32 pixels (..., 3) in [0, 1]; ValueError for other types than floats."""
    _require_floats(pixels)
    # Whole rows at once: broadcasting along three channels alone takes ten times as long.
    rows = pixels.reshape(*pixels.shape[:-2], -1)  # (..., H, W * 3)
    mean, std = (
        np.tile(np.asarray(v, np.float32), rows.shape[-1] // 3)
        for v in (preprocess.mean, preprocess.std)
    )
    normalised = rows - mean
    normalised /= std
    return normalised.reshape(pixels.shape)


def _require_floats(pixels: np.ndarray) -> None:
    if not np.issubdtype(pixels.dtype, np.floating):
        raise ValueError(f"pixels must be floats in [0, 1], not {pixels.dtype}; see to_fractions")


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
    _require_floats(pixels)
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
