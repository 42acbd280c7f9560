"""`voc_segmentation`: PASCAL VOC 2012 with SBD's masks for train_aug, or data of the user's in VOC's layout.

Everingham et al., "The PASCAL Visual Object Classes Challenge: A Retrospective", IJCV 2015.
"""

import functools
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from vitx.data.class_names import composed, read_classes
from vitx.data.formats import sbd, voc_layout
from vitx.data.formats.files import File
from vitx.data.formats.voc_annotations import PASCAL, VOC_CLASSES, ClassList, labels_in_xml
from vitx.data.formats.voc_layout import (
    ANNOTATIONS,
    IMAGES,
    MAIN,
    MASKS,
    SEGMENTATION,
    Layout,
    Tree,
)
from vitx.data.palette import check_mask, decode_mask, encode_png, labels_in_mask
from vitx.data.prepared import PreparedBuilder, PreparedRecords, open_prepared
from vitx.data.records import Record, Records
from vitx.data.transforms import image_size

NAME = "voc_segmentation"
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


class VocSegmentation(PreparedBuilder):
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
        return self.describe(
            VOC_CLASSES[1:], "http://host.robots.ox.ac.uk/pascal/VOC/voc2012", "jpeg"
        )

    @functools.cached_property
    def sources(self) -> list[Path]:
        """Where VOC is and, for train_aug, SBD."""
        root, manual = voc_layout.places_of(Path(self.data_dir_root))
        found = voc_layout.find_voc(root)
        if found is None:
            raise FileNotFoundError(_MISSING.format(root=root, manual=manual / voc_layout.ARCHIVE))
        if self.builder_config.name != _AUG:
            return [found]
        more = sbd.find([found, found.parent, root, manual])
        if more is None:
            raise FileNotFoundError(_MISSING_SBD.format(root=root, manual=manual / sbd.ARCHIVE))
        return [found, more]

    def content(self) -> str:
        """See `PreparedBuilder`: of images, masks and labels, in whatever form they came."""
        return self._digest.hexdigest()

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        del dl_manager
        self._digest = hashlib.sha256()
        layout = Layout(Tree(self.sources[0]))
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
            more = sbd.open_masks(self.sources[1], layout.masks)
            listed = next((lists[name] for name in _AUG_LISTS if name in lists), None)
            ids = {"train_aug": _train_aug(layout, listed, ids, more)}
        for split, chosen in ids.items():
            note = "" if len(chosen) == PUBLISHED[split] else f" (published: {PUBLISHED[split]:,})"
            if bare := sum(layout.item(identifier).annotation is None for identifier in chosen):
                note += f"; {bare:,} have no annotation, their masks decide the labels"
            print(f"{self.name}: {split} has {len(chosen):,} images{note}", file=sys.stderr)
        return {split: self._generate_examples(layout, ids[split], more) for split in ids}

    def _generate_examples(
        self, layout: Layout, ids: Sequence[str], more: sbd.Masks | None
    ) -> Iterator[dict]:
        tree = layout.tree
        for item in map(layout.item, ids):
            image = tree.read(item.image.path)
            size = image_size(image, tree.where(item.image.path))
            if item.mask:
                where = tree.where(item.mask.path)
                mask = decode_mask(tree.read(item.mask.path), where)
            elif more:
                where, mask = f"of {item.id} in {more.origin}", more.read(item.id)
            else:
                raise ValueError(
                    f"{tree.where(MASKS)} has no {item.id}.png; get it from {voc_layout.ARCHIVE}"
                )
            check_mask(mask, where, len(VOC_CLASSES), size)
            labels = (
                _annotated(tree, item.annotation, PASCAL)
                if item.annotation
                else labels_in_mask(mask)
            )
            for part in (f"{item.id} {size} {labels} {len(image)}".encode(), image, mask.tobytes()):
                self._digest.update(part)
            yield {"id": item.id, "image": image, "mask": encode_png(mask), "labels": labels}


def _annotated(tree: Tree, annotation: File, known: ClassList) -> list[int]:
    return labels_in_xml(tree.read(annotation.path), known, tree.where(annotation.path))


