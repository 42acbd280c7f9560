"""Sources: the splits of datasets, decoded."""

import copy
import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitx.data import transforms
from vitx.data.datasets import folders, imagenet, imagenet_segmentation, shapes, voc, voc_folder
from vitx.data.datasets.voc_annotations import check_mask, image_size
from vitx.data.palette import decode_mask
from vitx.data.pictures import is_turned
from vitx.data.prepared import open_manual, open_prepared
from vitx.data.records import Record, Records

# A split with at most one part, which datasets know, and parts of that.
_PARTS = re.compile(r"(.*?(?:\[[^]]*])?)((?:\[[^]]*])*)", re.DOTALL)

CACHE_BYTES = 256 * 2**20  # a split that decodes to less stays in memory

# How a split is opened, from config, split and folder of the data.
DATASETS: dict[str, Callable[[str, str, Path], Records]] = {
    "shapes": functools.partial(open_prepared, shapes.Shapes, shapes.CLASSES),
    "imagenet2012": imagenet.open_records,
    "imagenet_segmentation": functools.partial(
        open_manual, imagenet_segmentation.ImagenetSegmentation, imagenet_segmentation.CLASSES
    ),
    "folder": folders.open_records,
    voc_folder.NAME: voc.open_records,
}


@dataclasses.dataclass(frozen=True)
class Example:
    """A picture: image uint8 (H, W, 3), mask uint8 (H, W) or None, labels float32 (C,) of 0, 1."""

    id: str
    image: np.ndarray
    mask: np.ndarray | None
    labels: np.ndarray

    @property
    def truth(self) -> np.ndarray:
        """The mask, or ValueError where the image has none."""
        if self.mask is None:
            raise ValueError(f"image {self.id} has no mask to compare with")
        return self.mask


