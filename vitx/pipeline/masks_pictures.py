"""The report's pictures of the pipeline: from image to mask."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vitx.data import loader
from vitx.data.palette import IGNORED, voc_palette
from vitx.pipeline.artifacts import read_seed_maps, seeded
from vitx.pipeline.mask_scores import stored_masks
from vitx.pseudomasks.seeds import seed_mask
from vitx.report.overlay import overlay
from vitx.report.page import Section
from vitx.report.parts import class_legend, percent
from vitx.report.pictures import Cell, Pictures, picture_rows
from vitx.runtime.experiment import Run
from vitx.runtime.workdir import StageFolder

_COLUMNS = (
    "image",
    "truth",
    "seed map",
    "sure object",
    "sure background",
    "labels",
    "seed mask",
    "refined",
)


def pictures_section(run: Run, results: dict[str, Any]) -> Section:
    """How the masks of val images came about: some images evenly spaced, and those with the best and worst masks."""
    source = seeded(run, "val")
    stages = [run.finished(name) for name in ("seeds", "labels", "masks")]
    background = results["chosen"]["background"]

    def table(chosen: Sequence[tuple[int, str]], caption: str) -> Pictures:
        rows = []
        for place, remark in chosen:
            run.stop.check()
            name, cells = _row(stages, source, place, background)
            rows.append((name + remark, cells))
        return picture_rows(_COLUMNS, rows, caption)

    # Evenly over the split, so that nobody picks the pretty ones.
    evenly = np.linspace(0, len(source) - 1, min(run.config.report.images, len(source)))
    tables = [table([(int(place), "") for place in evenly], "From image to mask")]
    places = {source.identifier(place): place for place in range(len(source))}
    for name in ("best", "worst"):
        chosen = [
            (places[identifier], f", {percent(miou)} %")
            for identifier, miou in results.get(name, [])[: run.config.report.extremes]
        ]
        if chosen:
            caption = f"Images with the {name} refined masks, by mIoU"
            tables.append(table(chosen, caption))
    explained = (
        f"{len(evenly)} val images, evenly spaced over the split. The seed map is that of the class named. Sure "
        "object and sure background are the dense CRF's at low and (black) at high alpha; where neither is "
        "sure, the label is neutral."
    )
    legend = class_legend(source.classes, voc_palette())
    return Section("Pictures", [explained, legend, *tables])


def _row(
    stages: Sequence[StageFolder], source: loader.Source, place: int, background: float
) -> tuple[str, list[Cell]]:
    """The class whose seed map a row shows, and the row's cells."""
    (seeds, labels, refined), example = stages, source[place]
    seed_maps, classes = read_seed_maps(seeds, "val", example.id, size=example.size)
    name = source.classes[classes[0] + 1] if len(classes) else "no class"
    seed_map = seed_maps[0] if len(seed_maps) else np.zeros(seed_maps.shape[1:], np.float32)
    stored = stored_masks(labels, refined, "val", example.id)
    low, high = stored["crf_low"], stored["crf_high"]
    object_sure = np.where(low == 0, IGNORED, low)
    masks = {
        "confident objects": object_sure,
        "confident background (black)": np.where(high == 0, 0, IGNORED),
        "labels": np.where(high == 0, 0, object_sure),
        "seed mask": seed_mask(seed_maps, classes, background),
        "refined mask": stored["masks"],
    }
    shown: list[tuple[np.ndarray, str] | None] = [
        (example.image, "image"),
        None if example.mask is None else (voc_palette()[example.mask], "ground truth"),
        (overlay(example.image, seed_map, diverging=False), f"seed map of {name}"),
        *((voc_palette()[mask], what) for what, mask in masks.items()),
    ]
    return name, [cell and (cell[0], f"{cell[1]} of image {example.id}") for cell in shown]
