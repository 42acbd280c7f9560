"""Pictures as pixels: reading, resizing, normalising.

Images are uint8 (H, W, 3) until `normalise`. Resizing follows docs/protocol.md, "Images": Pillow's antialiased bilinear
for images, nearest for masks, bilinear without antialiasing for maps.
"""

import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vitx.images.pictures import load_picture, open_picture, stored_size, upright_size

Array = jax.Array | np.ndarray
Picture: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | Array
"""An image file's path or bytes, a Pillow image, or uint8 (H, W, 3), (H, W, 4) or (H, W)."""

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


def to_pixels(image: Picture) -> np.ndarray:
    """Any picture as uint8 RGB (H, W, 3), as `read_image` reads a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or an array is not uint8 (H, W, 3), (H, W, 4) or (H, W).
    """
    if isinstance(image, str | os.PathLike | bytes):
        return read_image(image)
    if isinstance(image, Image.Image):
        return np.array(_to_rgb(load_picture(image, b"eXIf", upright=True)))
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        raise ValueError(
            f"an image must be uint8 in [0, 255], not {pixels.dtype}; of floats in [0, 1]: (255 * x).astype(uint8)"
        )
    if not pixels.size or not (
        pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    ):
        raise ValueError(f"an image must be (H, W, 3), (H, W, 4) or (H, W), not {pixels.shape}")
    return np.array(_to_rgb(Image.fromarray(pixels)))


def each_as_pixels(images: Picture | Sequence[Picture]) -> list[np.ndarray]:
    """`to_pixels` of one picture, or of each in a list or an array (B, H, W, 3); ValueError for an empty list."""
    if isinstance(images, list | tuple) or (isinstance(images, Array) and images.ndim == 4):
        if not len(images):
            raise ValueError("there is no image: the list is empty")
        return [to_pixels(image) for image in images]
    return [to_pixels(cast(Picture, images))]


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


def resize_image(
    image: np.ndarray,
    size: tuple[int, int],
    resample: Image.Resampling = Image.Resampling.BILINEAR,
) -> np.ndarray:
    """Resize uint8 (H, W, 3) to `size` (H, W) by a filter of Pillow, which antialiases; ValueError for other types."""
    return _resize(image, size, resample)


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
    require_floats(pixels)
    # Whole rows at once: broadcasting along three channels alone takes ten times as long.
    rows = pixels.reshape(*pixels.shape[:-2], -1)  # (..., H, W * 3)
    mean, std = (
        np.tile(np.asarray(v, np.float32), rows.shape[-1] // 3)
        for v in (preprocess.mean, preprocess.std)
    )
    normalised = rows - mean
    normalised /= std
    return normalised.reshape(pixels.shape)


def require_floats(pixels: np.ndarray) -> None:
    """Raises ValueError for pixels of another type."""
    if not np.issubdtype(pixels.dtype, np.floating):
        raise ValueError(f"pixels must be floats in [0, 1], not {pixels.dtype}; see to_fractions")
