"""Sources: the splits of datasets, decoded."""

import copy
import functools
import hashlib
import importlib
import json
import os
import pkgutil
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from vitx.data import datasets, transforms
from vitx.data.palette import check_mask, decode_mask
from vitx.data.records import Record, Records
from vitx.images.pictures import is_turned
from vitx.runtime.files import first_line

CACHE_BYTES = 256 * 2**20  # a split that decodes to less stays in memory
_PARTS = re.compile(r"(.*?)((?:\[[^]]*])*)", re.DOTALL)  # a split, and parts of it


@dataclass(frozen=True)
class Example:
    """A picture: image uint8 (H, W, 3), mask uint8 (H, W) or None, labels float32 (C,) of 0, 1."""

    id: str
    image: np.ndarray
    mask: np.ndarray | None
    labels: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def truth(self) -> np.ndarray:
        """The mask, or ValueError where the image has none."""
        if self.mask is None:
            raise ValueError(f"image {self.id} has no mask to compare with")
        return self.mask


class Source(Sequence[Example]):
    """A split of a dataset, or a part of it, decoded on access; the arrays are read-only.

    `parts` are slices, each of the one before: "[:80%][:100]".

    classes begins with "background"; labels has one place for each of the others. one_class tells whether
    every image shows one class. fingerprint changes with whatever determines the content, except for
    masks that decide no labels, with which mask_fingerprint changes.
    """

    def __init__(self, records: Records, parts: str = "") -> None:
        self._records = records
        self.name, self.split, self.classes = records.name, records.split + parts, records.classes
        self.one_class = records.one_class
        first, *others = re.findall(r"\[[^]]*]", parts) or [""]
        self._places = _part(range(len(records)), self.name, records.split, first)
        self._start = self._places[0]
        contents = records.content(self._places), records.mask_content(self._places)
        for selector in others:
            self._places = _part(self._places, self.name, records.split, selector)
        self.fingerprint, self.mask_fingerprint = (
            _digest([self.name, content, self.split, len(self)]) for content in contents
        )
        self._cache: dict[int, Example] = {}

    @property
    def has_masks(self) -> bool:
        """Whether every example has a mask."""
        return all(map(self._records.masked, self._places))

    @property
    def any_masks(self) -> bool:
        """Whether some example has a mask."""
        return any(map(self._records.masked, self._places))

    @functools.cached_property
    def most_classes(self) -> int:
        """The most classes that one image shows, at least 1; padded arrays have room for so many."""
        if self.one_class:
            return 1
        return max(1, *(len(set(self._records.labels(place))) for place in self._places))

    def identifier(self, index: int) -> str:
        """The id of an example, without decoding its image."""
        return self._records.ids[self._place(index)]

    def labels(self, index: int) -> np.ndarray:
        """The labels of an example, float32 (C,) of 0 and 1, without its image."""
        return self._one_hot(self._records.labels(self._place(index)))

    def size(self, index: int) -> tuple[int, int]:
        """The height and width of an image, without decoding it."""
        record = self._records.read(self._place(index))
        return transforms.image_size(record.image, record.origin, upright=record.upright)

    def without(self, ids: Collection[str]) -> "Source":
        """The examples whose id is not among `ids`; the fingerprints change if any is left out.

        Raises ValueError where none is left.
        """
        kept = [place for place in self._places if self._records.ids[place] not in ids]
        if len(kept) == len(self):
            return self
        if not kept:
            raise ValueError(f"{self.name} {self.split}: no image is left")
        rest = copy.copy(self)
        rest.__dict__.pop("most_classes", None)
        rest._places, rest._cache = kept, {}
        numbers = [place - self._start for place in kept]  # in the first part
        rest.fingerprint, rest.mask_fingerprint = (
            _digest([mark, numbers]) for mark in (self.fingerprint, self.mask_fingerprint)
        )
        return rest

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        place = self._place(index)
        example = self._cache.get(place)
        if example is None:
            example = self._decode(self._records.read(place))
            size = example.image.nbytes + (0 if example.mask is None else example.mask.nbytes)
            if size * len(self) < CACHE_BYTES:
                self._cache[place] = example
        return example

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}  # loader processes fill their own

    def _place(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)} in {self.name} {self.split}")
        return self._places[index]

    def _decode(self, record: Record) -> Example:
        image = transforms.read_image(record.image, record.origin, upright=record.upright)
        image.setflags(write=False)
        mask = None if record.mask is None else self._decode_mask(record, image.shape[:2])
        return Example(record.id, image, mask, self._one_hot(record.labels))

    def _decode_mask(self, record: Record, size: tuple[int, ...]) -> np.ndarray:
        where = record.mask_origin or record.origin
        mask = decode_mask(record.mask or b"", where)
        if record.upright and is_turned(record.image):
            stored = transforms.image_size(record.image, record.origin)
            if mask.shape == stored:  # also where turning keeps the shape: nobody could tell
                raise ValueError(
                    f"the mask {where} fits the image {record.origin} as it is stored, but its EXIF turns that: "
                    "turn both files' pixels as a viewer shows them, and remove the image's EXIF orientation"
                )
        check_mask(mask, where, len(self.classes), size)
        mask.setflags(write=False)
        return mask

    def _one_hot(self, classes: Sequence[int]) -> np.ndarray:
        labels = np.zeros(len(self.classes) - 1, np.float32)
        labels[list(classes)] = 1
        labels.setflags(write=False)
        return labels


