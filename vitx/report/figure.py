"""Pictures that explain an image: a sheet with an overlay for each class and method, and one overlay for a slide."""

import functools
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vitx.data.palette import encode_png
from vitx.report.overlay import Picture, is_diverging, nothing_in, overlay

PANEL: Final = (480, 360)  # largest width and height of a panel, pixels: four fill a slide of 1920
# Of the photograph on a picture of its own, pixels: most of a slide of 1920 x 1080.
SLIDE: Final = (1280, 720)
_HARD: Final = 4  # from this enlargement on, pixels are shown as squares
_LONGEST: Final = 8  # largest ratio of a panel's sides; longer images are shown shortened
# Least widths: of the list of classes, a method's title, a heading, a picture of its own.
_LEFT, _COLUMN, _ROW, _ALONE = 320, 210, 400, 600
_MARGIN, _GAP, _BAR, _SCALE = 16, 12, 6, 125
# Sizes of letters; lines are half as high again.
_TITLE, _NOTE, _HEADING, _TEXT, _SMALL = 26, 19, 21, 18, 15
_INK, _GREY, _PALE, _BLUE = (24, 24, 27), (100, 100, 108), (232, 232, 236), (52, 98, 168)
_WARNING, _PAPER = (
    (176, 32, 16),
    210,
)  # of a note; grey below the colour bar, as a photograph would be
_ENDS: Final = {False: ("least relevant", "most relevant"), True: ("against", "for")}

_pad = functools.partial(np.pad, constant_values=255)


def panel(image: Picture, box: tuple[int, int] = PANEL) -> Picture:
    """An image uint8 (H, W, 3) fit into a box (width, height): tiny ones enlarged with hard pixels."""
    height, width = image.shape[:2]
    # A narrower side would be too small to see anything.
    wide, high = max(width, height / _LONGEST), max(height, width / _LONGEST)
    scale = min(box[0] / wide, box[1] / high)
    if scale >= _HARD and (wide, high) == (width, height):
        scale = math.floor(scale)  # pixels of equal size
    size = (round(wide * scale), round(high * scale))
    kind = Image.Resampling.NEAREST if scale >= _HARD else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize(size, kind))


def draw_figure(
    shown: Picture,
    name: str,
    size: tuple[int, int],
    scores: Sequence[tuple[str, float]],
    rows: Sequence[tuple[str, Mapping[str, np.ndarray]]],
    font: str = "",
    note: str = "",
    **style: Any,
) -> bytes:
    """Draws the image above its classes and their probabilities, and beside them a row of overlays for each class.

    Args:
        shown: the image as `panel` gives it.
        name: of the image.
        size: (H, W) of the image itself.
        scores: names and probabilities of the classes to list.
        rows: a heading for each explained class, and its maps (h, w) by the method's title.
        font: a .ttf file; "" for DejaVu Sans.
        note: a warning below the name.
        style: arguments of `overlay`.

    Returns:
        A PNG file.
    """
    write = functools.partial(_text, font)
    table = []
    width = max(shown.shape[1], _COLUMN)
    for heading, maps in rows:
        panels = [
            _below(write(title, _TEXT, width, _GREY), _overlay(font, shown, heatmap, style))
            for title, heatmap in maps.items()
        ]
        overlays = _beside(*panels, gap=_GAP)
        table.append(_below(write(heading, _HEADING, max(overlays.shape[1], _ROW)), overlays))
    listed = [_score(font, *score, max(shown.shape[1], _LEFT)) for score in scores]
    above = len(table[0]) - len(shown)  # the first row's heading and titles
    left = _pad(_below(shown, *listed, gap=_GAP), ((above, 0), (0, 0), (0, 0)))
    kinds = {is_diverging(map) for _, maps in rows for map in maps.values() if not nothing_in(map)}
    table += [_colour_bar(font, kind, _SMALL, **style) for kind in sorted(kinds)]

    body = _beside(left, _below(*table, gap=2 * _GAP), gap=2 * _GAP)
    pixels = write(f"{size[1]} x {size[0]} pixels", _SMALL, colour=_GREY)
    head = [write(name, _TITLE, body.shape[1]), pixels]
    if note:
        head.append(write(note, _TEXT, body.shape[1], _WARNING))
    page = _below(_below(*head), body, gap=_GAP)
    return encode_png(_pad(page, ((_MARGIN,), (_MARGIN,), (0,))))


