"""One picture that explains an image: itself, the classes found in it, and an overlay for each method and class."""

import functools
import io
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from vitx.report.pictures import Picture, colour_map, heatmap_overlay

PANEL: Final = (300, 224)  # largest width and height of a panel, pixels
_LONGEST: Final = 8  # to one: longer images are shown shortened
_COLUMN: Final = 150  # least width of a column: titles want room
_LEFT: Final = 224  # of the left one, which lists the classes
_RIGHT: Final = 300  # and of all overlays together, over the scale of colours
_MARGIN, _GAP, _BAR, _SCALE = 16, 12, 5, 100
_NAME, _HEADING, _TEXT, _SMALL = 20, 17, 15, 13  # sizes of letters; lines are half as high again
_INK, _GREY, _PALE, _BLUE = (24, 24, 27), (100, 100, 108), (232, 232, 236), (52, 98, 168)


@dataclass(frozen=True)
class Row:
    """One class's maps.

    Attributes:
        heading: which class, in words.
        maps: (h, w) of any scale by the method's title; a remark instead where there is nothing to
            show.
    """

    heading: str
    maps: Mapping[str, ArrayLike | str]


def panel(image: Picture) -> Picture:
    """An image uint8 (H, W, 3) at the size of a panel: small ones enlarged, with hard pixels."""
    height, width = image.shape[:2]
    # A shown side is at least an eighth of the other, else one would see nothing of it.
    wide, high = max(width, height / _LONGEST), max(height, width / _LONGEST)
    scale = min(PANEL[0] / wide, PANEL[1] / high)
    if scale >= 2 and (wide, high) == (width, height):
        scale = math.floor(scale)  # pixels of equal size
    size = (round(wide * scale), round(high * scale))
    kind = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize(size, kind))


def draw_figure(
    shown: Picture,
    name: str,
    size: tuple[int, int],
    scores: Sequence[tuple[str, float]],
    rows: Sequence[Row],
    font: str = "",
) -> bytes:
    """Draws the image at the left over its classes and their probabilities, and a row of overlays for each class.

    Args:
        shown: the image as `panel` gives it.
        name: of the image.
        size: (H, W) of the image itself.
        scores: classes and their probabilities, to be listed.
        rows: the classes explained, at least one, all of the same methods.
        font: a .ttf file; "" for Pillow's own, which has ASCII only.

    Returns:
        A PNG file.
    """
    height, width = shown.shape[:2]
    left, column = max(width, _LEFT), max(width, _COLUMN)
    first = _MARGIN + left + 2 * _GAP  # where the overlays begin
    right = first + max(len(rows[0].maps) * (column + _GAP) - _GAP, _RIGHT)
    top = _MARGIN + _line(_NAME) + _line(_SMALL) + _GAP
    titles = _line(_HEADING) + _line(_TEXT)  # what a row has above its panels
    step = titles + height + 2 * _GAP
    row_end = top + step * len(rows)
    list_top = top + titles + height + _GAP
    list_end = list_top + len(scores) * (_line(_TEXT) + _BAR + _GAP)
    canvas = _Canvas(
        (right + _MARGIN, max(row_end + _line(_SMALL), list_end) + _MARGIN - _GAP), font
    )
    whole = right - _MARGIN
    canvas.text((_MARGIN, _MARGIN), name, _NAME, whole)
    below = _MARGIN + _line(_NAME)
    canvas.text((_MARGIN, below), f"{size[1]} x {size[0]} pixels", _SMALL, whole, _GREY)
    canvas.paste(shown, (_MARGIN, top + titles))
    for index, (label, probability) in enumerate(scores):
        y = list_top + index * (_line(_TEXT) + _BAR + _GAP)
        canvas.score((_MARGIN, y), left, label, probability)
    for index, row in enumerate(rows):
        y = top + index * step
        canvas.text((first, y), row.heading, _HEADING, right - first)
        for number, (title, heatmap) in enumerate(row.maps.items()):
            x = first + number * (column + _GAP)
            canvas.text((x, y + _line(_HEADING)), title, _TEXT, column, _GREY)
            canvas.overlay((x, y + titles), shown, heatmap)
    canvas.colour_scale((first, row_end), right - first)
    return canvas.png()


