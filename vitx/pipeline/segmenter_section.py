"""The report's part about the segmentation network: its loss, and pictures of what it sees."""

from typing import Any

import numpy as np

from vitx.data.palette import voc_palette
from vitx.pipeline import training_stage
from vitx.pipeline.artifacts import read_mask, seeded
from vitx.report.page import Section
from vitx.report.parts import percent
from vitx.report.pictures import Cell, picture_rows
from vitx.runtime.experiment import Run

_PICTURES = 6  # images shown at most


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
    charts = training_stage.loss_charts(run, "segmenter")
    return [Section("Segmentation network", [text, *charts, _pictures(run)])]


def _pictures(run: Run) -> Any:
    source = seeded(run, "val")
    masks, network = run.finished("masks"), run.finished("segmenter")
    count = min(len(source), run.config.report.images, _PICTURES)
    rows = []
    for place in np.linspace(0, len(source) - 1, count):
        run.stop.check()
        example = source[int(place)]
        truth = None if example.mask is None else voc_palette()[example.mask]
        refined, seen = (
            voc_palette()[read_mask(stage, "val", example.id)] for stage in (masks, network)
        )
        shown = [(example.image, "image"), (truth, "ground truth")]
        shown += [(refined, "refined mask"), (seen, "network's mask")]
        cells: list[Cell] = [
            None if array is None else (array, f"{name} of image {example.id}")
            for array, name in shown
        ]
        rows.append((example.id, cells))
    headers = ["image", "truth", "refined, with image labels", "network, without"]
    return picture_rows(headers, rows, "The network's masks")
