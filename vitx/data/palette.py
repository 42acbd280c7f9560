"""Palette PNGs of label masks, in the colours of PASCAL VOC."""

import io

import numpy as np
from PIL import Image

from vitx.data.pictures import open_picture


def voc_palette() -> np.ndarray:
    """The 256 colours of PASCAL VOC's label images, (256, 3) uint8.

    The bits of a label are dealt to red, green and blue in turn, the lowest three giving each
    colour's highest bit, and so on, so that neighbouring labels look far apart.
    """
    labels = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for place in range(8):
        for channel in range(3):
            bit = (labels >> (3 * place + channel)) & 1
            palette[:, channel] |= (bit << (7 - place)).astype(np.uint8)
    return palette


def encode_mask(mask: np.ndarray) -> bytes:
    """PNG bytes of the label mask (H, W) uint8, stored as indices into `voc_palette`.

    Raises ValueError where the mask is not two-dimensional uint8.
    """
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise ValueError(f"a label mask is (H, W) uint8, but got {mask.shape} {mask.dtype}")
    image = Image.fromarray(mask)
    image.putpalette(voc_palette().tobytes())  # turns the mode from L into P, indices unchanged
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def decode_mask(data: bytes, name: str = "mask") -> np.ndarray:
    """The labels (H, W) uint8 of PNG bytes in palette (P) or greyscale (L) mode.

    Raises ValueError, naming `name`, for other modes and for damaged files.
    """
    try:
        with open_picture(data) as image:
            if image.mode not in ("P", "L"):
                raise ValueError(f"its mode is {image.mode}, wanted palette (P) or grey (L) labels")
            return np.array(image, np.uint8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the label mask {name}: {error}") from error