def draw_overlay(
    image: Picture, heatmap: np.ndarray, title: str, font: str = "", note: str = "", **style: Any
) -> Picture:
    """Draws one map over an image of a size for a slide, its title above and a colour bar below.

    Args:
        image: uint8 (H, W, 3), of any size.
        heatmap: (h, w).
        title: above it: what is explained, and by which method.
        font: a .ttf file; "" for DejaVu Sans.
        note: a warning below the colour bar.
        style: arguments of `overlay`.

    Returns:
        uint8 (H', W', 3).
    """
    shown = panel(image, SLIDE)
    width = max(shown.shape[1], _ALONE)
    parts = [_text(font, title, _TITLE, width), overlay(shown, heatmap, **style)]
    if remark := nothing_in(heatmap):
        note = f"map is {remark}: it shows nothing" + (f"; {note}" if note else "")
    else:
        diverging = style.pop("diverging", None)
        diverging = is_diverging(heatmap) if diverging is None else diverging
        parts.append(_colour_bar(font, diverging, _NOTE, **style))
    if note:
        parts.append(_text(font, note, _NOTE, width, _WARNING))
    return _pad(_below(*parts, gap=_GAP), ((_MARGIN,), (_MARGIN,), (0,)))


@functools.cache
def load_font(file: str, size: int) -> ImageFont.FreeTypeFont:
    """A font at a size in pixels: the one in a file, or DejaVu Sans for "".

    Raises:
        ValueError: the file is no font.
    """
    own = resources.files("matplotlib") / "mpl-data/fonts/ttf/DejaVuSans.ttf"
    try:
        return ImageFont.truetype(file or str(own), size)
    except OSError as error:
        raise ValueError(f"config.font: cannot read the font {file}: {error}") from error


def _text(
    font: str, text: str, size: int, width: int = 0, colour: tuple[int, int, int] = _INK
) -> Picture:
    """One line of text, shortened to `width` pixels if that is not 0."""
    letters = load_font(font, size)
    text = _shortened(text, letters, width) if width else text
    height = size * 3 // 2
    line = Image.new("RGB", (width or math.ceil(letters.getlength(text)), height), "white")
    ImageDraw.Draw(line).text((0, height // 2), text, colour, letters, anchor="lm")
    return np.asarray(line)


def _shortened(text: str, letters: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, or as much of both ends as fits: names often differ at their ends."""

    def cut(kept: int) -> str:
        return f"{text[: kept - kept // 2].rstrip()}...{text[len(text) - kept // 2 :].lstrip()}"

    shown = (text, *map(cut, range(len(text) - 1, 0, -1)))
    return next((short for short in shown if letters.getlength(short) <= width), "")


def _score(font: str, label: str, probability: float, width: int) -> Picture:
    """A class's name, its probability, and a bar as long as the probability."""
    percent = _text(font, f"{100 * probability:.1f} %", _TEXT)
    bar = np.tile(np.array(_PALE, np.uint8), (_BAR, width, 1))
    bar[:, : round(width * float(np.nan_to_num(probability)))] = _BLUE
    return _below(_beside(_text(font, label, _TEXT, width - percent.shape[1]), percent), bar)


def _overlay(font: str, shown: Picture, heatmap: np.ndarray, style: dict[str, Any]) -> Picture:
    """The map in colour over the image, or a pale panel that says why the map shows nothing."""
    if not (remark := nothing_in(heatmap)):
        return overlay(shown, heatmap, **style)
    text, letters = f"map is {remark}", load_font(font, _SMALL)
    width = max(shown.shape[1], math.ceil(letters.getlength(text)))
    pale = Image.new("RGB", (width, len(shown)), _PALE)
    ImageDraw.Draw(pale).text((width // 2, len(shown) // 2), text, _GREY, letters, anchor="mm")
    return np.asarray(pale)


def _colour_bar(font: str, diverging: bool, size: int, **style: Any) -> Picture:
    """The colours of an overlay as over light grey, between what they mean."""
    low, high = (_text(font, end, size, colour=_GREY) for end in _ENDS[diverging])
    paper = np.full((size, _SCALE * size // _SMALL, 3), _PAPER, np.uint8)
    values = np.linspace(-1 if diverging else 0, 1, paper.shape[1], dtype=np.float32)
    colours = overlay(paper, values[None], **{**style, "diverging": diverging})
    above = (len(low) - len(colours)) // 2
    return _beside(low, _pad(colours, ((above, 0), (0, 0), (0, 0))), high, gap=_GAP)


def _below(*parts: Picture, gap: int = 0) -> Picture:
    """Pictures one below the other on white, `gap` pixels apart."""
    width = max(part.shape[1] for part in parts)
    padded = [_pad(part, ((0, gap), (0, width - part.shape[1]), (0, 0))) for part in parts]
    return np.concatenate(padded)[: -gap or None]


def _beside(*parts: Picture, gap: int = 0) -> Picture:
    """Pictures side by side on white, `gap` pixels apart."""
    return _below(*(part.swapaxes(0, 1) for part in parts), gap=gap).swapaxes(0, 1)
