"""How the time of an explanation grows with the batch, the classes, the tokens and the depth.

Transformer attribution of a small ViT (width 192), memory="fast". Writes a figure and, beside it, its points as JSON.
The lines are growth in proportion from the first point on. --panels measures some anew and keeps the others as the JSON
has them.

python -m benchmarks.growth [--panels batch,classes,tokens,depth] [--out docs/growth.svg] [--runs 3]
"""

import argparse
import datetime
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import vitx
from benchmarks.models import with_random_weights
from benchmarks.timing import alternate
from vitx.models.vit import Preprocess, VisionTransformer

PATCH = 16


class Sizes(NamedTuple):
    """A ViT, how it is called, and what is explained where nothing else is said."""

    name: str
    width: int
    heads: int
    depth: int
    size: int
    batch: int


SMALL = Sizes("ViT of width 192", width=192, heads=3, depth=6, size=96, batch=4)
Grid = Mapping[str, Mapping[Sizes, Sequence[int]]]
GRID: Grid = {
    "batch": {SMALL: (1, 2, 4, 8, 16)},
    "classes": {SMALL: (1, 2, 4, 8)},
    "tokens": {SMALL: (96, 144, 192, 288, 384)},
    "depth": {SMALL: (3, 6, 12, 24)},
}
TITLES = {
    "batch": "images at once",
    "classes": "classes explained",
    "tokens": "tokens",
    "depth": "blocks",
}
COLOURS = ("#1f5fa8", "#b3541e")


