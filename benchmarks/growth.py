"""How the time of an explanation grows with the batch, the classes, the tokens and the depth.

Transformer attribution of a small ViT (width 192), memory="fast". Writes a figure and, beside it, its points as JSON.
Dashed lines are growth in proportion from the first point on. --panels measures only these again; the others stay as
they are in the JSON.

python -m benchmarks.growth [--panels batch,classes,tokens,depth] [--out docs/growth.svg] [--runs 3]
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from flax import nnx
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

import vitx
from benchmarks.command import parse_options
from benchmarks.models import random_images, with_random_weights
from benchmarks.tables import print_table
from benchmarks.timing import Side, alternate
from vitx.models.design import Preprocess
from vitx.models.vit import VisionTransformer

WIDTH, PATCH = 192, 16
# What a panel does not vary; the images' size is in patches along a side.
FIXED = {"batch": 4, "classes": 1, "patches": 6, "depth": 6}
GRID: dict[str, tuple[int, ...]] = {
    "batch": (1, 2, 4, 8, 16),
    "classes": (1, 2, 4, 8),
    "tokens": (6, 9, 12, 18, 24),  # patches along a side
    "depth": (3, 6, 12, 24),
}


def measure(grid: Mapping[str, Sequence[int]], runs: int) -> dict[str, Any]:
    """Times every point of the grid, those of a panel in turns.

    Returns:
      panel -> {"x", "seconds", "exponent"}: the median of the runs at each x, and the power of x fitted to them.
    """
    panels = {}
    for panel, values in grid.items():
        varied = "patches" if panel == "tokens" else panel
        sides = {str(value): explanation(**FIXED | {varied: value}) for value in values}
        seconds = [float(np.median(times)) for times in alternate(sides, runs).values()]
        x = [value**2 + 1 if panel == "tokens" else value for value in values]
        exponent = float(np.polyfit(np.log(x), np.log(seconds), 1)[0])
        panels[panel] = {"x": x, "seconds": seconds, "exponent": exponent}
    return panels


def explanation(batch: int, classes: int, patches: int, depth: int) -> Side:
    """An explanation of `classes` classes of each image, ready to be called."""

    def create() -> VisionTransformer:
        return VisionTransformer(
            width=WIDTH,
            depth=depth,
            heads=3,
            hidden=4 * WIDTH,
            patch=PATCH,
            num_classes=1000,
            preprocess=Preprocess(size=(PATCH * patches,) * 2),
            rngs=nnx.Rngs(0),
        )

    model = with_random_weights(create)
    explained = jnp.broadcast_to(jnp.arange(classes), (batch, classes))
    return partial(vitx.explain, model, random_images(model, batch), explained, memory="fast")


def draw(panels: Mapping[str, Any]) -> Figure:
    """The panels as one figure, two by two, both axes logarithmic."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    for axes, (panel, points) in zip(figure.subplots(2, 2).flat, panels.items(), strict=False):
        x, seconds = np.array(points["x"]), np.array(points["seconds"])
        axes.loglog(x, seconds, "o")
        axes.loglog(x, seconds[0] * x / x[0], "--", color="grey")
        axes.set(xlabel=panel, ylabel="seconds")
        axes.set_xticks(x, map(str, x))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.grid(axis="y")
    return figure


def main(
    panels: tuple[str, ...] = tuple(GRID), out: str = "docs/growth.svg", runs: int = 3
) -> None:
    """Writes the figure and its points."""
    if unknown := [panel for panel in panels if panel not in GRID]:
        raise SystemExit(f"--panels: there is no {unknown[0]!r}; there are {', '.join(GRID)}")
    file = Path(out).with_suffix(".json")
    found = json.loads(file.read_text())["panels"] if file.exists() else {}
    found |= measure({panel: GRID[panel] for panel in panels}, runs)
    about = {
        "command": "python -m benchmarks.growth",
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "runs": runs,
        "panels": {panel: found[panel] for panel in GRID if panel in found},
    }
    file.write_text(json.dumps(about, indent=1) + "\n")
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text
    draw(about["panels"]).savefig(out, metadata={"Date": None})
    print_table(
        ("panel", "seconds, first and last", "exponent"),
        (
            (
                panel,
                f"{p['seconds'][0]:.3g} to {p['seconds'][-1]:.3g}",
                f"{p['exponent']:.2f}",
            )
            for panel, p in about["panels"].items()
        ),
    )


if __name__ == "__main__":
    main(**parse_options(main))
