"""The report's pictures of the pipeline: from image to mask."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vitx.data import loader
from vitx.data.palette import voc_palette
from vitx.data.transforms import resize_maps
from vitx.pipeline.artifacts import read_seed_maps, seeded
from vitx.pipeline.mask_scores import stored_masks
from vitx.pseudomasks.seeds import seed_mask
from vitx.report import page as report
from vitx.report.page import Section
from vitx.runtime.experiment import Run

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
    """Rows of val images: how each mask came about; some of all, and those that came out best and worst."""
    source = seeded(run, "val")
    # Evenly over the split, so that nobody picks the pretty ones.
    evenly = np.linspace(0, len(source) - 1, min(run.config.report.images, len(source)))
    chosen = [int(place) for place in evenly]
    tables: list[object] = [_rows(run, results, source, chosen, "From image to mask")]
    extremes = run.config.report.extremes
    places = {source.identifier(place): place for place in range(len(source))}
    for name in ("best", "worst"):
        named = results.get(name, [])[:extremes]
        if named and extremes:
            remarks = [f"{report.percent(miou)} %" for _, miou in named]
            chosen = [places[identifier] for identifier, _ in named]
            caption = f"The {len(named)} images whose refined masks came out {name}, by their mIoU"
            tables.append(_rows(run, results, source, chosen, caption, remarks))
    return Section(
        "Pictures",
        [
            f"{len(evenly)} val images, evenly spaced over the split. The seed map is of the class named. Sure "
            "object and sure background: what the dense CRF says at low and (black) at high alpha; where neither is "
            "sure, the label is neutral.",
            report.class_legend(source.classes, voc_palette(), neutral="neutral"),
            *tables,
        ],
    )


def _rows(
    run: Run,
    results: dict[str, Any],
    source: loader.Source,
    chosen: Sequence[int],
    caption: str,
    remarks: Sequence[str] = (),
) -> Any:
    rows, names = [], []
    for index in chosen:
        row, name = _picture_row(run, results, source, index)
        rows.append(row)
        names.append(name)
        run.stop.check()
    for number, remark in enumerate(remarks):
        names[number] += f", {remark}"
    return report.picture_rows(_COLUMNS, rows, caption, names=names)


def _picture_row(
    run: Run, results: dict[str, Any], source: loader.Source, index: int
) -> tuple[list[Any], str]:
    # The cells of a row, and the class whose seed map it shows.
    example = source[index]
    stored_seed_maps, classes = read_seed_maps(run.finished("seeds"), "val", example.id)
    seed_maps = resize_maps(stored_seed_maps, example.image.shape[:2])
    name = source.classes[classes[0] + 1] if len(classes) else "no class"
    stored = stored_masks(run, run.finished("masks"), "val", example.id)
    low, high = stored["crf_low"], stored["crf_high"]
    object_sure = np.where(low == 0, 255, low)
    background_sure = np.where(high == 0, 0, 255)
    label = np.where(high == 0, 0, object_sure)
    background = results["chosen"]["background"]
    palette = voc_palette()

    def mask(values: np.ndarray, what: str) -> tuple[np.ndarray, str]:
        return palette[values], f"{what} of image {example.id}"

    seed_map = seed_maps[0] if len(seed_maps) else np.zeros(seed_maps.shape[1:], np.float32)
    row: list[Any] = [
        (example.image, f"image {example.id}"),
        None if example.mask is None else mask(example.mask, "ground truth"),
        (
            report.heatmap_overlay(example.image, seed_map),
            f"seed map of {name} in image {example.id}",
        ),
        mask(object_sure, "confident objects"),
        mask(background_sure, "confident background (black)"),
        mask(label, "labels"),
        mask(seed_mask(seed_maps, classes, background), "seed mask"),
        mask(stored["masks"], "refined mask"),
    ]
    return row, name
