"""The masks of the Semantic Boundaries Dataset, for the images of VOC that VOC has no mask of.

Hariharan et al., "Semantic Contours from Inverse Detectors", ICCV 2011.

As published they are MATLAB 5 files, cls/<id>.mat, with the mask in GTcls.Segmentation; widely used
too are PNGs of them, SegmentationClassAug/<id>.png.
"""

import dataclasses
import gzip
import re
import struct
import tarfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from vitx.data.class_names import composed
from vitx.data.formats.files import LARGEST_FILE, check_member, read_file, refuse_climbing
from vitx.data.formats.voc_layout import Tree
from vitx.data.palette import decode_mask, encode_png

PNGS = "SegmentationClassAug"
ARCHIVE = "benchmark.tgz"
_RELEASES = (
    "benchmark_RELEASE/dataset", "benchmark_RELEASE", "benchmark/benchmark_RELEASE/dataset",
    "SBD/benchmark_RELEASE/dataset", "SBD/dataset", "SBD", "sbd/benchmark_RELEASE/dataset",
    "sbd/dataset", "sbd",
)  # fmt: skip
_LISTS = ("train.txt", "val.txt")
_MEMBER = re.compile(
    r"(?:\./)?benchmark_RELEASE/dataset/(?:cls/([^./][^/]*)\.mat|(train\.txt|val\.txt))"
)

_EXPANSION = (
    20  # times its size that the archive may inflate to; SBD's files are compressed themselves
)
_LARGEST_MASK = 2**26  # bytes that a .mat file may inflate to; SBD's have some 200 KB
# MATLAB's own limits are 64 and none; damaged files would have millions.
_LONGEST_NAME, _MOST_FIELDS, _MOST_AXES = 64, 1000, 64
_MATRIX, _COMPRESSED, _UINT8 = 14, 15, 2  # types of elements
_STRUCT_CLASS, _UINT8_CLASS = 2, 9  # classes of arrays


@dataclasses.dataclass(frozen=True)
class Masks:
    """Masks beyond VOC's.

    Attributes:
      origin: names them in errors.
      ids: of the images that belong to them, `composed`.
      files: of each `composed` id the mask's file, a PNG or SBD's own, or the content of a PNG.
    """

    origin: str
    ids: Collection[str]
    files: Mapping[str, Path | bytes]

    def read(self, identifier: str) -> np.ndarray:
        """The labels (H, W) uint8 of an image; ValueError where there are none, or damaged ones."""
        file = self.files.get(composed(identifier))
        if file is None:
            raise ValueError(
                f"there is no mask of {identifier} in {self.origin}, nor among VOC's own; get what is "
                "missing again"
            )
        if isinstance(file, bytes):
            return decode_mask(file, f"of {identifier} in {self.origin}")
        decode = decode_mask if file.suffix.lower() == ".png" else segmentation
        return decode(read_file(file, str(file)), str(file))


def find(places: Collection[Path]) -> Path | None:
    """Where in these folders SBD's masks are: PNGs, SBD's own folder, or its archive."""
    for folder in [place / PNGS for place in places]:
        if folder.is_dir():
            return folder
    for folder in [place / name for place in places for name in _RELEASES]:
        if (folder / "cls").is_dir():
            return folder
    return next((place / ARCHIVE for place in places if (place / ARCHIVE).is_file()), None)


def open_masks(path: Path, known: Collection[str]) -> Masks:
    """The masks in what `find` found.

    Those of an archive are read now, without those of the ids in `known`, which takes minutes, and
    held as PNGs, some 50 MB. Raises ValueError where lists are missing, the archive is damaged, or two PNGs
    have the same name.
    """
    if path.is_file():
        return _from_archive(path, known)
    if path.name == PNGS:
        pngs = Tree(path.parent).by_stem(PNGS, (".png",))
        return Masks(str(path), pngs, {stem: path.parent / pngs[stem].path for stem in pngs})
    tree = Tree(path)
    masks = {stem: path / file.path for stem, file in tree.by_stem("cls", (".mat",)).items()}
    return Masks(str(path / "cls"), _listed(map(tree.read, _LISTS), path), masks)


def _listed(lists: Iterable[bytes], path: Path) -> list[str]:
    try:
        return [composed(line) for data in lists for line in data.decode().split()]
    except UnicodeDecodeError as error:
        raise ValueError(f"the lists of {path} are not UTF-8 text: {error}") from error


