"""Table, chart and pictures of the masks that command `score` compares."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.table

from vitx.data.palette import decode_mask, voc_palette
from vitx.data.source import Source, evenly_spaced
from vitx.pipeline.mask_rows import BELOW, image_cells, mask_cell
from vitx.report.charts import bar_chart
from vitx.report.page import Section, Tile
from vitx.report.parts import DASH, Table, class_legend, percent
from vitx.report.pictures import Pictures, picture_rows
from vitx.runtime.experiment import Run

_HEADERS = ("class", "IoU", "95 %")
_ORIGIN = (
    "These masks were made elsewhere. Their file names say nothing of what made them, nor whether the true classes of "
    "these images were given to it: say so beside the figure."
)


def score_tables(results: Mapping[str, Any]) -> list[str | rich.table.Table]:
    """What the terminal shows."""
    table = rich.table.Table()
    for header in _HEADERS:
        table.add_column(header, justify="left" if header == "class" else "right")
    for row in _rows(results):
        table.add_row(*row)
    return [f"{_caption(results)}:", table, _ORIGIN]


def score_tiles(results: Mapping[str, Any]) -> list[Tile]:
    """The mean, and over how many images."""
    found = results["masks"]
    return [
        Tile("mIoU", f"{percent(found['miou'])} %", f"95 %: {_ends(found['interval'])}"),
        Tile("Images", f"{results['images']:,}"),
    ]


def score_sections(
    run: Run, results: Mapping[str, Any], source: Source, files: Mapping[str, Path]
) -> list[Section]:
    """Scores, and pictures of images evenly spaced over the split, with the best and with the worst masks."""
    iou = results["masks"]["iou"]
    scores = [
        f"The masks are those of {results['folder']['path']} (digest {results['folder']['digest']}). {_ORIGIN}",
        Table(_HEADERS, _rows(results), _caption(results)),
        bar_chart(list(iou), {"masks": list(iou.values())}, "IoU", "IoU by class"),
    ]
    shown = [name for name in map(source.identifier, range(len(source))) if name in files]
    evenly = [shown[place] for place in evenly_spaced(len(shown), run.config.report.images)]
    tables = [_pictures(run, source, files, evenly, "Images evenly spaced over the split")]
    for kind in ("best", "worst"):
        names = [name for name, _ in results[kind][: run.config.report.extremes]]
        tables.append(
            _pictures(run, source, files, names, f"Images with the {kind} masks, by mIoU")
        )
    pictures = [BELOW, class_legend(source.classes, voc_palette()), *tables]
    return [Section("Scores", scores), Section("Pictures", pictures)]


def _caption(results: Mapping[str, Any]) -> str:
    data = results["dataset"]
    return (
        f"Intersection over union, %, on {results['images']:,} images of {data['name']} {data['split']}, with 95 % "
        "bootstrap intervals over the images"
    )


def _rows(results: Mapping[str, Any]) -> list[list[str]]:
    found = results["masks"]
    mean = ["mean", percent(found["miou"]), _ends(found["interval"])]
    return [
        mean,
        *(
            [name, percent(iou), _ends(found["intervals"][name])]
            for name, iou in found["iou"].items()
        ),
    ]


def _ends(interval: Sequence[float] | None) -> str:
    return DASH if interval is None else " to ".join(map(percent, interval))


def _pictures(
    run: Run,
    source: Source,
    files: Mapping[str, Path],
    chosen: Sequence[str],
    caption: str,
) -> Pictures:
    places = {source.identifier(place): place for place in range(len(source))}
    rows = []
    for name in chosen:
        run.stop.check()
        example = source[places[name]]
        mask = decode_mask(files[name].read_bytes(), files[name].name)
        cells = [*image_cells(example), mask_cell(example, mask, "mask", source.classes)]
        rows.append((name, cells))
    return picture_rows(("image", "truth", "mask"), rows, caption)
