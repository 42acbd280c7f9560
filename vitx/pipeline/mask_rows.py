"""Rows of the report's pictures: an image, its true mask, and masks of any step with their mIoU and their files."""

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vitx.data import loader
from vitx.data.palette import voc_palette
from vitx.evaluation.metrics import confusion_matrix, mean_iou
from vitx.pipeline.artifacts import crf_folders, read_mask, read_seed_maps, seeded
from vitx.pseudomasks.seeds import seed_mask
from vitx.report.parts import percent
from vitx.report.pictures import Cell
from vitx.runtime.experiment import Run

BELOW = "The figure below a mask is its mIoU on this one image, over the classes of the true mask, background included."
_CRF = crf_folders("val")
_STAGES = {"masks": "masks", "network": "segmenter", **dict.fromkeys(_CRF, "labels")}
_FILE = "file"  # the note of a picture that has a file and no figure


def image_cells(example: loader.Example) -> list[Cell | None]:
    """An image, and its true mask or None."""
    truth = None
    if example.mask is not None:
        alt = f"ground truth of image {example.id}"
        truth = Cell(voc_palette()[example.mask], alt, lies_over=True)
    return [Cell(example.image, f"image {example.id}"), truth]


def mask_cell(
    example: loader.Example,
    mask: NDArray[np.uint8],
    name: str,
    classes: Sequence[str],
    link: str = "",
) -> Cell:
    """A mask uint8 (H, W) of an image, with its mIoU where the image has a true mask of which pixels count."""
    alt, note = f"{name} of image {example.id}", _FILE if link else ""
    if example.mask is not None:
        table = confusion_matrix(mask, example.mask, len(classes))
        if table.any():
            note = f"{percent(float(mean_iou(table)))} %"
            alt += f", mIoU {note}"
    return Cell(voc_palette()[mask], alt, note, link, lies_over=True)


class MaskRows:
    """Reads the masks of val that the stages wrote.

    Attributes:
        source: The images of val.
    """

    def __init__(self, run: Run, background: float):
        """`background`: the score of the seeds' masks."""
        self.source = seeded(run, "val")
        self._folder, self._background = run.workdir.folder, background
        self.finished = functools.cache(run.finished)

    def mask(self, example: loader.Example, kind: str) -> NDArray[np.uint8]:
        """The mask uint8 (H, W) of a kind: of `KINDS`, "network", or an arm of stage `controls`."""
        if kind == "seeds":
            maps = read_seed_maps(self.finished("seeds"), "val", example.id, size=example.size)
            return seed_mask(*maps, self._background)
        stage, folder = _place(kind)
        return read_mask(self.finished(stage), folder, example.id)

    def link(self, example: loader.Example, kind: str) -> str:
        """The path of the mask's file, or for "seeds" that of the seed maps, relative to the workdir."""
        stage, folder = _place(kind)
        suffix = ".npz" if kind == "seeds" else ".png"
        path = self.finished(stage).item(example.id, suffix, folder)
        return path.relative_to(self._folder).as_posix()

    def cell(self, example: loader.Example, kind: str, name: str) -> Cell:
        """A picture of the mask, see `mask_cell`."""
        mask, link = self.mask(example, kind), self.link(example, kind)
        return mask_cell(example, mask, name, self.source.classes, link)


def _place(kind: str) -> tuple[str, str]:
    """The stage and its folder that hold the masks of a kind."""
    if kind == "seeds":
        return "seeds", "val"
    if kind in _STAGES:
        return _STAGES[kind], _CRF.get(kind, "val")
    return "controls", kind