def _train_aug(
    layout: Layout, listed: File | None, ids: dict[str, list[str]], more: sbd.Masks
) -> list[str]:
    """The ids that a list has; else, sorted, those of VOC's train and SBD's without VOC's val."""
    val = set(map(composed, ids["val"]))
    if listed is not None:
        chosen = layout.ids(listed)
        if held := next((identifier for identifier in chosen if composed(identifier) in val), None):
            raise ValueError(
                f"{layout.tree.where(listed.path)} lists {held}, which is of val: val's figures would "
                "mean nothing any more; take val's images out"
            )
        return chosen
    chosen = sorted({*map(composed, ids["train"]), *more.ids} - val)
    if missing := [identifier for identifier in chosen if identifier not in layout.images]:
        raise ValueError(
            f"{layout.tree.where(IMAGES)} has no {missing[0]}, nor {len(missing) - 1} others that "
            f"{more.origin} has; get {voc_layout.ARCHIVE} again"
        )
    return chosen


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
    if split not in _CONFIGS:
        raise ValueError(
            f"{NAME} has no split {split!r}; it has {', '.join(_CONFIGS)}, and parts of them such as "
            '"train_aug[:400]"; to read the lists of a folder of your own, give it '
            "--config.data.classes=FILE"
        )
    return open_prepared(VocSegmentation, VOC_CLASSES, _CONFIGS[split], split, data_dir)


class VocRecords(Records):
    """Images in a folder of the user's, laid out like VOC.

    Names, classes, sizes and times of the files are what `content` follows from; they are not read for it.
    """

    def __init__(self, layout: Layout, split: str, ids: Sequence[str], known: ClassList) -> None:
        super().__init__(NAME, split, known.names, ids)
        self._tree, self._known = layout.tree, known
        self._items = list(map(layout.item, ids))
        self._labels: dict[int, list[int]] = {}

    def read(self, index: int) -> Record:
        """The example at `index`; ValueError naming the file that cannot be read."""
        item, tree = self._items[index], self._tree
        return Record(
            id=item.id,
            origin=tree.where(item.image.path),
            image=tree.read(item.image.path),
            mask=tree.read(item.mask.path) if item.mask else None,
            labels=self.labels(index),
            mask_origin=tree.where(item.mask.path) if item.mask else "",
            upright=True,
        )

    def content(self, places: Sequence[int]) -> str:
        """See `Records`; ValueError where an image has neither annotation nor mask."""
        items = [self._items[place] for place in places]
        for item in items:
            if not (item.annotation or item.mask):
                raise ValueError(
                    f"nothing says what {self._tree.where(item.image.path)} shows: wanted "
                    f"{ANNOTATIONS}/{item.id}.xml, without objects where it shows no class, or "
                    f"{MASKS}/{item.id}.png"
                )
        # Masks may be drawn after training, which reads none where annotations decide the labels.
        labelling = [item._replace(mask=None) if item.annotation else item for item in items]
        return _digest([self.classes, labelling])

    def mask_content(self, places: Sequence[int]) -> str:
        """See `Records`."""
        return _digest([self._items[place].mask for place in places])

    def labels(self, index: int) -> Sequence[int]:
        """See `Records`; reads, once, the annotation or where there is none the mask."""
        if index not in self._labels:
            item, tree = self._items[index], self._tree
            if item.annotation:
                labels = _annotated(tree, item.annotation, self._known)
            elif item.mask:
                where = tree.where(item.mask.path)
                mask = decode_mask(tree.read(item.mask.path), where)
                check_mask(mask, where, len(self.classes))
                labels = labels_in_mask(mask)
            self._labels[index] = labels
        return self._labels[index]

    def masked(self, index: int) -> bool:
        """See `Records`."""
        return self._items[index].mask is not None


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def open_own(split: str, data_dir: Path, classes: Path) -> VocRecords:
    """Data of the user's in VOC's layout, read in place, with the classes in a file; see `read_classes`.

    JPEGImages has the images, of any format of `files.SUFFIXES`, in `data_dir` or where VOC has it there; they are
    turned as their EXIF says, and masks are drawn on the picture so turned. Annotations/<id>.xml lists what an image
    shows, or where there is none SegmentationClass/<id>.png does; masks (also in SegmentationClassAug) may be there for
    all images, some or none.

    A split's ids are in ImageSets/Segmentation/<split>.txt, else ImageSets/Main/<split>.txt; "all"
    needs no list and is every image, sorted. Raises FileNotFoundError where there is no JPEGImages, ValueError for an
    unknown split and for bad files.
    """
    known = ClassList(read_classes(classes), str(classes))
    found = voc_layout.find_voc(data_dir)
    if found is None or found.is_file():
        raise FileNotFoundError(f"{data_dir} has no folder {IMAGES}; {NAME} reads its images there")
    layout = Layout(Tree(found), (MASKS, sbd.PNGS))
    lists = layout.lists(MAIN) | layout.lists(SEGMENTATION)
    base = composed(split)
    if base in lists:
        ids = layout.ids(lists[base])
    elif base == "all":
        ids = sorted(layout.images)
    else:
        has = ", ".join([*list(lists)[:8], *(["..."] if len(lists) > 8 else []), "all"])
        raise ValueError(
            f"{found} has no split {base!r}; it has {has}. Lists are {SEGMENTATION}/<split>.txt and "
            f"{MAIN}/<split>.txt; all is every image"
        )
    return VocRecords(layout, split, ids, known)
