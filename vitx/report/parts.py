"""Parts of a section, as data that the template renders, and how they write figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DASH = "\N{EN DASH}"  # shown where there is no value


@dataclass(frozen=True)
class Table:
    """A table in a box that scrolls.

    Attributes:
        headers: one text per column. The first column names the rows.
        rows: one text per column each.
        caption: above the table.
        texts: number of columns, from the left, that hold text. The others hold figures, right-aligned.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    texts: int = 1


@dataclass(frozen=True)
class Fold:
    """A part that is closed at first.

    Attributes:
        caption: always visible.
        content: any part of a section, or a tuple of them.
    """

    caption: str
    content: object

    @property
    def parts(self) -> tuple[object, ...]:
        """The content as a tuple."""
        return self.content if isinstance(self.content, tuple) else (self.content,)


@dataclass(frozen=True)
class Legend:
    """Names beside their colours: (name, CSS colour) each."""

    entries: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Files:
    """Links to files: under each name, their paths relative to the page's folder."""

    paths: Mapping[str, Sequence[str]]


def class_legend(names: Sequence[str], palette: NDArray[np.uint8]) -> Legend:
    """The colours (256, 3) of the mask classes, background first, and of pixels without a label."""
    colours = [f"#{colour.tobytes().hex()}" for colour in palette]
    unlabelled = ("not sure; in the truth: not scored", colours[255])
    return Legend([*zip(names, colours, strict=False), unlabelled])


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as percent, without the sign; a dash for None and NaN."""
    return DASH if value is None or np.isnan(value) else f"{100 * value:.{digits}f}"


def duration(seconds: float) -> str:
    """Seconds for readers: "8.3 s", "4 min 05 s", "2 h 10 min"."""
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"
