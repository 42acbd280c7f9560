"""Sources: the splits of datasets, decoded."""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from vitx.data import transforms
from vitx.data.palette import decode_mask
from vitx.data.shapes import CLASSES, Shapes

CACHE_BYTES = 256 * 2**20  # a split that decodes to less stays in memory
DATASETS = {"shapes": (Shapes, CLASSES)}

_SKIP = tfds.decode.SkipDecoding()


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
    """A split of a prepared TFDS dataset, or its first `limit` examples; arrays are read-only.

    classes begins with "background". fingerprint changes with whatever determines the content.
    """

    def __init__(
        self,
        builder: tfds.core.DatasetBuilder,
        split: str,
        classes: tuple[str, ...],
        limit: int | None = None,
    ) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"limit is {limit}, but at least one example is wanted")
        try:
            builder.info.splits[split]  # also knows parts of splits, such as "train[:400]"
        except (KeyError, ValueError, AssertionError) as error:
            known = ", ".join(builder.info.splits)
            raise ValueError(
                f"{builder.info.full_name} has no split {split!r}; it has {known}, "
                'and parts of them such as "train[:400]"'
            ) from error
        self.name, self.split, self.classes = builder.info.full_name, split, classes
        self._has_masks = "mask" in builder.info.features
        encoded = {"image": _SKIP, "mask": _SKIP} if self._has_masks else {"image": _SKIP}
        self._folder = str(builder.data_path)
        with self._explained():
            self._records = builder.as_data_source(split=split, decoders=encoded)
        self._length = min(limit or len(self._records), len(self._records))
        content = [self.name, repr(builder.builder_config), split, self._length]
        self.fingerprint = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
        self._cache: dict[int, Example] = {}

    @functools.cached_property
    def most_classes(self) -> int:
        """The most classes that one image shows, which fixes the shapes of padded arrays."""
        return max(len(set(record["labels"])) for record in self._label_records())

    def _label_records(self) -> Iterator[Mapping[str, Any]]:
        for index in range(len(self)):  # undecoded: only the labels are looked at
            with self._explained():
                yield self._records[index]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)} in {self.name} {self.split}")
        index %= len(self)
        example = self._cache.get(index)
        if example is None:
            with self._explained():
                record = self._records[index]
            example = self._decode(record)
            size = example.image.nbytes + (0 if example.mask is None else example.mask.nbytes)
            if size * len(self) < CACHE_BYTES:
                self._cache[index] = example
        return example

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}  # loader processes fill their own

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError) as error:  # array_record's and TFDS's for damaged files
            raise ValueError(
                f"the dataset in {self._folder} is damaged ({str(error)[:150]}); "
                "delete that folder to have it built again"
            ) from error

    def _decode(self, record: Mapping[str, Any]) -> Example:
        identifier = record["id"].decode()
        name = f"{identifier} of {self.name}"
        image = transforms.read_image(record["image"], name, upright=False)
        mask = decode_mask(record["mask"], name) if self._has_masks else None
        labels = np.zeros(len(self.classes) - 1, np.float32)
        labels[list(record["labels"])] = 1
        for array in (image, mask, labels):
            if array is not None:
                array.setflags(write=False)
        return Example(identifier, image, mask, labels)


def open_source(
    name: str, split: str, data_dir: str | os.PathLike, *, limit: int | None = None
) -> Source:
    """A split of the dataset `name` ("shapes", or with a config's name "shapes/tiny").

    What is missing under `data_dir` is built first, by one process at a time and all or nothing.
    Raises ValueError for an unknown dataset, config or split.
    """
    dataset, _, config = name.partition("/")
    if dataset not in DATASETS:
        raise ValueError(f"unknown dataset {name!r}; there is {', '.join(DATASETS)}")
    builder_class, classes = DATASETS[dataset]
    configs = [known.name for known in builder_class.BUILDER_CONFIGS]
    if config and config not in configs:
        raise ValueError(f"{dataset} has no config {config!r}; it has {', '.join(configs)}")

    def make() -> tfds.core.DatasetBuilder:
        return builder_class(
            data_dir=data_dir, config=config or configs[0], file_format="array_record"
        )

    if not make().data_path.exists():
        _build(make, Path(data_dir) / f".{dataset}.lock")
    return Source(make(), split, classes, limit)


def _build(make: Callable[[], tfds.core.DatasetBuilder], lock: Path) -> None:
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # held until the file is closed, by death too
        builder = make()
        if builder.data_path.exists():
            return  # another process was first
        for leftover in Path(builder.data_path).parent.glob("incomplete.*"):
            shutil.rmtree(leftover)
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS talks of downloading
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
