"""The report's pictures of the pipeline: from image to mask."""

from typing import Any

import numpy as np

from vitx.data.palette import IGNORED, voc_palette
from vitx.data.source import evenly_spaced
from vitx.pipeline.artifacts import read_seed_maps
from vitx.pipeline.mask_rows import BELOW, MaskRows, image_cells
from vitx.pipeline.masks_section import KINDS
from vitx.report.overlay import overlay
from vitx.report.page import Section
from vitx.report.parts import class_legend
from vitx.report.pictures import Cell, Pictures, picture_rows
from vitx.runtime.experiment import Run

_COLUMNS = ("image", "truth", "seed map", *KINDS.values(), "confident labels")


def pictures_section(run: Run, results: dict[str, Any]) -> Section:
    """How the masks of val images came about: some images evenly spaced, and those with the best and worst masks."""
    rows = MaskRows(run, results["chosen"]["background"])
    source, shown = rows.source, run.config.report

    def table(places: list[int], caption: str) -> Pictures:
        cells = []
        for place in places:
            run.stop.check()
            cells.append((source.identifier(place), _cells(rows, place)))
        return picture_rows(_COLUMNS, cells, caption)

    evenly = evenly_spaced(len(source), shown.images)
    tables = [table(evenly, "From image to mask")]
    places = {source.identifier(place): place for place in range(len(source))}
    for name in ("best", "worst"):
        if chosen := results.get(name, [])[: shown.extremes]:
            caption = f"Images with the {name} refined masks, by mIoU"
            tables.append(table([places[identifier] for identifier, _ in chosen], caption))
    explained = (
        f"{len(evenly)} val images, evenly spaced over the split. The seed map is that of the class named below it. "
        "AffinityNet learns from the confident labels: objects where the CRF at low alpha finds them, background where "
        f"that at high alpha does. {BELOW} It links to the file."
    )
    legend = class_legend(source.classes, voc_palette())
    return Section("Pictures", [explained, legend, *tables])


def _cells(rows: MaskRows, place: int) -> list[Cell | None]:
    example = rows.source[place]
    seed_maps, classes = read_seed_maps(
        rows.finished("seeds"), "val", example.id, size=example.size
    )
    name = rows.source.classes[classes[0] + 1] if len(classes) else "no class"
    seed_map = seed_maps[0] if len(seed_maps) else np.zeros(seed_maps.shape[1:], np.float32)
    drawn = overlay(example.image, seed_map, diverging=False)
    low, high = (rows.mask(example, kind) for kind in ("crf_low", "crf_high"))
    labels = np.where(high == 0, 0, np.where(low == 0, IGNORED, low))
    return [
        *image_cells(example),
        Cell(drawn, f"seed map of {name} of image {example.id}", name, rows.link(example, "seeds")),
        *(rows.cell(example, kind, title) for kind, title in KINDS.items()),
        Cell(voc_palette()[labels], f"confident labels of image {example.id}", lies_over=True),
    ]
