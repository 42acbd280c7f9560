r"""Gallery: a page of images against explanation methods, as in the papers' appendices, for any dataset and checkpoint.

Run:
    python evaluate.py --config configs/gallery.py --config.model.checkpoint=FILE --config.data.root=DIR \
        [--config.data.name=folder --config.data.val_split=all] [--config.report.images=24]

    Splits: "validation" of imagenet2012, "test" of imagenet_segmentation, any subfolder or "all" of folder.

Each image has a row for its predicted class, and one for its target class if the dataset and the model have the same
classes. ViT-Base takes about two minutes on two cores, most of them for compiling.
"""

from ml_collections import ConfigDict

from configs import imagenet_perturbation


def get_config() -> ConfigDict:
    """Options of Table 2, without those that affect only its scores."""
    config = imagenet_perturbation.get_config()
    config.stages = "gallery"
    config.on_bad_image = "stop"  # or "skip": leave out files that cannot be read, and name them
    config.methods.batch_size = 8
    config.report.images = 12
    del config.limit
    for name in (
        "images",
        "directions",
        "fractions",
        "fill",
        "compute",
        "threshold",
        "measures",
        "scores",
        "reference",
    ):
        del config.methods[name]
    for name in ("title", "summary", "published"):
        del config.report[name]
    return config
