"""`voc_segmentation`: PASCAL VOC 2012's segmentation data, with SBD's masks for train_aug.

Everingham et al., "The PASCAL Visual Object Classes Challenge: A Retrospective", IJCV 2015.
"""

import functools
import hashlib
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from vitx.data.datasets import sbd, voc_layout
from vitx.data.datasets.folders import base_split
from vitx.data.datasets.voc_annotations import (
    PASCAL,
    VOC_CLASSES,
    check_mask,
    image_size,
    labels_in_mask,
    labels_in_xml,
    read_mask,
)
from vitx.data.datasets.voc_folder import NAME
from vitx.data.datasets.voc_layout import IMAGES, MASKS, SEGMENTATION, Item, Layout
from vitx.data.prepared import PreparedRecords, StreamedBuilder, is_built, open_prepared

PUBLISHED = {"train": 1464, "val": 1449, "train_aug": 10582}  # how many images each split has

_AUG = "voc2012_aug"
_CONFIGS = {"train": "voc2012", "val": "voc2012", "train_aug": _AUG}  # that have a split
_AUG_LISTS = ("train_aug", "trainaug")
_MISSING = (
    f"no PASCAL VOC 2012 in {{root}}: download {voc_layout.ARCHIVE} (host.robots.ox.ac.uk/pascal/VOC/"
    'voc2012, "training/validation data", 2 GB) and put it at {manual}, or unpack it so that there is '
    f"{{root}}/VOCdevkit/VOC2012/{IMAGES}"
)
_MISSING_SBD = (
    f"split train_aug needs the masks of SBD, and {{root}} has none: download {sbd.ARCHIVE} "
    "(home.bharathh.info/pubs/codes/SBD/download.html, 1.4 GB) and put it at {manual}, or have its "
    f"masks as {sbd.PNGS}/<id>.png beside {MASKS}; splits train and val do without"
)


class VocSegmentation(StreamedBuilder):
    """VOC 2012's segmentation splits, in the order of their lists.

    Config voc2012 has train and val; voc2012_aug has train_aug: train and SBD's images, without
    those of val. SBD's masks are for the images that VOC itself has no mask of.

    Features: id; image, the file as it is; mask, a grey PNG of VOC_CLASSES' indices, 255 ignored;
    labels, the classes that the image shows, from 0 for the first after the background.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name=name) for name in dict.fromkeys(_CONFIGS.values())
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
                    "labels": tfds.features.Sequence(
                        tfds.features.ClassLabel(names=list(VOC_CLASSES[1:]))
                    ),
                }
            ),
            homepage="http://host.robots.ox.ac.uk/pascal/VOC/voc2012",
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    @functools.cached_property
    def _paths(self) -> list[Path]:
        return _sources(self.builder_config.name, Path(self.data_dir_root))

    @property
    def source(self) -> str:
        """See `StreamedBuilder`."""
        return " and ".join(map(str, self._paths))

    def content(self) -> str:
        """See `StreamedBuilder`: of images, masks and labels, in whatever form they came."""
        return self._digest.hexdigest()

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        del dl_manager
        self._digest = hashlib.sha256()
        layout = Layout(voc_layout.open_tree(self._paths[0]))
        lists = layout.lists(SEGMENTATION)
        for split in ("train", "val"):
            if split not in lists:
                raise ValueError(
                    f"{layout.tree.where(SEGMENTATION)} has no {split}.txt; get it from "
                    f"{voc_layout.ARCHIVE}"
                )
        ids = {split: layout.ids(lists[split]) for split in ("train", "val")}
        more = None
        if self.builder_config.name == _AUG:
            more = sbd.open_masks(self._paths[1], layout.masks)
            listed = next((lists[name] for name in _AUG_LISTS if name in lists), None)
            ids = {"train_aug": _train_aug(layout, listed, ids, more)}
        for split, chosen in ids.items():
            note = "" if len(chosen) == PUBLISHED[split] else f" (published: {PUBLISHED[split]:,})"
            if bare := sum(layout.item(identifier).annotation is None for identifier in chosen):
                note += f"; {bare:,} have no annotation, their masks tell the labels"
            print(f"{self.name}: {split} has {len(chosen):,} images{note}", file=sys.stderr)
        return {split: self._generate_examples(layout, ids[split], more) for split in ids}

    def _generate_examples(
        self, layout: Layout, ids: Sequence[str], more: sbd.Masks | None
    ) -> Iterator[tuple[int, dict]]:
        for number, item in enumerate(map(layout.item, ids)):
            image = layout.tree.read(item.image.path)
            size = image_size(image, layout.tree.where(item.image.path))
            mask = _mask(layout, item, more, size)
            if item.annotation is None:
                labels = labels_in_mask(mask)
            else:
                path = item.annotation.path
                labels = labels_in_xml(layout.tree.read(path), PASCAL, layout.tree.where(path))
            for part in (f"{item.id} {size} {labels} {len(image)}".encode(), image, mask.tobytes()):
                self._digest.update(part)
            file = io.BytesIO()
            Image.fromarray(mask).save(file, format="PNG")
            yield (
                number,
                {"id": item.id, "image": image, "mask": file.getvalue(), "labels": labels},
            )


def _sources(config: str, data_dir: Path) -> list[Path]:
    """Where VOC is and, for train_aug, SBD; FileNotFoundError, saying where to get what is missing."""
    root, manual = voc_layout.places_of(data_dir)
    found = voc_layout.find_voc(data_dir)
    if found is None:
        raise FileNotFoundError(_MISSING.format(root=root, manual=manual / voc_layout.ARCHIVE))
    if config != _AUG:
        return [found]
    more = sbd.find([found, found.parent, root, manual])
    if more is None:
        raise FileNotFoundError(_MISSING_SBD.format(root=root, manual=manual / sbd.ARCHIVE))
    return [found, more]


def _train_aug(
    layout: Layout, listed: voc_layout.File | None, ids: dict[str, list[str]], more: sbd.Masks
) -> list[str]:
    """The ids that a list has; else, sorted, those of VOC's train and SBD's without VOC's val."""
    composed = voc_layout.composed
    val = set(map(composed, ids["val"]))
    if listed is not None:
        chosen = layout.ids(listed)
        if held := next((identifier for identifier in chosen if composed(identifier) in val), None):
            raise ValueError(
                f"{layout.tree.where(listed.path)} lists {held}, which is of val: nothing could be "
                "told from val's figures any more; take val's images out"
            )
        return chosen
    chosen = sorted({*map(composed, ids["train"]), *more.ids} - val)
    if missing := [identifier for identifier in chosen if identifier not in layout.images]:
        raise ValueError(
            f"{layout.tree.where(IMAGES)} has no {missing[0]}, nor {len(missing) - 1} others that "
            f"{more.origin} has; get {voc_layout.ARCHIVE} anew"
        )
    return chosen