def _from_archive(path: Path, known: Collection[str]) -> Masks:
    masks: dict[str, bytes] = {}
    lists: dict[str, bytes] = {}
    try:
        with (
            path.open("rb") as file,
            _Inflated(file, path) as stream,
            tarfile.open(fileobj=stream, mode="r|") as tar,
        ):
            for member in tar:
                refuse_climbing(member.name, path)
                match = _MEMBER.fullmatch(member.name)
                if match is None:
                    continue
                check_member(member, path)
                data = tar.extractfile(member).read()  # type: ignore[union-attr]  # it is a file
                if match[2]:
                    lists[match[2]] = data
                elif composed(match[1]) not in known:
                    mask = segmentation(data, f"{path}: {member.name}")
                    masks[composed(match[1])] = encode_png(mask)
            while stream.read(2**20):  # to its end, where gzip compares a checksum
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{path} is damaged or no archive of SBD ({error}); get it again"
        ) from error
    if missing := [name for name in _LISTS if name not in lists]:
        raise ValueError(f"{path} has no benchmark_RELEASE/dataset/{missing[0]}; get it again")
    return Masks(str(path), _listed(lists.values(), path), masks)


class _Inflated(gzip.GzipFile):
    """A .gz file that raises ValueError where it expands to far more than it should."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(fileobj=file, mode="rb")
        self._file, self._path, self._inflated = file, path, 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self._inflated += len(data)
        if self._inflated > LARGEST_FILE + _EXPANSION * self._file.tell():
            raise ValueError(
                f"{self._path} expands to more than {_EXPANSION} times its size; get it again"
            )
        return data


def segmentation(data: bytes, where: str) -> np.ndarray:
    """GTcls.Segmentation, uint8 (H, W), of a MATLAB 5 file; ValueError, naming `where`, for others.

    Only that array is read: scipy.io.loadmat (1.17) ends the process with a segmentation fault on some damaged files.
    MathWorks, "MAT-File Format", Level 5.
    """
    try:
        if data[124:128] != b"\0\1IM":  # version, and the order of bytes
            raise ValueError("it does not begin as one")
        for kind, content in _elements(data[128:]):
            if kind == _COMPRESSED:
                inflater = zlib.decompressobj()
                content = inflater.decompress(content, _LARGEST_MASK)
                if not inflater.eof:
                    raise ValueError("what it inflates to is too large, or cut short")
                kind, content = next(_elements(content))
            matrix = _matrix(kind, content)
            if matrix.name == b"GTcls":
                return _labels(_matrix(*_field(b"Segmentation", matrix)))
        raise ValueError("it has no GTcls")
    except (ValueError, IndexError, StopIteration, struct.error, zlib.error) as error:
        reason = str(error) or "it is cut short"
        raise ValueError(
            f"{where} is damaged or no MATLAB 5 file with GTcls.Segmentation ({reason}); get it again"
        ) from error


Element = tuple[int, bytes]


class _Matrix(NamedTuple):
    """An array: its name, class and shape, and the elements that follow them."""

    name: bytes
    kind: int
    shape: tuple[int, ...]
    rest: Iterator[Element]


def _elements(data: bytes) -> Iterator[Element]:
    """Type and content of each data element."""
    place = 0
    while place < len(data):
        kind, size = struct.unpack_from("<II", data, place)
        start = place + 8
        place = start + (size if kind == _COMPRESSED else -(-size // 8) * 8)
        if kind >> 16:  # a small one: its size, its type and up to four bytes, in eight
            kind, size, start, place = kind & 0xFFFF, kind >> 16, start - 4, start
            if size > 4:
                raise ValueError("an element is damaged")
        if start + size > len(data):
            raise ValueError("it is cut short")
        yield kind, data[start : start + size]


def _matrix(kind: int, content: bytes) -> _Matrix:
    if kind != _MATRIX:
        raise ValueError(f"an element is of type {kind}, wanted an array, {_MATRIX}")
    rest = _elements(content)
    flags, shape, name = [next(rest)[1] for _ in range(3)]
    if len(shape) > 4 * _MOST_AXES:
        raise ValueError("its shape is damaged")
    return _Matrix(name, flags[0], struct.unpack(f"<{len(shape) // 4}i", shape), rest)


def _field(name: bytes, matrix: _Matrix) -> Element:
    if matrix.kind != _STRUCT_CLASS or matrix.shape != (1, 1):
        raise ValueError(f"GTcls is of class {matrix.kind} and shape {matrix.shape}")
    (length,) = struct.unpack_from("<i", next(matrix.rest)[1])
    names = next(matrix.rest)[1]
    if not 1 <= length <= _LONGEST_NAME or len(names) > _LONGEST_NAME * _MOST_FIELDS:
        raise ValueError("the names of GTcls's fields are damaged")
    fields = [names[i : i + length].rstrip(b"\0") for i in range(0, len(names), length)]
    for field, element in zip(fields, matrix.rest, strict=False):
        if field == name:
            return element
    raise ValueError(f"GTcls has no {name.decode()}")


def _labels(matrix: _Matrix) -> np.ndarray:
    """The numbers of an array, stored column by column, where they are uint8 (H, W)."""
    kind, content = next(matrix.rest)
    shape = matrix.shape
    if matrix.kind != _UINT8_CLASS or kind != _UINT8 or len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"Segmentation is of class {matrix.kind} and shape {shape}, not uint8")
    return np.ascontiguousarray(np.frombuffer(content, np.uint8).reshape(shape, order="F"))
