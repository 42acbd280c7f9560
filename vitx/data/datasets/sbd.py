"""The masks of the Semantic Boundaries Dataset, for the images of VOC that VOC has no mask of.

Hariharan et al., "Semantic Contours from Inverse Detectors", ICCV 2011.

As published they are MATLAB 5 files, cls/<id>.mat, with the mask in GTcls.Segmentation; widely used
too are PNGs of them, SegmentationClassAug/<id>.png.
"""

import dataclasses
import gzip
import io
import re
import struct
import tarfile
import zlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from PIL import Image

from vitx.data.datasets.voc_layout import LARGEST_FILE, Folder, by_stem, composed, refuse_climbing
from vitx.data.palette import decode_mask

PNGS = "SegmentationClassAug"
ARCHIVE = "benchmark.tgz"
_RELEASES = (
    "benchmark_RELEASE/dataset", "benchmark_RELEASE", "benchmark/benchmark_RELEASE/dataset",
    "SBD/benchmark_RELEASE/dataset", "SBD/dataset", "SBD", "sbd/benchmark_RELEASE/dataset",
    "sbd/dataset", "sbd",
)  # fmt: skip
_LISTS = ("train.txt", "val.txt")
_MEMBER = re.compile(
    r"(?:\./)?benchmark_RELEASE/dataset/(?:cls/([^/]+\.mat)|(train\.txt|val\.txt))"
)

_EXPANSION = (
    20  # times its size that the archive may inflate to; what SBD holds is compressed already
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
                "missing anew"
            )
        if isinstance(file, bytes):
            return decode_mask(file, f"of {identifier} in {self.origin}")
        try:
            data = file.read_bytes()
        except OSError as error:
            raise ValueError(f"cannot read {file}: {error.strerror}") from error
        return (decode_mask if file.suffix.lower() == ".png" else segmentation)(data, str(file))


def find(places: Iterable[Path]) -> Path | None:
    """Where in these folders SBD's masks are: PNGs, SBD's own folder, or its archive."""
    places = list(places)
    candidates = [place / PNGS for place in places]
    candidates += [place / name for place in places for name in _RELEASES]
    for folder in candidates:
        if (folder.name == PNGS and folder.is_dir()) or (folder / "cls").is_dir():
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
        found = by_stem(Folder(path.parent), PNGS)
        pngs: dict[str, Path | bytes] = {
            stem: path.parent / file.path for stem, file in found.items()
        }
        return Masks(str(path), pngs.keys(), pngs)
    folder = path / "cls"
    files: dict[str, Path | bytes] = {
        composed(file.stem): file for file in sorted(folder.iterdir()) if file.suffix == ".mat"
    }
    lists = []
    for name in _LISTS:
        try:
            lists.append((path / name).read_bytes())
        except OSError as error:
            raise ValueError(
                f"cannot read {path / name} ({error.strerror}), which {ARCHIVE} has beside cls"
            ) from error
    return Masks(str(folder), _listed(lists, path), files)


def _listed(lists: Iterable[bytes], path: Path) -> list[str]:
    try:
        return [composed(line) for data in lists for line in data.decode().split()]
    except UnicodeDecodeError as error:
        raise ValueError(f"the lists of {path} are not UTF-8 text: {error}") from error


def _from_archive(path: Path, known: Collection[str]) -> Masks:
    masks: dict[str, Path | bytes] = {}
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
                if match is None or (match[1] and match[1].startswith(".")):  # macOS leaves such
                    continue
                where = f"{path}: {member.name}"
                data = _content(tar, member, where)
                if match[2]:
                    lists[match[2]] = data
                elif (stem := composed(PurePosixPath(match[1]).stem)) not in known:
                    masks[stem] = _png(segmentation(data, where))
            while stream.read(2**20):  # to its end, where gzip compares a checksum
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{path} is damaged or no archive of SBD ({error}); get it anew"
        ) from error
    if missing := [name for name in _LISTS if name not in lists]:
        raise ValueError(f"{path} has no benchmark_RELEASE/dataset/{missing[0]}; get it anew")
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
                f"{self._path} expands to more than {_EXPANSION} times its size; get it anew"
            )
        return data


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> bytes:
    file = tar.extractfile(member) if member.isreg() and member.size <= LARGEST_FILE else None
    if file is None:
        raise ValueError(f"{where} is no file, or larger than any of SBD's; get the archive anew")
    return file.read()


