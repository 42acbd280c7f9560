"""Label masks: palette PNGs in the colours of PASCAL VOC, reading and checking."""

import io

import numpy as np
from PIL import Image, PngImagePlugin

from vitx.images.pictures import open_picture

IGNORED = 255  # the mask value that no class has
_KEYWORD = "vitx"  # of the text chunk
_STRETCHED = {"L;2": 85, "L;4": 17}  # Pillow's factors for greys of 2 and 4 bits
_DAMAGED = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def voc_palette() -> np.ndarray:
    """The 256 colours of PASCAL VOC's label images, (256, 3) uint8.

    The bits of a label go to red, green and blue in turn, the lowest three to each colour's highest
    bit, so that neighbouring labels look far apart.
    """
    labels = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for place in range(8):
        for channel in range(3):
            bit = (labels >> (3 * place + channel)) & 1
            palette[:, channel] |= (bit << (7 - place)).astype(np.uint8)
    return palette


def encode_png(image: np.ndarray) -> bytes:
    """PNG bytes of uint8 (H, W) or (H, W, 3)."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()


def encode_mask(mask: np.ndarray, text: str | None = None) -> bytes:
    """PNG bytes of the label mask (H, W) uint8, stored as indices into `voc_palette`.

    `text` is stored beside the pixels, for `mask_text`.

    Raises ValueError where the mask is not two-dimensional uint8.
    """
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise ValueError(f"a label mask is (H, W) uint8, but got {mask.shape} {mask.dtype}")
    image = Image.fromarray(mask)
    image.putpalette(voc_palette().tobytes())  # turns the mode from L into P, indices unchanged
    file = io.BytesIO()
    chunks = PngImagePlugin.PngInfo()
    if text is not None:
        chunks.add_text(_KEYWORD, text)
    image.save(file, format="PNG", pnginfo=chunks)
    return file.getvalue()


def mask_text(data: bytes, name: str = "mask") -> str | None:
    """The text that `encode_mask` stored in a PNG; None where there is none. Pixels are not decoded.

    Raises ValueError, naming `name`, for files that are damaged.
    """
    try:
        with open_picture(data) as image:
            return image.info.get(_KEYWORD)
    except _DAMAGED as error:
        raise ValueError(f"cannot read the label mask {name}: {error}") from error


def decode_mask(data: bytes, name: str = "mask") -> np.ndarray:
    """The labels (H, W) uint8 that a PNG stores, a palette's indices or greys, of 1, 2, 4 or 8 bits.

    Raises ValueError, naming `name`, for other files: of colours, of 16 bits, damaged or no PNG.
    """
    try:
        with open_picture(data) as image:
            if not isinstance(image, PngImagePlugin.PngImageFile):
                raise ValueError(f"its format is {image.format}, wanted PNG, which loses nothing")
            if image.mode not in ("P", "L", "1"):
                raise ValueError(
                    f"its mode is {image.mode}, wanted palette (P) or grey (L) labels of up to 8 bits"
                )
            factors = [_STRETCHED.get(str(tile.args), 1) for tile in image.tile or ()]
            values = np.array(image, np.uint8)
            return values // np.uint8(max(factors, default=1))
    except _DAMAGED as error:
        raise ValueError(f"cannot read the label mask {name}: {error}") from error


def check_mask(
    mask: np.ndarray, where: str, classes: int, size: tuple[int, ...] | None = None
) -> None:
    """Raises ValueError where a mask (H, W) has labels of none of `classes`, or is not of `size`.

    `classes` counts the background, 255 is ignored, and `size` is the image's (H, W).
    """
    if size is not None and mask.shape != size:
        (height, width), (rows, columns) = mask.shape, size
        raise ValueError(
            f"the mask {where} is {width} pixels wide and {height} high, but its image "
            f"{columns} and {rows}"
        )
    strange = (mask >= classes) & (mask != IGNORED)
    if strange.any():
        raise ValueError(
            f"the mask {where} has the label {mask[strange][0]}, wanted 0 to {classes - 1} for the "
            f"{classes} classes, or {IGNORED}, ignored"
        )


def labels_in_mask(mask: np.ndarray) -> list[int]:
    """The classes in a mask, sorted, from 0 for the first after the background."""
    return [int(label) - 1 for label in np.unique(mask) if label not in (0, IGNORED)]
