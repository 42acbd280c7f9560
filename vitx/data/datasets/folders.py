"""Folders of images: one folder for each class."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import tensorflow_datasets as tfds

from vitx.data.records import Record

Example = TypeVar("Example")
SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".jp2", ".png", ".gif", ".webp", ".avif", ".bmp", ".tif", ".tiff",
    ".ppm", ".pgm",
)  # fmt: skip


class ImageFile(NamedTuple):
    """An image in a folder: its path there, its class, its size in bytes and its mtime in ns."""

    id: str
    path: str
    label: int
    size: int
    modified: int


class FolderRecords:
    """Images in the files of a folder, each of one class; see `Records`.

    Contents are not read to tell whether they changed: names, classes, sizes and times are. Images are turned as their
    EXIF says if `upright`.
    """

    one_class = True
    has_masks = False

    def __init__(
        self,
        name: str,
        split: str,
        classes: tuple[str, ...],
        folder: Path,
        images: Iterable[ImageFile],
        *,
        upright: bool = True,
    ) -> None:
        self._upright = upright
        self.name, self.split, self.classes = name, split, classes
        self._folder = folder
        images = list(images)
        paths: dict[str, str] = {}
        for image in images:
            if other := paths.get(image.id):
                raise ValueError(
                    f"{folder} has two images {image.id!r}: {other} and {image.path}; rename one"
                )
            paths[image.id] = image.path
        self._images = part_of(images, name, split)
        self.mask_content = ""
        self.content = hashlib.sha256(json.dumps(self._images).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> Record:
        """The example at `index`; ValueError naming its file where that cannot be read."""
        image = self._images[index]
        path = self._folder / image.path
        origin = f"{path} of {self.name}"
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ValueError(f"cannot read the image {origin}: {error.strerror}") from error
        return Record(image.id, origin, data, None, [image.label], upright=self._upright)

    def identifier(self, index: int) -> str:
        """See `Records`; reads nothing."""
        return self._images[index].id

    def labels(self, index: int) -> Sequence[int]:
        """See `Records`; reads nothing."""
        return [self._images[index].label]

    def masked(self, index: int) -> bool:
        """See `Records`; none is."""
        return False


def open_records(config: str, split: str, data_dir: Path) -> FolderRecords:
    """The images of a folder that has a folder for each class; no other layout is guessed at.

    `split` names the folder in `data_dir` that holds the class folders, such as "val"; "" or "all"
    is `data_dir` itself. A part of it may follow: "val[:100]". The sorted names are the classes,
    numbered from 0, so that ImageNet's 1000 synset ids come in ImageNet's order. Raises
    FileNotFoundError or ValueError where a folder is missing or a class has no images.
    """
    if config:
        raise ValueError(f"dataset 'folder' has no config {config!r}; it has none")
    if not data_dir.is_dir():
        raise FileNotFoundError(f"no folder {data_dir}; dataset 'folder' reads class folders in it")
    place, known = base_split(split), subfolders(data_dir)
    if place not in ("", "all", *known):
        has = f"it has {', '.join(known[:8]) or 'none'}" + (", ..." if len(known) > 8 else "")
        raise ValueError(
            f"{data_dir} has no folder {place!r}; {has}. Where these are the classes themselves: "
            "--config.data.val_split=all"
        )
    folder = data_dir if place in ("", "all") else data_dir / place
    classes = subfolders(folder)
    if not classes:
        raise ValueError(f"{folder} holds no class folders; wanted <class>/<image>.jpg in it")
    images = []
    for label, name in enumerate(classes):
        found = images_in(folder, name, label)
        if not found:
            raise ValueError(
                f"class folder {folder / name} holds no images ({' '.join(SUFFIXES)}); where it is "
                "a split, name it as one"
            )
        images += [image._replace(id=f"{name}/{image.id}") for image in found]
    name = f"folder/{data_dir.resolve().name}"
    return FolderRecords(name, split, ("background", *classes), folder, images)


def subfolders(folder: Path) -> list[str]:
    """The sorted names of the folders in a folder, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def images_in(folder: Path, below: str, label: int) -> list[ImageFile]:
    """The image files in `folder`/`below`, sorted, as of class `label`; their stems are the ids."""
    with os.scandir(folder / below) as entries:
        return sorted(
            ImageFile(
                Path(entry.name).stem,
                os.path.join(below, entry.name),
                label,
                entry.stat().st_size,
                entry.stat().st_mtime_ns,
            )
            for entry in entries
            if entry.name.lower().endswith(SUFFIXES)
            and not entry.name.startswith(".")
            and entry.is_file()
        )


def base_split(split: str) -> str:
    """The split that a part is of: "val" for "val[:100]"."""
    return re.sub(r"\[[^]]*]$", "", split)


def part_of(examples: Sequence[Example], name: str, split: str) -> Sequence[Example]:
    """Those that "[:100]" or "[10%:20%]" at the end of `split` picks, with TFDS's own rules.

    Raises ValueError, naming the dataset `name`, where it is none, or picks no example.
    """
    selector = split[len(base_split(split)) :]
    whole = tfds.core.SplitInfo(name="whole", shard_lengths=[len(examples)], num_bytes=0)
    try:
        (part,) = tfds.core.ReadInstruction.from_spec(f"whole{selector}").to_absolute(
            {"whole": whole}
        )
    except (ValueError, AssertionError) as error:
        raise ValueError(f"{name} has no part {split!r} ({error}); write it as [:100]") from error
    if not (chosen := examples[part.from_ : part.to]):
        raise ValueError(f"split {split!r} of {name} has no examples")
    return chosen
