"""Folders of your own that are laid out like PASCAL VOC, read in place."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from vitx.data.datasets.folders import base_split, part_of
from vitx.data.datasets.sbd import PNGS
from vitx.data.datasets.voc_annotations import (
    ClassList,
    labels_in_mask,
    labels_in_xml,
    read_classes,
    read_mask,
)
from vitx.data.datasets.voc_layout import (
    ANNOTATIONS,
    IMAGES,
    MAIN,
    MASKS,
    SEGMENTATION,
    Folder,
    Item,
    Layout,
    Tree,
    composed,
    find_voc,
)
from vitx.data.records import Record

NAME = "voc_segmentation"


class VocRecords:
    """Images in a folder laid out like VOC; see `Records`.

    Contents are not read to tell whether they changed: names, classes, sizes and times are.
    """

    name = NAME
    one_class = False

    def __init__(self, tree: Tree, split: str, items: list[Item], known: ClassList) -> None:
        self.split, self.classes = split, known.names
        self._tree, self._items, self._known = tree, items, known
        self.has_masks = all(item.mask for item in items)
        # Masks may be drawn after training, which reads none where annotations tell the labels.
        labelling = [item._replace(mask=None) if item.annotation else item for item in items]
        self.content, self.mask_content = (
            hashlib.sha256(json.dumps(content).encode()).hexdigest()
            for content in ([self.classes, labelling], [item.mask for item in items])
        )
        self._labels: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self._items)

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

    def identifier(self, index: int) -> str:
        """See `Records`; reads nothing."""
        return self._items[index].id

    def labels(self, index: int) -> Sequence[int]:
        """See `Records`; reads, once, the annotation or where there is none the mask."""
        if index not in self._labels:
            item, tree = self._items[index], self._tree
            if item.annotation:
                path = item.annotation.path
                labels = labels_in_xml(tree.read(path), self._known, tree.where(path))
            elif item.mask:
                path = item.mask.path
                mask = read_mask(tree.read(path), tree.where(path), len(self.classes))
                labels = labels_in_mask(mask)
            self._labels[index] = labels
        return self._labels[index]

    def masked(self, index: int) -> bool:
        """See `Records`."""
        return self._items[index].mask is not None


def open_folder(split: str, data_dir: Path, classes: Path) -> VocRecords:
    """Your own images in VOC's layout, read in place, with the classes in a file; see `read_classes`.

    JPEGImages has the images, of any format of `folders.SUFFIXES`, in `data_dir` or where VOC has it there; they are
    turned as their EXIF says, and masks are drawn on the picture so turned. What an image
    shows is told by Annotations/<id>.xml, or where it has none by SegmentationClass/<id>.png; masks
    (also in SegmentationClassAug) may be there for all images, some or none.

    A split's ids are in ImageSets/Segmentation/<split>.txt, else ImageSets/Main/<split>.txt; "all"
    needs no list and is every image, sorted. A part of it may follow: "val[:100]". Raises
    FileNotFoundError where there is no JPEGImages, ValueError for an unknown split and for bad files.
    """
    known = read_classes(classes)
    found = find_voc(data_dir)
    if found is None or found.is_file():
        raise FileNotFoundError(f"{data_dir} has no folder {IMAGES}; {NAME} reads its images there")
    layout = Layout(Folder(found), (MASKS, PNGS))
    lists = {**layout.lists(MAIN), **layout.lists(SEGMENTATION)}
    base = composed(base_split(split))
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
    items = [layout.item(identifier) for identifier in part_of(ids, str(found), split)]
    for item in items:
        if not (item.annotation or item.mask):
            raise ValueError(
                f"nothing tells what {layout.tree.where(item.image.path)} shows: wanted "
                f"{ANNOTATIONS}/{item.id}.xml, without objects where it shows no class, or "
                f"{MASKS}/{item.id}.png"
            )
    return VocRecords(layout.tree, split, items, known)
