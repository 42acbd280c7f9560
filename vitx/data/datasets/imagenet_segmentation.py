"""`imagenet_segmentation`: 4,276 ImageNet pictures with figure-ground masks.

Guillaumin, Kuettel, Ferrari, "ImageNet Auto-Annotation with Segmentation Propagation", IJCV 2014.
"""

from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from vitx.data.palette import encode_png
from vitx.data.prepared import PreparedBuilder, PreparedRecords, open_prepared

CLASSES = ("background", "foreground")


class ImagenetSegmentation(PreparedBuilder):
    """The pictures and masks of gtsegs_ijcv.mat, in its order.

    Features: id, ImageNet's name of the picture where the file has it; image, a lossless PNG;
    mask, a grey PNG of 0 background, 1 foreground, 255 ignored; label, always 0, the foreground:
    the masks do not say of what class it is.
    """

    VERSION = tfds.core.Version("1.0.0")
    FILE = "gtsegs_ijcv.mat"
    MISSING = (
        "no ImageNet-Segmentation in {root}: download gtsegs_ijcv.mat (calvin-vision.net, project "
        '"ImageNet Auto-Annotation with Segmentation Propagation", bigstuff/proj-imagenet/data) '
        "and put it at {path}"
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return self.describe(CLASSES[1:], "http://calvin-vision.net", one_class=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        del dl_manager
        return {"test": self._generate_examples(self.sources[0])}

    def _generate_examples(self, path: Path) -> Iterator[dict]:
        from vitx.data.formats.gtsegs import read_gtsegs  # HDF5 takes a while to import

        for name, image, mask in read_gtsegs(path):
            yield {"id": name, "image": encode_png(image), "mask": encode_png(mask), "label": 0}


def open_records(config: str, split: str, data_dir: Path) -> PreparedRecords:
    """The one split, test, built once from `data_dir`/downloads/manual/gtsegs_ijcv.mat; see `open_prepared`."""
    return open_prepared(ImagenetSegmentation, CLASSES, config, split, data_dir)