def measure(grid: Grid, runs: int) -> dict[str, Any]:
    """Times every point of the grid, those of a panel in turns.

    Args:
      grid: panel -> model -> values; those of "tokens" are sides of the image.
      runs: of each point; the figure is their median.

    Returns:
      panel -> model's name -> {"x", "seconds", "exponent"}, the last that of the power of x nearest to the points.
    """
    panels: dict[str, Any] = {}
    for panel, models in grid.items():
        sides: dict[str, Callable[[], Any]] = {}
        for sizes, values in models.items():
            for value in values:
                sides[f"{sizes.name} {value}"] = explanation(sizes, panel, value)
        seconds = alternate(sides, runs)
        panels[panel] = {}
        for sizes, values in models.items():
            x = [(v // PATCH) ** 2 + 1 if panel == "tokens" else v for v in values]
            y = [float(np.median(seconds[f"{sizes.name} {value}"])) for value in values]
            exponent = float(np.polyfit(np.log(x), np.log(y), 1)[0])
            panels[panel][sizes.name] = {"x": x, "seconds": y, "exponent": exponent}
    return panels


def explanation(sizes: Sizes, panel: str, value: int) -> Callable[[], Any]:
    """An explanation that differs from the model's usual one by one number."""
    size = value if panel == "tokens" else sizes.size

    def make() -> VisionTransformer:
        return VisionTransformer(
            width=sizes.width,
            depth=value if panel == "depth" else sizes.depth,
            heads=sizes.heads,
            hidden=4 * sizes.width,
            patch=PATCH,
            num_classes=1000,
            preprocess=Preprocess(size=(size, size)),
            rngs=nnx.Rngs(0),
        )

    batch = value if panel == "batch" else sizes.batch
    count = value if panel == "classes" else 1
    images = np.random.default_rng(0).standard_normal((batch, size, size, 3), np.float32)
    classes = jnp.broadcast_to(jnp.arange(count), (batch, count))
    model = with_random_weights(make)
    return partial(vitx.explain, model, jnp.asarray(images), classes, memory="fast")


def figure(panels: Mapping[str, Any]) -> str:
    """The panels as one SVG, two by two, both axes logarithmic."""
    width, height = 360, 270
    columns = 2
    rows = math.ceil(len(panels) / columns)
    parts = []
    for index, (panel, series) in enumerate(panels.items()):
        x, y = index % columns * width, index // columns * height
        drawn = _panel(TITLES[panel], series, width, height)
        parts.append(f'<g transform="translate({x} {y})">{drawn}</g>')
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    bottom = rows * height + 20
    for index, name in enumerate(names):
        at, colour = 60 + 170 * index, COLOURS[index]
        parts.append(f'<circle cx="{at}" cy="{bottom - 4}" r="4" fill="{colour}"/>')
        parts.append(_text(at + 10, bottom, name, "start"))
    at = 60 + 170 * len(names)
    parts.append(_line(at, bottom - 4, at + 24, bottom - 4, 'stroke="#777" stroke-dasharray="5 4"'))
    parts.append(_text(at + 32, bottom, "in proportion to the first point", "start"))
    size = f"{columns * width} {bottom + 16}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" font-family="sans-serif" '
        f'font-size="12" role="img" aria-label="Seconds of an explanation over '
        f'{", ".join(TITLES[panel] for panel in panels)}">\n'
        '<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _panel(title: str, series: Mapping[str, Any], width: int, height: int) -> str:
    left, right, top, bottom = 56, width - 16, 30, height - 40
    xs = np.concatenate([points["x"] for points in series.values()])
    ys = np.concatenate(
        [[*p["seconds"], p["seconds"][0] * p["x"][-1] / p["x"][0]] for p in series.values()]
    )
    low = np.array([xs.min() / 1.15, ys.min() / 1.3])
    high = np.array([xs.max() * 1.15, ys.max() * 1.3])

    def across(x: float) -> float:
        return left + math.log(x / low[0]) / math.log(high[0] / low[0]) * (right - left)

    def down(y: float) -> float:
        return bottom - math.log(y / low[1]) / math.log(high[1] / low[1]) * (bottom - top)

    parts = [_text((left + right) / 2, height - 6, title), _text(8, 18, "seconds", "start")]
    for y in _ticks(low[1], high[1]):
        parts.append(_line(left, down(y), right, down(y), 'stroke="#ddd"'))
        parts.append(_text(left - 6, down(y) + 4, f"{y:g}", "end"))
    for x in sorted(set(xs.tolist())) if len(set(xs.tolist())) < 8 else _ticks(low[0], high[0]):
        parts.append(_line(across(x), bottom, across(x), bottom + 4, 'stroke="#555"'))
        parts.append(_text(across(x), bottom + 17, f"{x:g}"))
    parts.append(_line(left, bottom, right, bottom, 'stroke="#555"'))
    for colour, points in zip(COLOURS, series.values(), strict=False):
        x, y = points["x"], points["seconds"]
        dashes = f'stroke="{colour}" stroke-dasharray="5 4" opacity="0.7"'
        end = down(y[0] * x[-1] / x[0])
        parts.append(_line(across(x[0]), down(y[0]), across(x[-1]), end, dashes))
        for one, other in zip(x, y, strict=True):
            place = f'cx="{across(one):.1f}" cy="{down(other):.1f}"'
            parts.append(
                f'<circle {place} r="4" fill="{colour}"><title>{one}: {other:.3g} s</title></circle>'
            )
    return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten in [low, high]; powers alone where that would be too many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [f * 10.0**p for p in powers for f in (1, 2, 5) if low <= f * 10.0**p <= high]
    return ticks if len(ticks) <= 8 else [t for t in ticks if math.log10(t) % 1 == 0]


def _line(x: float, y: float, to_x: float, to_y: float, style: str) -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" {style}/>'


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#333">{text}</text>'


def main() -> None:
    """Writes the figure and its points."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/growth.svg"), help="the figure")
    parser.add_argument("--runs", type=int, default=3, help="of each point")
    parser.add_argument("--panels", default=",".join(GRID), help="those to measure")
    options = parser.parse_args()
    chosen = options.panels.split(",")
    if unknown := [panel for panel in chosen if panel not in GRID]:
        parser.error(f"there is no panel {unknown[0]!r}; there are {', '.join(GRID)}")
    points = options.out.with_suffix(".json")
    kept = json.loads(points.read_text())["panels"] if points.exists() else {}
    found = kept | measure({panel: GRID[panel] for panel in chosen}, options.runs)
    panels = {panel: found[panel] for panel in GRID if panel in found}
    options.out.write_text(figure(panels))
    about = {
        "command": "python -m benchmarks.growth",
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "runs": options.runs,
    }
    points.write_text(json.dumps(about | {"panels": panels}, indent=1) + "\n")
    for panel, series in panels.items():
        for name, curve in series.items():
            ends = f"{curve['seconds'][0]:.3g} s to {curve['seconds'][-1]:.3g} s"
            print(f"{panel}, {name}: {ends}, as {TITLES[panel]} to the {curve['exponent']:.2f}")


if __name__ == "__main__":
    main()
