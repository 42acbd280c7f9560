"""The files of a dataset in PASCAL VOC's layout: in a folder, or in VOC's own tar.

JPEGImages/<id>.jpg, Annotations/<id>.xml, SegmentationClass/<id>.png, and lists of ids in
ImageSets/Segmentation/<split>.txt.
"""

import os
import posixpath
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vitx.data.class_names import composed
from vitx.data.formats.files import SUFFIXES, File, folder_files, read_file, tar_files

IMAGES, ANNOTATIONS, MASKS = "JPEGImages", "Annotations", "SegmentationClass"
SEGMENTATION, MAIN = "ImageSets/Segmentation", "ImageSets/Main"
ARCHIVE = "VOCtrainval_11-May-2012.tar"

_PLACES = ("", "VOC2012", "VOCdevkit/VOC2012")
_MEMBER = re.compile(r"(?:VOCdevkit/)?VOC2012/(.+)")
# Some lists of train_aug name the files: "/JPEGImages/2007_000032.jpg /SegmentationClassAug/...".
_PATHS = re.compile(
    rf"/?{IMAGES}/([^/]+?)(?:{'|'.join(map(re.escape, SUFFIXES))})(?:\s.*)?", re.IGNORECASE
)
# A list of ImageSets/Main that says of each image whether it shows a class.
_WITH_SIGN = re.compile(r"(.+?)\s+(?:-1|0|1)")


class Tree:
    """A folder, or a tar that is read where it is; nothing is extracted.

    Raises ValueError where the tar is damaged or cut short, or holds no VOC2012 or what leads out of it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._members: dict[str, tuple[int, int]] = {}  # of a tar: offset and size
        if root.is_file():
            self._members = tar_files(root, _below_voc2012)
            if not self._members:
                raise ValueError(f"{root} holds no VOCdevkit/VOC2012; get it again")

    def files(self, folder: str) -> list[File]:
        """The files in a folder, without hidden ones; none where there is no such folder."""
        if not self._members:
            return folder_files(self.root, folder) if (self.root / folder).is_dir() else []
        return [
            File(path, size, 0)
            for path, (_, size) in self._members.items()
            if posixpath.dirname(path) == folder and not posixpath.basename(path).startswith(".")
        ]

    def read(self, path: str) -> bytes:
        """A file's content; ValueError naming it where it cannot be read."""
        if self._members:
            return read_file(self.root, self.where(path), *self._members[path])
        return read_file(self.root / path, self.where(path))

    def where(self, path: str) -> str:
        """Names a file in errors."""
        return f"{self.root}: {path}" if self._members else str(self.root / path)

    def by_stem(self, folder: str, suffixes: Sequence[str]) -> dict[str, File]:
        """A folder's files with one of these suffixes by their names without it, `composed`, sorted.

        Raises ValueError, naming both, where two have the same name.
        """
        found: dict[str, File] = {}
        for file in sorted(self.files(folder)):
            name = posixpath.basename(file.path)
            stem, suffix = os.path.splitext(composed(name))
            if suffix.lower() not in suffixes:
                continue
            if stem in found:
                other = posixpath.basename(found[stem].path)
                note = ""
                if os.path.splitext(name)[0] != os.path.splitext(other)[0]:  # they look the same
                    note = f" ({other!a} and {name!a} differ in Unicode's form alone)"
                raise ValueError(
                    f"two files are named {stem!r}: {self.where(found[stem].path)} and "
                    f"{self.where(file.path)}{note}; rename one"
                )
            found[stem] = file
        return found


def _below_voc2012(name: str) -> str | None:
    match = _MEMBER.fullmatch(name)
    return match[1] if match else None


class Item(NamedTuple):
    """An image's files, those of the annotation and the mask where there are any."""

    id: str
    image: File
    annotation: File | None
    mask: File | None


class Layout:
    """The images of a tree and what belongs to them.

    `mask_folders` have masks; where several have one of an image, the first's counts. `images` and `masks` have the
    files by their names without suffix, `composed`. Raises ValueError where two files of a folder have the same name.
    """

    def __init__(self, tree: Tree, mask_folders: Sequence[str] = (MASKS,)) -> None:
        self.tree = tree
        self.images = tree.by_stem(IMAGES, SUFFIXES)
        self._annotations = tree.by_stem(ANNOTATIONS, (".xml",))
        self.masks: dict[str, File] = {}
        for folder in reversed(mask_folders):
            self.masks |= tree.by_stem(folder, (".png",))

    def item(self, identifier: str) -> Item:
        """The files of an image that `images` has, its id in either form of Unicode."""
        name = composed(identifier)
        return Item(
            identifier, self.images[name], self._annotations.get(name), self.masks.get(name)
        )

    def lists(self, folder: str) -> dict[str, File]:
        """The lists of ids in a folder of ImageSets, by the names of their splits, `composed`."""
        return self.tree.by_stem(folder, (".txt",))

    def ids(self, listed: File) -> list[str]:
        """The ids in a list, in its order and as it writes them.

        Raises ValueError, naming list and line, for an id that comes twice or has no image, and for other lines.
        """
        where = self.tree.where(listed.path)
        try:
            lines = self.tree.read(listed.path).decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{where} is not UTF-8 text: {error}") from error
        found: dict[str, str] = {}  # by the composed form
        for number, line in enumerate(lines, 1):
            match = _PATHS.fullmatch(line.strip())
            identifier = match[1] if match else line.strip()
            if not identifier:
                continue
            name = composed(identifier)
            if name not in self.images:
                raise ValueError(f"{where}, line {number}: {self._missing(name)}")
            if name in found:
                raise ValueError(f"{where}, line {number}: {identifier!r} again; keep one")
            found[name] = identifier
        return list(found.values())

    def _missing(self, identifier: str) -> str:
        """Why there is no image of a line in a list."""
        match = _WITH_SIGN.fullmatch(identifier)
        if match and (match[1] in self.images or " " not in match[1]):
            return (
                f"{identifier!r} says whether an image shows a class, as lists in {MAIN} do; wanted an id alone: "
                "take the number away, and the images that are not meant"
            )
        stem, suffix = os.path.splitext(identifier)
        if stem in self.images or suffix.lower() in SUFFIXES:
            return f"{identifier!r} has a suffix; wanted the id alone, {stem!r}"
        for file in self.tree.files(IMAGES):
            name = posixpath.basename(file.path)
            if composed(os.path.splitext(name)[0]) == identifier:
                return f"{IMAGES}/{name} is not read, because of its suffix; wanted one of {' '.join(SUFFIXES)}"
        return f"{IMAGES} has no image {identifier!r}; wanted an image's name without suffix, one a line"


def places_of(data_dir: Path) -> tuple[Path, Path]:
    """Where data lie: the folder itself, and TFDS's for what the user fetches."""
    return data_dir, data_dir / "downloads" / "manual"


def find_voc(data_dir: Path) -> Path | None:
    """The folder in `data_dir` or its downloads/manual that has JPEGImages, or else VOC's tar."""
    folders = [place / name for place in places_of(data_dir) for name in _PLACES]
    archives = [place / ARCHIVE for place in places_of(data_dir)]
    found = [folder for folder in folders if (folder / IMAGES).is_dir()]
    found += [archive for archive in archives if archive.is_file()]
    return found[0] if found else None
