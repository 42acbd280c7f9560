"""Pictures in the report: overlays, their encoding, and the table that shows them."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from vitx.report.parts import Html, hex_colour, markup, scroll

Picture = NDArray[np.uint8]
# uint8 (H, W, 3), what it shows (its alt text), and optionally a remark printed under it.
Cell = tuple[ArrayLike, str] | tuple[ArrayLike, str, str]

SHOWN = 128  # side of a picture on the page, in CSS pixels, as far as whole-number scaling allows
STORED = 288  # the longest side kept; sharp on screens of double density
TABLE_BYTES = 4_500_000  # of a table of pictures, about: a page with two stays below 10 MB
# (longest side, WebP quality): the first at which a table stays within these bytes.
_SIZES = ((STORED, 85), (216, 80), (160, 75), (128, 65), (112, 50), (96, 40), (64, 40))
# Dark to bright in nearly equal steps of lightness: the order shows in grey, too.
_RAMP = ((8, 10, 38), (66, 18, 108), (146, 30, 110), (212, 64, 70), (242, 138, 38), (253, 243, 172))


def colour_map(values: ArrayLike) -> Picture:
    """Values (...) in [0, 1] -> uint8 colours (..., 3) from dark to bright."""
    values = np.clip(np.asarray(values, np.float64), 0.0, 1.0)
    places = np.linspace(0, 1, len(_RAMP))
    channels = [np.interp(values, places, [colour[c] for colour in _RAMP]) for c in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)


def heatmap_overlay(image: ArrayLike, heatmap: ArrayLike, strength: float = 0.65) -> Picture:
    """A map in colour over the image in grey.

    Args:
        image: (H, W, 3) uint8.
        heatmap: (h, w) any scale: upsampled bilinearly, then brought to [0, 1]. A constant map is
            all dark.
        strength: share of the colour.
    """
    image, heatmap = _photo(image), np.asarray(heatmap, np.float32)
    if heatmap.ndim != 2 or not np.isfinite(heatmap).all():
        raise ValueError(f"the map {heatmap.shape} to draw must be (h, w) and finite")
    height, width = image.shape[:2]
    resized = np.asarray(
        Image.fromarray(heatmap).resize((width, height), Image.Resampling.BILINEAR)
    )
    spread = float(resized.max() - resized.min())
    scaled = (resized - resized.min()) / spread if spread else np.zeros((height, width))
    grey = image.astype(np.float64).mean(-1, keepdims=True)
    return ((1 - strength) * grey + strength * colour_map(scaled)).round().astype(np.uint8)


def mask_overlay(
    image: ArrayLike, mask: ArrayLike, palette: ArrayLike, strength: float = 0.6
) -> Picture:
    """Classes in their palette colours over the image; background (0) stays as it is.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W) uint8 class indices.
        palette: (256, 3) uint8.
        strength: share of the colour.
    """
    image, mask = _photo(image), np.asarray(mask)
    if mask.shape != image.shape[:2]:
        raise ValueError(f"mask {mask.shape} must have the image's size {image.shape[:2]}")
    blended = (1 - strength) * image + strength * np.asarray(palette, np.float64)[mask]
    return np.where((mask > 0)[..., None], blended.round(), image).astype(np.uint8)


def picture(image: ArrayLike, alt: str, side: int = STORED, quality: int = 85) -> Html:
    """One image, embedded; a small one at a whole multiple of its size, with hard pixels."""
    image = _photo(image)
    kind, data = encode(image, side, quality)
    height, width = image.shape[:2]
    scale = SHOWN / max(height, width)
    scale = int(scale) if scale > 1 else scale
    style = ' class="pixelated"' if scale >= 2 else ""
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    size = f'width="{round(width * scale)}" height="{round(height * scale)}"'
    return Html(f'<img{style} src="{source}" alt="{markup(alt)}" {size}>')


def encode(image: ArrayLike, side: int = STORED, quality: int = 85) -> tuple[str, bytes]:
    """uint8 (H, W, 3) -> the kind ("png" or "webp") and the file's bytes, its longest side at most `side`.

    Flat pictures such as masks (at most 256 colours) become exact palette PNGs, photographs WebP.
    """
    image = _photo(image)
    buffer, photograph = io.BytesIO(), Image.fromarray(image)
    # Nearest keeps flat colours as they are; most photographs show themselves in a few rows.
    flat = np.asarray(_fit(photograph, side, Image.Resampling.NEAREST))
    few = flat[:: max(1, len(flat) // 16)]
    if len(np.unique(_packed(few))) <= 256:
        colours, indices = np.unique(_packed(flat), return_inverse=True)
        if len(colours) <= 256:
            drawn = Image.fromarray(indices.reshape(flat.shape[:2]).astype(np.uint8), "P")
            channels = [colours >> 16, colours >> 8 & 255, colours & 255]
            drawn.putpalette(np.stack(channels, -1).astype(np.uint8).tobytes())
            drawn.save(buffer, "PNG", optimize=True)
            return "png", buffer.getvalue()
    photograph = _fit(photograph, side, Image.Resampling.LANCZOS)
    photograph.save(buffer, "WEBP", quality=quality)
    return "webp", buffer.getvalue()


def picture_rows(
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell | None]],
    caption: object,
    *,
    names: Sequence[str] | None = None,
) -> Html:
    """A table of pictures, scrolled in its own box, its header always in sight.

    The more pictures there are, the smaller they are stored, so that the page can still be sent.

    Args:
        columns: a header per column.
        rows: a cell per column: (uint8 image (H, W, 3), what it shows) or (image, what it shows,
            remark); None is empty.
        caption: above the table.
        names: of the rows, printed under the pictures of the first column.

    Raises:
        ValueError: a row has another number of cells than there are columns, or names than rows.
    """
    if names is not None and len(names) != len(rows):
        raise ValueError(f"{len(names)} names for {len(rows)} rows of pictures")
    for index, row in enumerate(rows):
        if len(row) != len(columns):
            raise ValueError(
                f"row {index} of pictures has {len(row)} cells for {len(columns)} columns"
            )
    head = "".join(f'<th scope="col">{markup(column)}</th>' for column in columns)
    body, size = [], _size_for(rows)
    for index, row in enumerate(rows):
        cells = [_cell(cell, size) for cell in row]
        if names is not None:
            cells[0] = _cell(row[0], size, names[index])
        body.append(f"<tr>{''.join(cells)}</tr>\n")
    content = Html(f"<table><thead><tr>{head}</tr></thead>\n<tbody>{''.join(body)}</tbody></table>")
    return Html(
        f'<figure class="pictures"><figcaption>{markup(caption)}</figcaption>'
        f"{scroll(content, caption)}</figure>"
    )


def colour_scale(low: str = "least relevant", high: str = "most relevant") -> Html:
    """The colours of `heatmap_overlay`, from low to high."""
    stops = ", ".join(hex_colour(colour) for colour in _RAMP)
    bar = f'<i style="background:linear-gradient(90deg, {stops})"></i>'
    return Html(
        f'<div class="scale"><span>{markup(low)}</span>{bar}<span>{markup(high)}</span></div>'
    )


def _size_for(rows: Sequence[Sequence[Cell | None]]) -> tuple[int, int]:
    """Which of `_SIZES` keeps a table within `TABLE_BYTES`, told from a few of its rows."""
    places = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), 8)).round().astype(int))
    images = [cell[0] for place in places for cell in rows[place] if cell]
    for size in _SIZES:
        told = sum(len(encode(image, *size)[1]) for image in images) * 4 / 3  # base64
        if told * len(rows) <= TABLE_BYTES * len(places):
            return size
    return _SIZES[-1]


def _cell(cell: Cell | None, size: tuple[int, int], row_name: str | None = None) -> str:
    """A table cell; with a `row_name` it heads the row."""
    image, alt, *remarks = cell or (None, "")
    shown = "" if image is None else picture(image, alt, *size)
    notes = "".join(f"<small>{markup(text)}</small>" for text in (row_name, *remarks) if text)
    opening, closing = ("td", "td") if row_name is None else ('th scope="row"', "th")
    return f"<{opening}>{shown}{notes}</{closing}>"


def _packed(image: Picture) -> NDArray[np.uint32]:
    return image.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)


def _fit(image: Image.Image, most: int, resampling: Image.Resampling) -> Image.Image:
    longest = max(image.size)
    if longest <= most:
        return image
    width, height = (max(1, round(side * most / longest)) for side in image.size)
    return image.resize((width, height), resampling)


def _photo(image: ArrayLike) -> Picture:
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"pictures are uint8 (H, W, 3), not {image.dtype} {image.shape}")
    return image
