"""Pictures in the report: their encoding, and the table that shows them."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from PIL import Image

from vitx.report.overlay import SEQUENTIAL, Picture

SHOWN: Final = 144  # longest side on the page, in CSS pixels, as far as whole multiples allow
STORED: Final = 512  # longest side stored, for the zoom
_TABLE_PIXELS: Final = 25_000_000  # stored in a table: a page with two stays below 10 MB


class Cell(NamedTuple):
    """A picture in a table.

    Attributes:
        picture: uint8 (H, W, 3).
        alt: says what it shows; also below the zoomed picture.
        note: below it, such as a figure; "" for none.
        link: of the note: a path relative to the page's folder; "" for none.
        lies_over: whether it lies over the row's first picture, which has its size, as far as the reader likes.
    """

    picture: Picture
    alt: str
    note: str = ""
    link: str = ""
    lies_over: bool = False


class Shown(NamedTuple):
    """An embedded picture: its data URL, the texts of its cell, and width and height on the page."""

    source: str
    alt: str
    note: str
    link: str
    lies_over: bool
    width: int
    height: int
    enlarged: bool


@dataclass(frozen=True)
class Pictures:
    """A table of pictures.

    Attributes:
        columns: their headers.
        rows: the name of each, shown below its first picture, and a picture or None per column.
        caption: above the table.
    """

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Shown | None]]]
    caption: str


@dataclass(frozen=True)
class ColourScale:
    """The colours of `overlay`, from low to high, and what the ends are."""

    colours: Sequence[str] = SEQUENTIAL
    low: str = "least relevant"
    high: str = "most relevant"


def picture_rows(
    columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Cell | None]]], caption: str
) -> Pictures:
    """Encodes a table of pictures: the more there are, the smaller, so that the page can still be sent.

    Args:
        columns: their headers.
        rows: the name of each, and a cell per column, None where it is empty.
        caption: above the table.
    """
    pictures = (len(columns) + 1) * len(rows)  # the first of a row is also below its masks
    side = int(np.clip((_TABLE_PIXELS / max(pictures, 1)) ** 0.5, 64, STORED))
    shown = [(name, [cell and _shown(cell, side) for cell in cells]) for name, cells in rows]
    return Pictures(columns, shown, caption)


def encode(image: Picture, side: int = STORED) -> bytes:
    """uint8 (H, W, 3) -> a WebP file, its longest side at most `side`.

    Pictures of at most 256 colours, such as masks, are stored without loss.
    """
    picture, file = Image.fromarray(image), io.BytesIO()
    # Nearest keeps the colours of flat pictures.
    flat = _fit(picture, side, Image.Resampling.NEAREST)
    if flat.getcolors(256):
        flat.save(file, "WEBP", lossless=True)
    else:
        _fit(picture, side, Image.Resampling.LANCZOS).save(file, "WEBP", quality=75)
    return file.getvalue()


def _shown(cell: Cell, side: int) -> Shown:
    """A small picture is shown at a whole multiple of its size, with hard pixels."""
    height, width = cell.picture.shape[:2]
    scale = SHOWN / max(height, width)
    scale = int(scale) if scale > 1 else scale
    source = f"data:image/webp;base64,{base64.b64encode(encode(cell.picture, side)).decode()}"
    return Shown(source, *cell[1:], round(width * scale), round(height * scale), scale >= 2)


def _fit(image: Image.Image, most: int, resampling: Image.Resampling) -> Image.Image:
    scale = min(1, most / max(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), resampling)