def _part(places: Sequence[int], name: str, split: str, selector: str) -> Sequence[int]:
    """The places that "[:100]" or "[10%:20%]" picks, by TFDS's rules; "" picks all."""
    whole = tfds.core.SplitInfo(name="whole", shard_lengths=[len(places)], num_bytes=0)
    try:
        (part,) = tfds.core.ReadInstruction.from_spec(f"whole{selector}").to_absolute(
            {"whole": whole}
        )
    except (ValueError, AssertionError) as error:
        raise ValueError(
            f"{name} has no part {split + selector!r} ({first_line(error)}); write it as [:100]"
        ) from error
    if not (chosen := places[part.from_ : part.to]):
        raise ValueError(f"split {split + selector!r} of {name} has no examples")
    return chosen


def evenly_spaced(count: int, most: int) -> list[int]:
    """At most so many of `count` places, evenly over all, so that nobody picks the pretty ones."""
    return np.linspace(0, count - 1, min(count, most)).astype(int).tolist()


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def open_source(
    name: str, split: str, data_dir: str | os.PathLike, *, classes: str | os.PathLike | None = None
) -> Source:
    """A split, or a part of one such as "train[:400]" or "train[:400][10%:]", of a dataset.

    `name` is that of a module of `vitx.data.datasets`, whose `open_records` describes layouts and splits: `shapes`, or
    with a config's name `shapes/tiny`; `imagenet2012`; `imagenet_segmentation`; `folder`; `voc_segmentation`, or with
    `classes`, a file of their names, a folder of the user's in VOC's layout.

    What is missing under `data_dir` is built first, by one process at a time and all or nothing.
    Raises ValueError for an unknown dataset, config or split and for bad files, and
    FileNotFoundError, saying where to get it, for a file that the user has to fetch.
    """
    dataset, _, config = name.partition("/")
    known = sorted(module.name for module in pkgutil.iter_modules(datasets.__path__))
    if dataset not in known:
        raise ValueError(f"unknown dataset {name!r}; there is {', '.join(known)}")
    module = importlib.import_module(f"{datasets.__name__}.{dataset}")
    configs = getattr(module, "CONFIGS", ())
    if config not in ("", *configs):
        has = ", ".join(configs) or "none"
        raise ValueError(f"dataset {dataset!r} has no config {config!r}; it has {has}")
    folder = Path(data_dir).expanduser()
    base, parts = _PARTS.fullmatch(split).groups()  # type: ignore[union-attr]  # it matches all
    if not classes:
        return Source(module.open_records(config, base, folder), parts)
    if not hasattr(module, "open_own"):
        raise ValueError(
            f"config.data.classes={os.fspath(classes)}: dataset {name!r} has its own classes; a file of "
            "names belongs to voc_segmentation"
        )
    return Source(module.open_own(base, folder, Path(classes).expanduser()), parts)