class Source(Sequence[Example]):
    """A split of a dataset, or its first `limit` examples, decoded when asked for; read-only arrays.

    `parts` are parts of these, one of the other: "[:80%][:100]".

    classes begins with "background"; labels has one place for each of the others. one_class says
    that every image shows one class. fingerprint changes with whatever determines the content, but
    for masks that tell no labels, with which mask_fingerprint changes.
    """

    def __init__(self, records: Records, limit: int | None = None, parts: str = "") -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"limit is {limit}, but at least one example is wanted")
        self._records = records
        self.name, self.split, self.classes = records.name, records.split + parts, records.classes
        self.one_class = records.one_class
        self._places: Sequence[int] = range(len(records))[:limit]
        for selector in re.findall(r"\[[^]]*]", parts):
            self._places = folders.part_of(self._places, self.name, selector)
        self.fingerprint, self.mask_fingerprint = (
            _digest([self.name, content, self.split, len(self)])
            for content in (records.content, records.mask_content)
        )
        self._cache: dict[int, Example] = {}

    @property
    def has_masks(self) -> bool:
        """Whether every example has a mask."""
        return self._records.has_masks

    @functools.cached_property
    def any_masks(self) -> bool:
        """Whether some example has a mask."""
        return any(map(self._records.masked, self._places))

    @functools.cached_property
    def most_classes(self) -> int:
        """The most classes that one image shows, at least 1, which fixes the shapes of padded arrays."""
        if self.one_class:
            return 1
        return max(1, *(len(set(self._records.labels(place))) for place in self._places))

    def identifier(self, index: int) -> str:
        """The id of an example, without decoding its image."""
        return self._records.identifier(self._place(index))

    def labels(self, index: int) -> np.ndarray:
        """The labels of an example, float32 (C,) of 0 and 1, without its image."""
        return self._one_hot(self._records.labels(self._place(index)))

    def size(self, index: int) -> tuple[int, int]:
        """The height and width of an image, without decoding it."""
        record = self._records.read(self._place(index))
        return image_size(record.image, record.origin, upright=record.upright)

    def masked(self, index: int) -> bool:
        """Whether an example has a mask, without reading anything."""
        return self._records.masked(self._place(index))

    def without(self, ids: Collection[str]) -> "Source":
        """The examples whose id is not among `ids`; fingerprints are others where that leaves some out.

        Raises ValueError where none is left.
        """
        kept = [place for place in self._places if self._records.identifier(place) not in ids]
        if len(kept) == len(self):
            return self
        if not kept:
            raise ValueError(f"{self.name} {self.split}: no image is left")
        rest = copy.copy(self)
        rest.__dict__ = {
            k: v for k, v in vars(self).items() if k not in ("any_masks", "most_classes")
        }
        rest._places, rest._cache = kept, {}
        rest.fingerprint, rest.mask_fingerprint = (
            _digest([mark, kept]) for mark in (self.fingerprint, self.mask_fingerprint)
        )
        return rest

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        index = self._place(index)
        example = self._cache.get(index)
        if example is None:
            example = self._decode(self._records.read(index))
            size = example.image.nbytes + (0 if example.mask is None else example.mask.nbytes)
            if size * len(self) < CACHE_BYTES:
                self._cache[index] = example
        return example

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}  # loader processes fill their own

    def _place(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)} in {self.name} {self.split}")
        return self._places[index]

    def _decode(self, record: Record) -> Example:
        image = transforms.read_image(record.image, record.origin, upright=record.upright)
        mask = None
        if record.mask is not None:
            where = record.mask_origin or record.origin
            mask = decode_mask(record.mask, where)
            if record.upright and is_turned(record.image):
                stored = image_size(record.image, record.origin, upright=False)
                if mask.shape == stored:  # also where turning keeps the shape: nobody could tell
                    raise ValueError(
                        f"the mask {where} fits the image {record.origin} as it is stored, but its EXIF turns that: "
                        "turn both files' pixels as a viewer shows them, and remove the image's EXIF orientation"
                    )
            check_mask(mask, where, len(self.classes), image.shape[:2])
        for array in (image, mask):
            if array is not None:
                array.setflags(write=False)
        return Example(record.id, image, mask, self._one_hot(record.labels))

    def _one_hot(self, classes: Sequence[int]) -> np.ndarray:
        labels = np.zeros(len(self.classes) - 1, np.float32)
        labels[list(classes)] = 1
        labels.setflags(write=False)
        return labels


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def open_source(
    name: str,
    split: str,
    data_dir: str | os.PathLike,
    *,
    limit: int | None = None,
    classes: str | os.PathLike | None = None,
) -> Source:
    """A split, or a part of one such as "train[:400]" or "train[:400][10%:]", of a dataset.

    `shapes`, or with a config's name `shapes/tiny`: splits train and val. `imagenet2012`: split
    validation, see `imagenet.open_records`. `imagenet_segmentation`: split test. `folder`: the
    class folders in `data_dir`, see `folders.open_records`. `voc_segmentation`: PASCAL VOC 2012's
    train, val and train_aug, see `voc.open_records`; or with `classes`, a file of their names, a
    folder of your own with VOC's layout, see `voc_folder.open_folder`.

    What is missing under `data_dir` is built first, by one process at a time and all or nothing.
    Raises ValueError for an unknown dataset, config or split and for bad files, and
    FileNotFoundError, saying where to get it, for a file that is to be fetched.
    """
    dataset, _, config = name.partition("/")
    if dataset not in DATASETS:
        raise ValueError(f"unknown dataset {name!r}; there is {', '.join(DATASETS)}")
    folder = Path(data_dir).expanduser()
    split, parts = _PARTS.fullmatch(split).groups()  # type: ignore[union-attr]  # it matches all
    if not classes:
        return Source(DATASETS[dataset](config, split, folder), limit, parts)
    if name != voc_folder.NAME:
        raise ValueError(
            f"config.data.classes={os.fspath(classes)}: dataset {name!r} has its own classes; a file of "
            f"names belongs to {voc_folder.NAME}"
        )
    return Source(voc_folder.open_folder(split, folder, Path(classes).expanduser()), limit, parts)
