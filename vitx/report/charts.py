"""Line and bar charts as inline SVG; series differ by colour, dash and marker."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vitx.report.parts import DASH, Html, fold, join, markup, percent, table
from vitx.report.style import SERIES

WIDTH, HEIGHT = 520, 320
LEFT, RIGHT, TOP, BOTTOM = 72, 16, 34, 54
MOST_POINTS = 400  # of a curve; more would only make the page heavy
MARKED_POINTS = 25  # curves of so few points get markers and a table
LETTER = 11  # room for one letter of a label, also at a phone's larger type
VALUE = 66  # and for a bar's value
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 4", "1 2", "9 2 2 2 2 2", "14 2 3 2")
_MARKERS = (  # the last five: triangle downwards, bar, cross, pin, saltire
    "M-3.5 0A3.5 3.5 0 1 0 3.5 0A3.5 3.5 0 1 0 -3.5 0Z",  # circle
    "M-3 -3H3V3H-3Z",  # square
    "M0 -4L4 3H-4Z",  # triangle
    "M0 -4.5L4 0L0 4.5L-4 0Z",  # diamond
    "M0 4L4 -3H-4Z",
    "M-1.6 -4.5H1.6V4.5H-1.6Z",
    "M-1.3 -4H1.3V-1.3H4V1.3H1.3V4H-1.3V1.3H-4V-1.3H-1.3Z",
    "M-4.5 -1.6H4.5V1.6H-4.5Z",
    "M-3.5 -2L-2 -3.5L0 -1.5L2 -3.5L3.5 -2L1.5 0L3.5 2L2 3.5L0 1.5L-2 3.5L-3.5 2L-1.5 0Z",
)


def charts(*parts: object) -> Html:
    """Charts side by side where the page is wide enough."""
    return Html(f'<div class="charts">{join(parts)}</div>')


def line_chart(
    series: Mapping[str, Sequence[float | None]],
    x: Sequence[float],
    labels: tuple[str, str],
    caption: object,
    *,
    in_percent: bool = True,
    from_zero: bool = True,
    among: Sequence[str] = (),
) -> Html:
    """Curves over common x values.

    Args:
        series: name -> one value per x; None was not measured there and is passed over, NaN leaves
            a gap.
        x: increasing.
        labels: of the x and the y axis.
        caption: above the chart.
        in_percent: the values are fractions, shown as percent.
        from_zero: the y axis starts at 0.
        among: the series of several charts, these among them, so that each looks the same in all.

    Raises:
        ValueError: there is no value to draw, or a series and x differ in length.
    """
    places = np.asarray(x, np.float64)
    curves = {}
    for name, values in series.items():
        if len(values) != len(places):
            raise ValueError(
                f"series {name!r} has {len(values)} values for {len(places)} on the x axis"
            )
        measured = np.array([value is not None for value in values], bool)
        ys = np.array([value for value in values if value is not None], np.float64)
        kept = np.unique(np.linspace(0, len(ys) - 1, min(len(ys), MOST_POINTS)).round().astype(int))
        curves[name] = places[measured][kept], ys[kept]
    drawn = (
        np.concatenate([ys[np.isfinite(ys)] for _, ys in curves.values()]) if curves else places[:0]
    )
    if not drawn.size:
        raise ValueError(f"nothing to draw in chart {caption!r}: no series has a finite value")
    y_ticks = nice_ticks(min(drawn.min(), 0.0) if from_zero else drawn.min(), drawn.max())
    x_ticks = nice_ticks(places.min(), places.max())
    x_ticks = x_ticks[(x_ticks >= places.min() - 1e-9) & (x_ticks <= places.max() + 1e-9)]

    def across(values: NDArray) -> NDArray:
        spread = (places.max() - places.min()) or 1.0
        return LEFT + (values - places.min()) / spread * (WIDTH - LEFT - RIGHT)

    def down(values: NDArray) -> NDArray:
        return TOP + (y_ticks[-1] - values) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - TOP - BOTTOM)

    parts = _frame(x_ticks, across(x_ticks), y_ticks, down(y_ticks), labels, in_percent)
    looks = {name: look for look, name in enumerate(among or curves)}
    for name, (xs, ys) in curves.items():
        parts.append(_curve(looks[name], name, across(xs), down(ys), _numbers(ys, in_percent)))
    svg = _svg(parts, WIDTH, HEIGHT, f"{caption}: {', '.join(curves)} over {labels[0]}")
    listed = _listing(series, places, labels, in_percent) if len(places) <= MARKED_POINTS else ""
    return _figure(
        caption, svg, _legend({name: looks[name] for name in curves}, lines=True), listed
    )


def bar_chart(
    groups: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    label: str,
    caption: object,
    *,
    in_percent: bool = True,
) -> Html:
    """Horizontal bars in groups: one bar for each series, its value beside it.

    Args:
        groups: for example class names.
        series: name -> one value >= 0 per group; None or NaN shows as a dash.
        label: of the axis of values.
        caption: above the chart.
        in_percent: the values are fractions, shown as percent.

    Raises:
        ValueError: a series and the groups differ in length.
    """
    bars = {name: _floats(values) for name, values in series.items()}
    for name, values in bars.items():
        if len(values) != len(groups):
            raise ValueError(f"series {name!r} has {len(values)} values for {len(groups)} groups")
    finite = [value for values in bars.values() for value in values[np.isfinite(values)]]
    ticks = nice_ticks(0.0, max(finite, default=1.0), 4)
    left = min(16 + LETTER * max((len(str(group)) for group in groups), default=0), WIDTH // 3)
    thickness, gap, top = 15, 12, 4
    pitch = thickness * len(bars) + gap
    bottom = top + pitch * len(groups)
    scale = (WIDTH - left - VALUE) / ticks[-1]

    parts = []
    for tick, text in zip(ticks, _numbers(ticks, in_percent, short=True), strict=True):
        x = left + tick * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 19, text))
    parts.append(_text((left + WIDTH - VALUE) / 2, bottom + 42, label))
    for row, group in enumerate(groups):
        start = top + row * pitch + gap / 2
        middle = start + thickness * len(bars) / 2 + 4.5
        parts.append(_text(left - 8, middle, _shorten(group, left), "end", "group"))
        for index, values in enumerate(bars.values()):
            y, value = start + index * thickness, values[row]
            length = 0.0 if np.isnan(value) else value * scale
            text = _numbers(values[[row]], in_percent)[0]
            parts.append(
                f'<rect x="{left}" y="{y + 1:.1f}" width="{length:.1f}" height="{thickness - 2}" '
                f'rx="2" fill="var(--s{index % SERIES})"/>'
            )
            parts.append(_text(left + length + 6, y + 12, text, "start", "value"))
    parts.append(f'<line class="axis" x1="{left}" x2="{left}" y1="{top}" y2="{bottom}"/>')
    described = f"{caption}: {', '.join(bars)} for {', '.join(groups)}"
    svg = _svg(parts, WIDTH, bottom + 50, described)
    return _figure(
        caption, svg, _legend({name: look for look, name in enumerate(bars)}, lines=False)
    )


def nice_ticks(low: float, high: float, most: int = 6) -> NDArray[np.float64]:
    """About `most` round values, 1, 2 or 5 times a power of ten apart, that enclose [low, high]."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / most
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
    return np.arange(first, last + 1) * step


