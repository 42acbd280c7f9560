"""Line and bar charts: SVG drawn by matplotlib, coloured by the page's style sheet."""

import io
import re
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from vitx.report.parts import DASH, Table, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _HEIGHT = 350, 250  # CSS pixels; a page shows charts at this size or larger
_MARKED: Final = 25  # curves of at most so many points have a marker at each, and a table
# Series differ by colour, marker and line, and repeat after nine. A legend shows the marker as a sign.
_SIGNS, _MARKERS, _LINES = "●■▲◆▼★◄►✚", "os^Dv*<>P", ("-", "--", ":", "-.")
# The style sheet's colours, and what matplotlib draws with in their place.
_NAMES: Final = ("ink", "soft", "line", *(f"s{look}" for look in range(len(_SIGNS))))
_INK, _SOFT, _LINE, *_SERIES = (f"#0000{place:02x}" for place in range(1, len(_NAMES) + 1))
_STYLE: Final = {
    "axes.autolimit_mode": "round_numbers",
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 13,
    "axes.titlepad": 12,
    "axes.xmargin": 0,
    "axes.ymargin": 0,
    "figure.constrained_layout.use": True,
    "font.sans-serif": ["DejaVu Sans"],  # measured with; the browser's font is narrower
    "font.size": 13,
    "lines.markersize": 5,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "grid.color": _LINE,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), _SOFT),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "none"),
    **dict.fromkeys((f"axes.spines.{side}" for side in ("left", "right", "top", "bottom")), False),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 0),
    **dict.fromkeys(("xtick.major.pad", "ytick.major.pad"), 6),
}


@dataclass(frozen=True)
class Chart:
    """A drawn chart.

    Attributes:
        caption: above the chart.
        legend: a (name, sign, variable of the style sheet) for each series.
        view_box: of the drawing.
        svg: the content of its <svg> element.
        listing: the values, where there are few.
    """

    caption: str
    legend: Sequence[tuple[str, str, str]]
    view_box: str
    svg: str
    listing: Table | None


def line_chart(
    series: Mapping[str, Sequence[float | None]],
    x: Sequence[float],
    labels: tuple[str, str],
    caption: str,
    *,
    in_percent: bool = True,
    among: Sequence[str] = (),
) -> Chart:
    """Curves over common x values; the y axis includes 0.

    Args:
        series: name -> one value per x. None is passed over, NaN leaves a gap.
        x: increasing.
        labels: of the x and the y axis.
        caption: above the chart.
        in_percent: the values are fractions, shown as percent.
        among: all series of several charts, so that each looks the same in all of them.
    """
    looks = {name: place % len(_SIGNS) for place, name in enumerate(among or series)}
    few = len(x) <= _MARKED
    scale, unit = (100, " %") if in_percent else (1, "")

    def draw(axes: "Axes") -> None:
        axes.axhline(0, color=_SOFT, linewidth=1)
        for name, values in series.items():
            look = looks[name]
            points = [(a, b) for a, b in zip(x, values, strict=True) if b is not None]
            xs, ys = np.array(points, np.float64).reshape(-1, 2).T
            axes.plot(
                xs,
                ys * scale,
                color=_SERIES[look],
                linestyle=_LINES[look % len(_LINES)],
                marker=_MARKERS[look],
                markevery=1 if few else (0.01 * look, 0.1),  # of the axes' diagonal
                clip_on=False,
            )
        axes.set_xlabel(_plain(labels[0], 40))
        axes.set_title(_plain(labels[1], 40))
        axes.grid(axis="y")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter(f"{{x:g}}{unit}")

    columns = [[_text(value, in_percent) for value in values] for values in series.values()]
    rows = [[f"{place:g}", *cells] for place, *cells in zip(x, *columns, strict=True)]
    listing = Table([labels[0], *series], rows, f"{caption}: {labels[1]}") if few else None
    return _chart(caption, {name: looks[name] for name in series}, _HEIGHT, draw, listing)


def bar_chart(
    groups: Sequence[str], series: Mapping[str, Sequence[float | None]], label: str, caption: str
) -> Chart:
    """Horizontal bars in groups: one bar for each series, its value beside it.

    Args:
        groups: for example class names.
        series: name -> one fraction per group, shown as percent; None or NaN shows as a dash.
        label: of the axis of values.
        caption: above the chart.
    """
    looks = {name: place % len(_SIGNS) for place, name in enumerate(series)}
    names = ["\n".join(textwrap.wrap(_plain(group, 44), 22)) for group in groups]
    lines = max((name.count("\n") + 1 for name in names), default=1)
    pitch = max(len(series) + 0.8, 1.1 * lines)  # bars from one group to the next

    def draw(axes: "Axes") -> None:
        places = pitch * np.arange(len(groups))
        for number, (name, values) in enumerate(series.items()):
            lengths = 100 * np.nan_to_num(np.array(values, np.float64))
            bars = axes.barh(places + number, lengths, 0.85, color=_SERIES[looks[name]])
            texts = [f"{_SIGNS[looks[name]]} {percent(value)}" for value in values]
            axes.bar_label(bars, texts, padding=4, color=_INK)
        axes.set_yticks(places + (len(series) - 1) / 2, names, color=_INK)
        axes.set_ylim(pitch * len(groups) - 0.9, -0.9)  # the first group at the top
        axes.set_xlabel(_plain(label, 40))
        axes.grid(axis="x")
        axes.xaxis.set_major_formatter("{x:g} %")

    return _chart(caption, looks, round(50 + 16 * pitch * len(groups)), draw)


def _chart(
    caption: str,
    looks: Mapping[str, int],
    height: int,
    draw: "Callable[[Axes], None]",
    listing: Table | None = None,
) -> Chart:
    from matplotlib import style  # takes a second to import: only for a page
    from matplotlib.figure import Figure

    file = io.StringIO()
    # Without a salt ids are random; with one for all, charts of a page share ids.
    salt = {"svg.hashsalt": ascii(caption)}
    with style.context(["default", _STYLE, salt]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs that only the browser's fonts have
        figure = Figure(figsize=(_WIDTH / 72, height / 72))
        draw(figure.subplots())
        figure.savefig(file, format="svg")
    # Without the head, which holds a date and a style sheet for the whole page.
    content = file.getvalue().partition("</defs>")[2].removesuffix("</svg>\n")
    svg = re.sub("<[^>]+>", _themed, content)
    legend = [(name, _SIGNS[look], f"--s{look}") for name, look in looks.items()]
    return Chart(caption, legend, f"0 0 {_WIDTH} {height}", svg, listing)


def _themed(tag: re.Match[str]) -> str:
    """A tag with the page's colours, and without ids that other charts of the page have too."""
    named = re.sub("#0000([0-9a-f]{2})", lambda c: f"var(--{_NAMES[int(c[1], 16) - 1]})", tag[0])
    return re.sub(r' id="[a-z0-9.]+_\d+"', "", named)


def _plain(text: str, most: int) -> str:
    """At most so many letters, all of them Unicode: the name of a file may have others."""
    text = text.encode(errors="replace").decode()
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _text(value: float | None, in_percent: bool) -> str:
    if in_percent:
        return percent(value)
    return DASH if value is None or np.isnan(value) else f"{value:.4g}"