def _mask(layout: Layout, item: Item, more: sbd.Masks | None, size: tuple[int, int]) -> np.ndarray:
    """An image's mask (H, W) uint8: VOC's own, else of the others."""
    if item.mask is not None:
        where = layout.tree.where(item.mask.path)
        return read_mask(layout.tree.read(item.mask.path), where, len(VOC_CLASSES), size)
    if more is None:
        raise ValueError(
            f"{layout.tree.where(MASKS)} has no {item.id}.png; get it from {voc_layout.ARCHIVE}"
        )
    mask = more.read(item.id)
    check_mask(mask, f"of {item.id} in {more.origin}", len(VOC_CLASSES), size)
    return mask


def open_records(config: str, split: str, data_dir: Path) -> PreparedRecords:
    """PASCAL VOC 2012: train (1,464 images), val (1,449) and, with SBD, train_aug (10,582).

    Built once from `data_dir` or its downloads/manual: from a folder with JPEGImages, or VOC2012 or
    VOCdevkit/VOC2012 with it, or from VOCtrainval_11-May-2012.tar. Image-level labels are the
    annotations' objects, see `labels_in_xml`.

    train_aug needs SegmentationClassAug/*.png beside SegmentationClass, or SBD's own
    benchmark_RELEASE, or its benchmark.tgz. Its images are those of
    ImageSets/Segmentation/train_aug.txt or trainaug.txt, else VOC's train and SBD's train and val,
    without VOC's val. VOC's own masks win over SBD's.

    Raises FileNotFoundError where files are missing, saying where to get them; ValueError for an
    unknown split and for damaged files.
    """
    if config:
        raise ValueError(f"{NAME} has no config {config!r}; it has none")
    known = _CONFIGS.get(base_split(split))
    if known is None:
        raise ValueError(
            f"{NAME} has no split {split!r}; it has {', '.join(_CONFIGS)}, and parts of them such as "
            '"train_aug[:400]"; to read the lists of a folder of your own, give it '
            "--config.data.classes=FILE"
        )
    if not is_built(VocSegmentation, known, data_dir):
        _sources(known, data_dir)  # before anything is written
    return open_prepared(VocSegmentation, VOC_CLASSES, known, split, data_dir)