def _frame(
    x_ticks: NDArray,
    across: NDArray,
    y_ticks: NDArray,
    down: NDArray,
    labels: tuple[str, str],
    in_percent: bool,
) -> list[str]:
    """Grid lines, axes, tick labels and axis titles of a line chart."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for y, text in zip(down, _numbers(y_ticks, in_percent, short=True), strict=True):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(LEFT - 8, y + 4.5, text, "end"))
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    for x, tick in zip(across, x_ticks, strict=True):
        parts.append(
            f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
        )
        parts.append(_text(x, bottom + 19, f"{tick:.6g}"))
    parts.append(_text((LEFT + right) / 2, HEIGHT - 8, labels[0]))
    parts.append(_text(4, 16, labels[1], "start"))
    return parts


def _text(x: float, y: float, text: str, anchor: str = "middle", kind: str = "tick") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{markup(text)}</text>'
    )


def _curve(index: int, name: str, x: NDArray, y: NDArray, texts: list[str]) -> str:
    """One path, broken where y is not finite; few points get markers that tell their value."""
    steps, drawn = [], np.isfinite(y)
    for place in np.flatnonzero(drawn):
        joined = place and drawn[place - 1]
        steps.append(
            f"{'L' if joined else 'M'}{x[place]:.1f} {y[place]:.1f}{'' if joined else 'h0'}"
        )
    style = f'stroke="var(--s{index % SERIES})" stroke-dasharray="{_DASHES[index % SERIES]}"'
    parts = [f'<path class="curve" {style} d="{" ".join(steps)}"/>']
    for place in np.flatnonzero(drawn) if len(y) <= MARKED_POINTS else ():
        parts.append(
            f'<path fill="var(--s{index % SERIES})" d="{_MARKERS[index % SERIES]}" '
            f'transform="translate({x[place]:.1f} {y[place]:.1f})">'
            f"<title>{markup(name)}: {texts[place]}</title></path>"
        )
    return "".join(parts)


def _listing(
    series: Mapping[str, Sequence[float | None]],
    places: NDArray,
    labels: tuple[str, str],
    in_percent: bool,
) -> Html:
    """The values of a line chart as a folded table."""
    columns = [_numbers(_floats(values), in_percent) for values in series.values()]
    rows = [[f"{place:g}", *cells] for place, *cells in zip(places, *columns, strict=True)]
    return fold("As a table", table([labels[0], *series], rows, labels[1]))


def _figure(caption: object, *parts: str) -> Html:
    return Html(
        f'<figure class="chart"><figcaption>{markup(caption)}</figcaption>{"".join(parts)}</figure>'
    )


def _floats(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _legend(looks: Mapping[str, int], *, lines: bool) -> Html:
    items, width = [], 30 if lines else 12
    for name, index in looks.items():
        colour = f"var(--s{index % SERIES})"
        dash, marker = _DASHES[index % SERIES], _MARKERS[index % SERIES]
        mark = f'<rect y="1" width="12" height="12" rx="2" fill="{colour}"/>'
        if lines:
            mark = (
                f'<path class="curve" stroke="{colour}" stroke-dasharray="{dash}" d="M0 7H30"/>'
                f'<path fill="{colour}" d="{marker}" transform="translate(15 7)"/>'
            )
        opening = f'<svg viewBox="0 0 {width} 14" width="{width}" aria-hidden="true">'
        items.append(f"<li>{opening}{mark}</svg>{markup(name)}</li>")
    return Html(f'<ul class="legend">{"".join(items)}</ul>')


def _svg(parts: Sequence[str], width: int, height: float, description: str) -> str:
    opening = (
        f'<svg viewBox="0 0 {width} {height:g}" role="img" aria-label="{markup(description)}">'
    )
    return "\n".join([opening, *parts, "</svg>"])


def _numbers(values: NDArray, in_percent: bool, short: bool = False) -> list[str]:
    if in_percent:
        return [f"{100 * value:.4g} %" if short else percent(value) for value in values]
    return [DASH if np.isnan(value) else f"{value:.4g}" for value in values]


def _shorten(text: str, width: int) -> str:
    fits = (width - 16) // LETTER
    return text if len(str(text)) <= fits else f"{str(text)[: fits - 1]}…"