class _Canvas:
    """A white picture, and what is drawn on it; places are (x, y) of the upper left corner."""

    def __init__(self, size: tuple[int, int], font: str):
        self._image = Image.new("RGB", size, "white")
        self._draw = ImageDraw.Draw(self._image)
        self._file = font

    def text(
        self,
        place: tuple[int, int],
        text: str,
        size: int,
        width: int,
        colour: tuple[int, int, int] = _INK,
    ) -> None:
        """One line, shortened to `width` pixels."""
        font = load_font(self._file, size)
        if not self._file:
            text = _to_ascii(text)
        # In the middle of its line, so that letters of two sizes stand well above each other.
        anchor = (place[0], place[1] + _line(size) // 2)
        self._draw.text(anchor, _shortened(text, font, width), colour, font, anchor="lm")

    def paste(self, picture: Picture, place: tuple[int, int]) -> None:
        self._image.paste(Image.fromarray(picture), place)

    def score(self, place: tuple[int, int], width: int, label: str, probability: float) -> None:
        """A class's name, its probability, and a bar as long as that."""
        x, y = place
        percent = f"{100 * probability:.1f} %"
        room = math.ceil(load_font(self._file, _TEXT).getlength(percent))
        self.text(place, label, _TEXT, width - room - _GAP)
        self.text((x + width - room, y), percent, _TEXT, room)
        y += _line(_TEXT)
        self._draw.rectangle((x, y, x + width - 1, y + _BAR - 1), _PALE)
        if (length := round(width * float(np.nan_to_num(probability)))) > 0:
            self._draw.rectangle((x, y, x + length - 1, y + _BAR - 1), _BLUE)

    def overlay(self, place: tuple[int, int], shown: Picture, heatmap: ArrayLike | str) -> None:
        """The map in colour over the image, or a remark on a pale panel."""
        if not isinstance(heatmap, str):
            self.paste(heatmap_overlay(shown, heatmap), place)
            return
        x, y = place
        height, width = shown.shape[:2]
        self._draw.rectangle((x, y, x + width - 1, y + height - 1), _PALE)
        font = load_font(self._file, _SMALL)
        left = x + max(0, (width - math.ceil(font.getlength(heatmap))) // 2)
        self.text((left, y + (height - _line(_SMALL)) // 2), heatmap, _SMALL, _COLUMN, _GREY)

    def colour_scale(self, place: tuple[int, int], width: int) -> None:
        """The overlays' colours from low to high."""
        x, y = place
        low, high = "least relevant", "most relevant"
        self.text((x, y), low, _SMALL, width, _GREY)
        x += math.ceil(load_font(self._file, _SMALL).getlength(low)) + _GAP
        bar = np.tile(colour_map(np.linspace(0, 1, _SCALE)), (_line(_SMALL) // 2, 1, 1))
        self.paste(bar, (x, y + _line(_SMALL) // 4))
        self.text((x + _SCALE + _GAP, y), high, _SMALL, width, _GREY)

    def png(self) -> bytes:
        buffer = io.BytesIO()
        self._image.save(buffer, "PNG")
        return buffer.getvalue()


@functools.cache
def load_font(file: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font at a size in pixels: the one in a file, or Pillow's own for "".

    Raises:
        ValueError: the file is no font.
    """
    if not file:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(file, size)
    except OSError as error:
        raise ValueError(f"config.font: cannot read the font {file}: {error}") from error


def _line(size: int) -> int:
    """Height of a line of letters of a size."""
    return size * 3 // 2


def _to_ascii(text: str) -> str:
    letters = unicodedata.normalize("NFKD", text)
    plain = (letter for letter in letters if not unicodedata.combining(letter))
    return "".join(letter if letter.isascii() else "?" for letter in plain)


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text, or as much of both ends as fits: names often differ at their ends."""
    if font.getlength(text) <= width:
        return text

    def cut(kept: int) -> str:
        end = len(text) - kept // 2
        return text[: kept - kept // 2].rstrip() + "..." + text[end:].lstrip()

    return next(
        (c for n in range(len(text) - 1, 0, -1) if font.getlength(c := cut(n)) <= width), ""
    )
