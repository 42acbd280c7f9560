r"""A page of images against methods, as in the papers' appendices, for any dataset and checkpoint.

Run:
    python evaluate.py --config configs/gallery.py --config.model.checkpoint=FILE --config.data.root=DIR \
        [--config.data.name=folder --config.data.val_split=all] [--config.report.images=24]

    imagenet2012 has the split validation, imagenet_segmentation test, folder any subfolder or all.

A row for the predicted class of each image, and one for the target class where the dataset's classes are the model's.
About two minutes for ViT-Base on two cores, most of it compiling.
"""

from ml_collections import ConfigDict

from configs import imagenet_perturbation


def get_config() -> ConfigDict:
    """The methods and start layers are those of Table 2; of its other options nothing is read."""
    config = imagenet_perturbation.get_config()
    config.stages = "gallery"
    config.on_bad_image = "stop"  # or "skip": leave out what cannot be read, and say so
    config.methods.batch_size = 8
    config.report.images = 12
    del config.limit
    for name in ("images", "directions", "fractions", "fill", "threshold", "measures"):
        del config.methods[name]
    for name in ("title", "summary", "published"):
        del config.report[name]
    return config
