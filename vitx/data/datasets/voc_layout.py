"""Where the files of a dataset laid out like PASCAL VOC are: in a folder, or in VOC's own tar.

JPEGImages/<id>.jpg, Annotations/<id>.xml, SegmentationClass/<id>.png, and lists of ids in
ImageSets/Segmentation/<split>.txt.
"""

import os
import re
import tarfile
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple, Protocol

from vitx.data.datasets.folders import SUFFIXES

IMAGES, ANNOTATIONS, MASKS = "JPEGImages", "Annotations", "SegmentationClass"
SEGMENTATION, MAIN = "ImageSets/Segmentation", "ImageSets/Main"
ARCHIVE = "VOCtrainval_11-May-2012.tar"
LARGEST_FILE = 2**26  # bytes, of a file in an archive; VOC's are below 1 MB

_PLACES = ("", "VOC2012", "VOCdevkit/VOC2012")
_MEMBER = re.compile(r"(?:\./)?(?:VOCdevkit/)?VOC2012/(.+)")
_SUFFIXES = {IMAGES: SUFFIXES, ANNOTATIONS: (".xml",)}
# Some lists of train_aug name the files: "/JPEGImages/2007_000032.jpg /SegmentationClassAug/...".
_PATHS = re.compile(
    rf"/?{IMAGES}/([^/]+?)(?:{'|'.join(map(re.escape, SUFFIXES))})(?:\s.*)?", re.IGNORECASE
)
# A list of ImageSets/Main that says of each image whether it shows a class.
_WITH_SIGN = re.compile(r"(.+?)\s+(?:-1|0|1)")


class File(NamedTuple):
    """A file: its path in the tree, its size in bytes, and its mtime in ns, 0 in an archive."""

    path: str
    size: int
    modified: int


class Tree(Protocol):
    """A folder, or an archive of one."""

    def files(self, folder: str) -> Iterator[File]:
        """The files in a folder, without hidden ones; none where there is no such folder."""

    def read(self, path: str) -> bytes:
        """A file's content; ValueError naming it where it cannot be read."""

    def where(self, path: str) -> str:
        """Names a file in errors."""


