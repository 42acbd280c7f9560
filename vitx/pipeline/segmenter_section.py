"""The report's part about the segmentation network: its loss, and pictures of what it sees."""

from typing import Any

from vitx.data.palette import voc_palette
from vitx.data.source import evenly_spaced
from vitx.pipeline import training_stage
from vitx.pipeline.mask_rows import BELOW, MaskRows, image_cells
from vitx.report.page import Section
from vitx.report.parts import class_legend, percent
from vitx.report.pictures import picture_rows
from vitx.runtime.experiment import Run

_PICTURES = 6  # images shown at most
_COLUMNS = {"masks": "refined mask, with image labels", "network": "network's mask, without"}


def segmenter_section(run: Run, results: dict[str, Any]) -> list[Section]:
    """How the network learned, and its masks beside those made with image labels."""
    if "segmenter" not in results:
        return []
    found = results["segmenter"]
    text = (
        "A network on the classifier's backbone learned from the refined masks of training images. It sees nothing of "
        "an image of val but its pixels; the refined masks beside it know which classes the image shows."
    )
    if "miou" in found:
        low, high = (percent(end) for end in found["interval"])
        text += f" Its mIoU on val is {percent(found['miou'])} % (95 %: {low} to {high})."
    pictures = _pictures(run, results["chosen"]["background"])
    charts = training_stage.loss_charts(run, "segmenter")
    return [Section("Segmentation network", [text, *charts, *pictures])]


def _pictures(run: Run, background: float) -> list[object]:
    rows, shown = MaskRows(run, background), []
    for place in evenly_spaced(len(rows.source), min(_PICTURES, run.config.report.images)):
        run.stop.check()
        example = rows.source[place]
        masks = [rows.cell(example, kind, title) for kind, title in _COLUMNS.items()]
        shown.append((example.id, [*image_cells(example), *masks]))
    legend = class_legend(rows.source.classes, voc_palette())
    columns = ["image", "truth", *_COLUMNS.values()]
    return [BELOW, legend, picture_rows(columns, shown, "The network's masks")]