def _png(mask: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, format="PNG")
    return file.getvalue()


def segmentation(data: bytes, where: str) -> np.ndarray:
    """GTcls.Segmentation, uint8 (H, W), of a MATLAB 5 file; ValueError, naming `where`, for others.

    Only that array is read, since scipy.io.loadmat crashes on some damaged files.
    MathWorks, "MAT-File Format", Level 5.
    """
    try:
        return _segmentation(data)
    except (ValueError, IndexError, struct.error, zlib.error) as error:
        raise ValueError(
            f"{where} is damaged or no MATLAB 5 file with GTcls.Segmentation ({error}); get it anew"
        ) from error


def _segmentation(data: bytes) -> np.ndarray:
    if data[124:128] != b"\0\1IM":  # version, and that the numbers begin with their lowest byte
        raise ValueError("it does not begin as one")
    reader = _Elements(data[128:])
    while reader.left():
        kind, content = reader.next()
        if kind == _COMPRESSED:
            inflater = zlib.decompressobj()
            content = inflater.decompress(content, _LARGEST_MASK)
            if not inflater.eof:
                raise ValueError("what it inflates to is too large, or cut short")
            kind, content = _Elements(content).next()
        matrix = _Matrix(kind, content)
        if matrix.name == b"GTcls":
            return matrix.field(b"Segmentation").labels()
    raise ValueError("it has no GTcls")


class _Elements:
    """Goes through the data elements that bytes hold one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    def left(self) -> bool:
        return self._place < len(self._data)

    def next(self) -> tuple[int, bytes]:
        """The next one's type and content."""
        kind, size = struct.unpack_from("<II", self._data, self._place)
        start = self._place + 8
        self._place = start + (size if kind == _COMPRESSED else -(-size // 8) * 8)
        if kind >> 16:  # a small one: its size, its type and up to four bytes, in eight
            kind, size, start = kind & 0xFFFF, kind >> 16, start - 4
            self._place = start + 4
            if size > 4:
                raise ValueError("an element is damaged")
        if start + size > len(self._data):
            raise ValueError("it is cut short")
        return kind, self._data[start : start + size]


class _Matrix:
    """An array: its class, shape and name, and what follows them."""

    def __init__(self, kind: int, data: bytes) -> None:
        if kind != _MATRIX:
            raise ValueError(f"an element is of type {kind}, wanted an array, {_MATRIX}")
        self._rest = _Elements(data)
        self._class = _integers(self._rest.next()[1])[0] & 0xFF
        self._shape = _integers(self._rest.next()[1])
        self.name = self._rest.next()[1]

    def field(self, name: bytes) -> "_Matrix":
        """A field of a structure of one."""
        if self._class != _STRUCT_CLASS or self._shape != (1, 1):
            raise ValueError(f"GTcls is of class {self._class} and shape {self._shape}")
        length = _integers(self._rest.next()[1])[0]
        names = self._rest.next()[1]
        if not 1 <= length <= _LONGEST_NAME or len(names) > _LONGEST_NAME * _MOST_FIELDS:
            raise ValueError("the names of GTcls's fields are damaged")
        fields = [names[i : i + length].rstrip(b"\0") for i in range(0, len(names), length)]
        for field in fields:
            kind, content = self._rest.next()
            if field == name:
                return _Matrix(kind, content)
        raise ValueError(f"GTcls has no {name.decode()}")

    def labels(self) -> np.ndarray:
        """Its numbers, stored column by column, where they are uint8 (H, W)."""
        kind, content = self._rest.next()
        shape = self._shape
        if self._class != _UINT8_CLASS or kind != _UINT8 or len(shape) != 2 or min(shape) < 1:
            raise ValueError(f"Segmentation is of class {self._class} and shape {shape}, not uint8")
        return np.ascontiguousarray(np.frombuffer(content, np.uint8).reshape(shape, order="F"))


def _integers(data: bytes) -> tuple[int, ...]:
    if len(data) > 4 * _MOST_AXES:
        raise ValueError("its shape is damaged")
    return struct.unpack(f"<{len(data) // 4}i", data)