class Folder:
    """A folder as a `Tree`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def files(self, folder: str) -> Iterator[File]:
        """See `Tree`; sizes and times are those of what links point to."""
        if not (self._root / folder).is_dir():
            return
        with os.scandir(self._root / folder) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.is_file():
                    status = entry.stat()
                    yield File(f"{folder}/{entry.name}", status.st_size, status.st_mtime_ns)

    def read(self, path: str) -> bytes:
        """See `Tree`."""
        try:
            return (self._root / path).read_bytes()
        except OSError as error:
            raise ValueError(f"cannot read {self.where(path)}: {error.strerror}") from error

    def where(self, path: str) -> str:
        """See `Tree`."""
        return str(self._root / path)


class Archive:
    """VOC's own tar as a `Tree`, read where it is; nothing is extracted.

    Raises ValueError where it is damaged, or holds what leads out of it, links or huge files.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._members: dict[str, tuple[int, int]] = {}  # path below VOC2012: offset and size
        try:
            with path.open("rb") as file:
                for name, member in self._listed(file):
                    self._members[name] = member.offset_data, member.size
        except OSError as error:
            raise ValueError(f"cannot read {path}: {error.strerror}") from error

    def _listed(self, file: BinaryIO) -> Iterator[tuple[str, tarfile.TarInfo]]:
        path, last, names = self._path, None, set()
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for last in tar:
                    refuse_climbing(last.name, path)
                    match = _MEMBER.fullmatch(last.name)
                    if match is None or last.isdir():
                        continue
                    if not last.isreg() or last.issparse() or last.size > LARGEST_FILE:
                        raise ValueError(
                            f"{path}: {last.name} is no file, or larger than any of VOC's; get the "
                            "archive anew"
                        )
                    if match[1] in names:
                        raise ValueError(f"{path} holds {last.name} twice; get it anew")
                    names.add(match[1])
                    yield match[1], last
        except tarfile.TarError as error:
            raise ValueError(f"{path} is damaged or no tar file ({error}); get it anew") from error
        if not names or last is None:
            raise ValueError(f"{path} holds no VOCdevkit/VOC2012; get it anew")
        # At a damaged or missing header tarfile just ends; a whole archive ends with zeros.
        file.seek(last.offset_data + -(-last.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError(f"{path} is cut short or damaged after {last.name}; get it anew")

    def files(self, folder: str) -> Iterator[File]:
        """See `Tree`."""
        for name, (_, size) in self._members.items():
            path = PurePosixPath(name)
            if str(path.parent) == folder and not path.name.startswith("."):
                yield File(name, size, 0)

    def read(self, path: str) -> bytes:
        """See `Tree`."""
        offset, size = self._members[path]
        try:
            with self._path.open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise ValueError(f"cannot read {self.where(path)}: {error.strerror}") from error

    def where(self, path: str) -> str:
        """See `Tree`."""
        return f"{self._path}: {path}"


def refuse_climbing(name: str, path: Path) -> None:
    """Raises ValueError where the name of a member of the archive `path` leads out of it."""
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise ValueError(f"{path} holds {name!r}, which leads out of it; get it anew")


class Item(NamedTuple):
    """An image's files, those of the annotation and the mask where there are any."""

    id: str
    image: File
    annotation: File | None
    mask: File | None


class Layout:
    """The images of a tree and what belongs to them.

    `folders` have masks; where several have one of an image, the first's counts. `images` and `masks` have the files by
    their names without suffix, `composed`. Raises ValueError where two files of a folder have the same name.
    """

    def __init__(self, tree: Tree, folders: Sequence[str] = (MASKS,)) -> None:
        self.tree = tree
        self.images = by_stem(tree, IMAGES)
        self._annotations = by_stem(tree, ANNOTATIONS)
        self.masks: dict[str, File] = {}
        for folder in folders:
            self.masks = {**by_stem(tree, folder), **self.masks}

    def item(self, identifier: str) -> Item:
        """The files of an image that `images` has, its id in either form of Unicode."""
        name = composed(identifier)
        return Item(
            identifier, self.images[name], self._annotations.get(name), self.masks.get(name)
        )

    def lists(self, folder: str) -> dict[str, File]:
        """The lists of ids in a folder of ImageSets, by the names of their splits, `composed`."""
        return by_stem(self.tree, folder)

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
        others = (PurePosixPath(file.path) for file in self.tree.files(IMAGES))
        other = next((path for path in others if composed(path.stem) == identifier), None)
        if other is not None:
            return f"{other} is not read, because of its suffix; wanted one of {' '.join(SUFFIXES)}"
        return f"{IMAGES} has no image {identifier!r}; wanted an image's name without suffix, one a line"


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC), in which names are compared: systems and editors differ in the form."""
    return unicodedata.normalize("NFC", name)


def by_stem(tree: Tree, folder: str) -> dict[str, File]:
    """A folder's files by their names without suffix, `composed`, sorted; those of other formats are left out.

    Raises ValueError, naming both, where two have the same name.
    """
    suffixes = _SUFFIXES.get(folder, (".txt",) if folder.startswith("ImageSets") else (".png",))
    found: dict[str, File] = {}
    for file in sorted(tree.files(folder)):
        name = PurePosixPath(file.path).name
        stem, suffix = os.path.splitext(composed(name))
        if suffix.lower() in suffixes:
            if stem in found:
                kind = "images" if folder == IMAGES else "files"
                other = PurePosixPath(found[stem].path).name
                note = ""
                if os.path.splitext(name)[0] != os.path.splitext(other)[0]:  # they look the same
                    note = f" ({other!a} and {name!a} differ in Unicode's form alone)"
                raise ValueError(
                    f"two {kind} are named {stem!r}: {tree.where(found[stem].path)} and "
                    f"{tree.where(file.path)}{note}; rename one"
                )
            found[stem] = file
    return found


def places_of(data_dir: Path) -> tuple[Path, Path]:
    """Where data lie: the folder itself, and TFDS's for what is fetched by hand."""
    return data_dir, data_dir / "downloads" / "manual"


def find_voc(data_dir: Path) -> Path | None:
    """The folder in `data_dir` or its downloads/manual that has JPEGImages, or else VOC's tar."""
    folders = [place / name for place in places_of(data_dir) for name in _PLACES]
    archives = [place / ARCHIVE for place in places_of(data_dir)]
    found = [folder for folder in folders if (folder / IMAGES).is_dir()]
    found += [archive for archive in archives if archive.is_file()]
    return found[0] if found else None


def open_tree(path: Path) -> Tree:
    """What `find_voc` found."""
    return Archive(path) if path.is_file() else Folder(path)
