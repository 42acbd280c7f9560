"""The report's table and pictures of what each step adds to the masks."""

from typing import Any

from vitx.data.palette import voc_palette
from vitx.data.source import evenly_spaced
from vitx.pipeline.mask_rows import BELOW, MaskRows, image_cells
from vitx.report.charts import bar_chart
from vitx.report.page import Section
from vitx.report.parts import Table, class_legend, percent
from vitx.report.pictures import picture_rows
from vitx.runtime.experiment import Run

TITLES = {
    "seeds": "seeds",
    "crf_low": "CRF'd seeds, low alpha",
    "crf_high": "CRF'd seeds, high alpha",
    "no_walk": "no walk",
    "no_crf": "no CRF after the walk",
    "uniform": "walk, uniform affinity",
    "colour": "walk, affinity of colour",
    "features": "walk, affinity of the classifier's features",
    "attention": "walk, affinity of attention",
    "affinitynet": "walk, AffinityNet",
    "oracle": "walk, affinity of the true masks",
    "masks": "refined masks",
}
_PICTURES = 6  # images shown at most


def controls_section(run: Run, results: dict[str, Any]) -> list[Section]:
    """What each step adds: the mIoU of every kind of mask, and pictures of them."""
    controls = results.get("controls", {})
    figures, chosen = controls.get("figures", {}), controls.get("chosen", {})
    if not figures:
        return []
    rows = []
    for name, found in figures.items():
        low, high = found["ahead_interval"]
        ahead = f"{100 * found['ahead']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        interval = " to ".join(percent(end) for end in found["interval"])
        rows.append(
            [
                TITLES[name],
                percent(found["miou"]),
                interval,
                ahead,
                _options(name, chosen.get(name, {})),
            ]
        )
    headers = ["masks", "mIoU", "95 %", "refined masks are ahead by", "options chosen"]
    caption = "What each step adds: mIoU on val, %, with 95 % bootstrap intervals over the images of this one run"
    text = (
        "Each row below the CRF'd seeds replaces the affinity of the walk, or leaves a step out. The rest of the "
        "treatment is the same, and its options are chosen among the same candidates in the same way as those of the "
        "refined masks. The affinity of the true masks shows what a perfect affinity would give."
    )
    chart = bar_chart(
        [TITLES[name] for name in figures],
        {"mIoU on val": [found["miou"] for found in figures.values()]},
        "mIoU",
        "What each step adds",
    )
    body = [text, Table(headers, rows, caption), chart, *_pictures(run, list(figures), results)]
    return [Section("What each step adds", body)]


def _options(name: str, chosen: dict[str, Any]) -> str:
    if not chosen:
        return ""
    walk = f"beta {chosen['beta']:g}, 2^{chosen['log2_steps']} steps, "
    return f"{'' if name == 'no_walk' else walk}level {chosen['level']:g} ({chosen['how']})"


def _pictures(run: Run, names: list[str], results: dict[str, Any]) -> list[object]:
    rows = MaskRows(run, results["chosen"]["background"])
    shown = []
    for place in evenly_spaced(len(rows.source), min(_PICTURES, run.config.report.images)):
        run.stop.check()
        example = rows.source[place]
        masks = [rows.cell(example, name, TITLES[name]) for name in names]
        shown.append((example.id, [*image_cells(example), *masks]))
    columns = ["image", "truth", *(TITLES[name] for name in names)]
    legend = class_legend(rows.source.classes, voc_palette())
    return [BELOW, legend, picture_rows(columns, shown, "The same images under each treatment")]
