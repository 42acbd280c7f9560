"""Opening untrusted image files: within a limit on pixels, by Pillow alone, and turned as their EXIF says."""

import functools
import io
import math
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from PIL import ExifTags, Image, TiffImagePlugin

LIMIT: Final = "VITX_MAX_PIXELS"  # an environment variable, so that loader processes have it too
_REFUSED: Final = ("EPS",)  # Pillow has Ghostscript run it: PostScript is a program

# How pixels are turned for each EXIF orientation; 1 is upright.
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_OPPOSITE: Final = {6: 8, 8: 6}  # the others are their own
_ON_SIDE: Final = (5, 6, 7, 8)  # height and width change places
# PNG files without any of these have no orientation.
_IN_PNG: Final = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats that are read: those that Pillow decodes itself, the commonest first."""
    Image.preinit()
    Image.init()
    return tuple(name for name in Image.ID if name not in _REFUSED)


@contextmanager
def open_picture(data: bytes) -> Iterator[Image.Image]:
    """`PIL.Image.open` of an image file's bytes, refusing images of too many pixels.

    The limit is `PIL.Image.MAX_IMAGE_PIXELS`, by default 89,478,485, at which Pillow itself only warns;
    VITX_MAX_PIXELS in the environment sets it.

    Raises:
        OSError: it is no image of a known kind, as Pillow says.
        ValueError: it has more pixels than the limit, or VITX_MAX_PIXELS is no number.
    """
    limit = pixel_limit()
    try:
        image = Image.open(io.BytesIO(data), formats=formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Pillow raises beyond twice the limit, or where warnings are errors.
        count = re.search(r"\d+", str(error))
        raise _too_large(int(count[0]) if count else 0, limit) from error
    with image:
        if (pixels := image.width * image.height) > limit:
            raise _too_large(pixels, limit)
        yield image


def orientation(image: Image.Image, data: bytes) -> int:
    """The EXIF orientation, 1 to 8, of an open image of these bytes; 1 where it has none, or its EXIF is damaged.

    Of a TIFF only before it is loaded: Pillow turns it then, and forgets the orientation.
    """
    if image.format == "PNG" and not any(key in data for key in _IN_PNG):
        return 1  # Pillow would decode all pixels to look for one behind them
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
        return int(found) if found in _TURNS else 1
    except (SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return 1


def is_turned(data: bytes) -> bool:
    """Whether an image file has an EXIF orientation that turns it."""
    with open_picture(data) as image:
        return orientation(image, data) != 1


def stored_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of an open image as its file stores it; it is not loaded yet."""
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    exchanged = tags.get(ExifTags.Base.Orientation) in _ON_SIDE  # Pillow does that to a TIFF's
    return (image.width, image.height) if exchanged else (image.height, image.width)


def upright_size(image: Image.Image, data: bytes) -> tuple[int, int]:
    """Height and width that an open image of these bytes has once it is upright; it is not loaded yet."""
    height, width = stored_size(image)
    return (width, height) if orientation(image, data) in _ON_SIDE else (height, width)


def load_picture(image: Image.Image, data: bytes, *, upright: bool) -> Image.Image:
    """Decodes an open image of these bytes: turned by its EXIF orientation if `upright`, else as it is stored.

    Damaged EXIF turns nothing. Raises what Pillow raises for damaged pixels.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # Pillow turns it while it loads it
        found = orientation(image, data)
        turn = 1 if upright else _OPPOSITE.get(found, found)
        image.load()
    else:
        image.load()
        turn = orientation(image, data) if upright else 1
    return image.transpose(_TURNS[turn]) if turn in _TURNS else image


def pixel_limit() -> float:
    """The most pixels of an image; ValueError where VITX_MAX_PIXELS is no number."""
    if setting := os.environ.get(LIMIT):
        if not setting.isdecimal() or not int(setting):
            raise ValueError(f"{LIMIT}={setting} is no number of pixels")
        Image.MAX_IMAGE_PIXELS = int(setting)  # Pillow's own check reads it
    return Image.MAX_IMAGE_PIXELS or math.inf


def _too_large(pixels: int, limit: float) -> ValueError:
    return ValueError(
        f"it has {pixels:,} pixels, over the limit of {limit:,}; where you trust it, set {LIMIT}={pixels} in the "
        "environment"
    )
