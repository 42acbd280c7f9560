r"""A page of images against methods, as in the papers' appendices, for any dataset and checkpoint.

Run:
    python evaluate.py --config configs/gallery.py --config.model.checkpoint=FILE --config.data.root=DIR \
        [--config.data.name=folder] [--config.report.images=24]

A row for the predicted and one for the target class of each image; minutes on two cores, seconds on a GPU.
"""

from ml_collections import ConfigDict

from configs import imagenet_perturbation


def get_config() -> ConfigDict:
    """The methods and start layers are those of Table 2."""
    config = imagenet_perturbation.get_config()
    config.stages = "gallery"
    config.methods.batch_size = 8
    config.report.images = 12
    return config
