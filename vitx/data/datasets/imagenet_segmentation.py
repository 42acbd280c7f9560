"""ImageNet-Segmentation: 4,276 ImageNet pictures with figure-ground masks.

Guillaumin, Kuettel, Ferrari, "ImageNet Auto-Annotation with Segmentation Propagation", IJCV 2014.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from vitx.data.prepared import ManualBuilder

CLASSES = ("background", "foreground")


class ImagenetSegmentation(ManualBuilder):
    """The pictures and masks of gtsegs_ijcv.mat, in its order; the one split is called test.

    Features: id, ImageNet's name of the picture where the file tells it; image, a lossless PNG;
    mask, a grey PNG of 0 background, 1 foreground, 255 ignored; label, always 0, the foreground:
    the masks do not say of what class it is.
    """

    VERSION = tfds.core.Version("1.0.0")
    SPLIT = "test"
    FILE = "gtsegs_ijcv.mat"
    MISSING = (
        "no ImageNet-Segmentation in {root}: download gtsegs_ijcv.mat (calvin-vision.net, project "
        '"ImageNet Auto-Annotation with Segmentation Propagation", bigstuff/proj-imagenet/data) '
        "and put it at {path}"
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                    "mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=list(CLASSES[1:])),
                }
            ),
            homepage="http://calvin-vision.net",
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _generate_examples(self, path: Path) -> Iterator[tuple[int, dict]]:
        from vitx.data.datasets.gtsegs import read_gtsegs  # HDF5 takes a while to import

        for number, (name, image, mask) in enumerate(read_gtsegs(path)):
            yield number, {"id": name, "image": _png(image), "mask": _png(mask), "label": 0}


def _png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="PNG")
    return file.getvalue()
