r"""Scores a folder of masks that any program made: mIoU, IoU by class, bootstrap intervals, pictures.

Run:
    python evaluate.py --config configs/score.py --config.masks=MASKS --config.data.root=DIR [--workdir runs/score]

    MASKS has <id>.png for each image of the split that has a true mask: palette or grey PNGs of the image's size, whose
    values are the classes (0 is the background). DIR has VOCdevkit/VOC2012 or its tar (docs/tables.md).

Other data:
    --config.data.classes=FILE: images and masks of your own in VOC's layout (docs/data.md).
    --config.data.name=shapes: the embedded dataset.

Where masks are missing, of another size, of no image, or have values that are no class, they are named and nothing is
scored. The workdir gets `results.json` and `report.html`; each start writes them again.

Run time: 1,449 images of 96 x 72 take 10 s on two cores, of VOC's size half a minute.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Masks and data; `--config.key=value` changes an option."""
    config = ConfigDict()
    config.stages = "score"

    config.masks = ""  # the folder; not those below it
    config.others = "stop"  # masks of no image of the split; or "skip": leave them out

    config.data = ConfigDict()
    config.data.name = "voc_segmentation"  # or another dataset with masks
    config.data.root = "data"
    config.data.classes = ""  # a file of class names, for your own data; "": VOC's 21
    config.data.val_split = "val"  # or another split, or a part of one: "train_aug[:400]"

    config.report = ConfigDict()
    config.report.title = "masks"
    config.report.summary = "Masks of another program against the true masks."
    config.report.images = 12
    config.report.extremes = 4  # number of images with the best masks, and with the worst
    return config
