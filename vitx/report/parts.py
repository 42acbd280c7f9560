"""The report's plain parts: escaped text, tables, facts, tiles, legends."""

import html
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

DASH = "\N{EN DASH}"  # stands where there is no value
_SIGNS = r"-+\N{MINUS SIGN}\N{PLUS-MINUS SIGN}\N{EN DASH}"
_FIGURE = re.compile(rf"[{_SIGNS}\d.,%\s\[\]()]*(?:s|ms|min|h|MB|GB)?")


class Html(str):
    """Text that is HTML already. Every other text is escaped when it enters the page."""


def markup(value: object) -> Html:
    """Any value as HTML: `Html` as it stands, everything else escaped."""
    return value if isinstance(value, Html) else Html(html.escape(str(value), quote=True))


def join(parts: Iterable[object]) -> Html:
    """Pieces of HTML one after the other; plain text is escaped."""
    return Html("\n".join(markup(part) for part in parts))


def strong(value: object) -> Html:
    """Emphasised, as the best figure of a table column."""
    return Html(f"<strong>{markup(value)}</strong>")


def paragraph(text: object) -> Html:
    """Running text."""
    return Html(f"<p>{markup(text)}</p>")


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as percent, without the sign; a dash for None and NaN."""
    return DASH if value is None or np.isnan(value) else f"{100 * value:.{digits}f}"


def duration(seconds: float) -> str:
    """Seconds as people say them: 8.3 s, 4 min 05 s, 2 h 10 min."""
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest:02} s"
        if minutes < 100
        else f"{minutes // 60} h {minutes % 60:02} min"
    )


def table(headers: Sequence[object], rows: Sequence[Sequence[object]], caption: object) -> Html:
    """A table whose first column names the rows and whose columns of figures are right-aligned.

    Args:
        headers: one text per column.
        rows: of cells; numbers, and texts such as "54.1", "[50, 59]" or "3.2 s", count as figures.
            Floats show four digits.
        caption: above the table.

    Raises:
        ValueError: a row has another number of cells than there are headers.
    """
    for index, row in enumerate(rows):
        if len(row) != len(headers):
            raise ValueError(
                f"row {index} of table {caption!r} has {len(row)} cells, not {len(headers)}"
            )
    texts = [[_cell(cell) for cell in row] for row in rows]
    figures = [all(_is_figure(row[c]) for row in texts) for c in range(len(headers))]
    style = [' class="figure"' if figure else "" for figure in figures]

    def line(cells: Sequence[object], heading: bool) -> str:
        out = []
        for column, cell in enumerate(cells):
            tag, scope = (
                ("th", "col" if heading else "row") if heading or not column else ("td", "")
            )
            scope = f' scope="{scope}"' if scope else ""
            out.append(f"<{tag}{scope}{style[column]}>{markup(cell)}</{tag}>")
        return f"<tr>{''.join(out)}</tr>"

    body = "\n".join(line(row, False) for row in texts)
    head = line(headers, True)
    content = f'<table class="data"><thead>{head}</thead>\n<tbody>{body}</tbody></table>'
    return Html(
        f"<figure><figcaption>{markup(caption)}</figcaption>"
        f"{scroll(Html(content), caption)}</figure>"
    )


def facts(values: Mapping[str, object], caption: object, *, folded: bool = True) -> Html:
    """Names and values, such as the options of a run; nested mappings become dotted names."""
    rows = "".join(f"<dt>{markup(k)}</dt><dd>{markup(v)}</dd>" for k, v in _flatten(values))
    entries = f'<dl class="facts">{rows}</dl>'
    return fold(caption, Html(entries)) if folded else Html(f"{paragraph(caption)}{entries}")


def fold(caption: object, content: object) -> Html:
    """Content that is closed at first, under its caption."""
    return Html(f"<details><summary>{markup(caption)}</summary>{markup(content)}</details>")


def tiles(entries: Sequence[tuple[object, object, object]]) -> Html:
    """The few figures that matter most, large: (name, value, remark) each."""
    cells = (
        f'<div class="tile"><dt>{markup(name)}</dt><dd>{markup(value)}'
        f"{f'<small>{markup(remark)}</small>' if remark else ''}</dd></div>"
        for name, value, remark in entries
    )
    return Html(f'<dl class="tiles">{"".join(cells)}</dl>')


def class_legend(names: Sequence[str], palette: ArrayLike, *, neutral: str | None = None) -> Html:
    """Names beside their palette colours.

    Args:
        names: mask classes in order, background first.
        palette: (256, 3) uint8.
        neutral: what label 255 is called, if it is to be shown.
    """
    palette = np.asarray(palette)
    entries = [*enumerate(names), *([(255, neutral)] if neutral else [])]
    items = []
    for index, name in entries:
        swatch = f'<span class="swatch" style="background:{hex_colour(palette[index])}"></span>'
        items.append(f"<li>{swatch}{markup(name)}</li>")
    return Html(f'<ul class="legend">{"".join(items)}</ul>')


def hex_colour(colour: ArrayLike) -> str:
    """(3,) in 0..255 -> "#rrggbb"."""
    return "#" + "".join(f"{int(value):02x}" for value in np.asarray(colour))


def scroll(content: object, label: object) -> Html:
    """A box that scrolls by itself, also by keyboard, so that it never widens the page."""
    name = html.escape(html.unescape(_plain(label)), quote=True)
    opening = f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">'
    return Html(f"{opening}{markup(content)}</div>")


def _plain(value: object) -> str:
    """The text without tags."""
    return re.sub(r"<[^>]*>", "", markup(value))


def _cell(value: object) -> object:
    if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
        return DASH
    return f"{value:.4g}" if isinstance(value, float | np.floating) else value


def _is_figure(cell: object) -> bool:
    return _FIGURE.fullmatch(_plain(cell)) is not None


def _flatten(values: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    rows = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flatten(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", value))
    return rows
