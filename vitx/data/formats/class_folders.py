"""Folders of images, one folder for each class."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vitx.data.formats.files import SUFFIXES, folder_files, read_file
from vitx.data.records import Record, Records


class ImageFile(NamedTuple):
    """An image in a folder: its path there, its class, its size in bytes and its mtime in ns."""

    id: str
    path: str
    label: int
    size: int
    modified: int


class FolderRecords(Records):
    """Images in the files of a folder, each of one class.

    Names, classes, sizes and times of the files are what `content` follows from; they are not read for it. Images are
    turned as their EXIF says if `upright`.
    """

    def __init__(
        self,
        name: str,
        split: str,
        classes: tuple[str, ...],
        folder: Path,
        images: Sequence[ImageFile],
        *,
        upright: bool = True,
    ) -> None:
        super().__init__(name, split, classes, [image.id for image in images], one_class=True)
        self._folder, self._images, self._upright = folder, images, upright
        paths: dict[str, str] = {}
        for image in images:
            if image.id in paths:
                raise ValueError(
                    f"{folder} has two images {image.id!r}: {paths[image.id]} and {image.path}; "
                    "rename one"
                )
            paths[image.id] = image.path

    def read(self, index: int) -> Record:
        """The example at `index`; ValueError naming its file where that cannot be read."""
        image = self._images[index]
        path = self._folder / image.path
        origin = f"{path} of {self.name}"
        data = read_file(path, f"the image {origin}")
        return Record(image.id, origin, data, None, [image.label], upright=self._upright)

    def content(self, places: Sequence[int]) -> str:
        """See `Records`."""
        images = [self._images[place] for place in places]
        return hashlib.sha256(json.dumps(images).encode()).hexdigest()

    def labels(self, index: int) -> Sequence[int]:
        """See `Records`; reads nothing."""
        return [self._images[index].label]


def subfolders(folder: Path) -> list[str]:
    """The sorted names of the folders in a folder, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def images_in(folder: Path, below: str, label: int) -> list[ImageFile]:
    """The image files in `folder`/`below`, sorted, as of class `label`; their stems are the ids."""
    return sorted(
        ImageFile(Path(path).stem, path, label, size, modified)
        for path, size, modified in folder_files(folder, below)
        if path.lower().endswith(SUFFIXES)
    )
