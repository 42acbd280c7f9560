"""Opening image files of anyone's: within a limit on pixels, and by Pillow alone."""

import functools
import io
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from PIL import Image

LIMIT: Final = "VITX_MAX_PIXELS"  # an environment variable, so that loader processes have it too
_REFUSED: Final = ("EPS",)  # Pillow has Ghostscript run it: PostScript is a program


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats that are read: those that Pillow decodes itself, the commonest first."""
    Image.preinit()
    Image.init()
    return tuple(name for name in Image.ID if name not in _REFUSED)


@contextmanager
def open_picture(data: bytes) -> Iterator[Image.Image]:
    """`PIL.Image.open` of an image file's bytes, but for images of too many pixels.

    The limit is Pillow's own, `PIL.Image.MAX_IMAGE_PIXELS` (89,478,485 unless somebody sets it), where Pillow only
    warns; VITX_MAX_PIXELS in the environment sets it.

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


def pixel_limit() -> float:
    """The most pixels of an image; ValueError where VITX_MAX_PIXELS is no number."""
    if told := os.environ.get(LIMIT):
        if not told.isdecimal() or not int(told):
            raise ValueError(f"{LIMIT}={told} is no number of pixels")
        Image.MAX_IMAGE_PIXELS = int(told)  # which Pillow's own check goes by
    return Image.MAX_IMAGE_PIXELS or math.inf


def _too_large(pixels: int, limit: float) -> ValueError:
    return ValueError(
        f"it has {pixels:,} pixels, over the limit of {limit:,}; where you trust it, set {LIMIT}={pixels} in the "
        "environment"
    )
