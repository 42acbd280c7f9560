"""PASCAL VOC's annotations: lists of classes, XML files of objects, and label masks."""

import dataclasses
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np

from vitx.data.palette import decode_mask
from vitx.data.pictures import open_picture, stored_size, upright_size
from vitx.data.transforms import IGNORED

BACKGROUND = "background"
VOC_CLASSES = (
    BACKGROUND, "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip

_OPTION = "--config.data.classes=FILE"


@dataclasses.dataclass(frozen=True)
class ClassList:
    """Names of classes, the first "background"; `origin` says in errors where they are from."""

    names: tuple[str, ...]
    origin: str

    def label(self, name: str, where: str) -> int:
        """The number of a class, from 0 for the first after "background"; ValueError for others."""
        if name == BACKGROUND or name not in self.names:
            raise ValueError(
                f"{where}: an object is named {name!r}, which is no class of {self.origin}; mend "
                "the name, or add it to the classes"
            )
        return self.names.index(name) - 1


PASCAL = ClassList(VOC_CLASSES, f"PASCAL VOC (your own: {_OPTION})")


def read_classes(path: Path) -> ClassList:
    """The classes in a UTF-8 text file, one a line, "background" first; blank lines may end it.

    Raises ValueError, naming file and line, for other files, blank lines and names that come twice,
    and for more than 255 lines, since masks have 8 bits and 255 is ignored.
    """
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot read the classes in {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"the classes in {path} are not UTF-8 text: {error}") from error
    names = [line.strip() for line in text.rstrip().split("\n")]
    if names[0] != BACKGROUND:
        raise ValueError(
            f"{path}, line 1: found {names[0]!r}, wanted {BACKGROUND!r}, then the classes, one a line"
        )
    for line, name in enumerate(names, 1):
        if not name:
            raise ValueError(f"{path}, line {line} is blank; remove it, or name a class")
        if name in names[: line - 1]:
            raise ValueError(f"{path}, line {line}: {name!r} again; name each class once")
    if not 2 <= len(names) <= IGNORED:
        raise ValueError(
            f"{path} has {len(names) - 1} classes beside {BACKGROUND!r}, wanted 1 to {IGNORED - 1}"
        )
    return ClassList(tuple(names), str(path))


class _WithoutDoctype(ET.TreeBuilder):
    """Annotations declare no document type, and so no entities, which may expand without end."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        del name, pubid, system
        raise ValueError("it declares a document type, which no annotation needs")


def labels_in_xml(data: bytes, known: ClassList, where: str) -> list[int]:
    """The classes of an annotation's objects, sorted, each once.

    All objects count, also those that are marked as difficult or truncated, as in the published
    lists of image-level labels; the parts of an object do not. Raises ValueError, beginning with
    `where`, for an unknown name and for what is no annotation.
    """
    try:
        root = ET.fromstring(data, ET.XMLParser(target=_WithoutDoctype()))
        if root.tag != "annotation":
            raise ValueError(f"it holds <{root.tag}>")
        names = [(found.findtext("name") or "").strip() for found in root.findall("object")]
        if not all(names):
            raise ValueError("an <object> has no <name>")
    except (ET.ParseError, ValueError, LookupError) as error:  # LookupError: unknown encodings
        raise ValueError(
            f"{where} is no annotation: {error}; wanted <annotation> with <object><name>"
        ) from error
    return sorted({known.label(name, where) for name in names})


def read_mask(
    data: bytes, where: str, classes: int, size: tuple[int, int] | None = None
) -> np.ndarray:
    """The labels (H, W) uint8 of a PNG, as `palette.decode_mask`, checked by `check_mask`."""
    mask = decode_mask(data, where)
    check_mask(mask, where, classes, size)
    return mask


def check_mask(
    mask: np.ndarray, where: str, classes: int, size: tuple[int, int] | None = None
) -> None:
    """Raises ValueError where a mask (H, W) has labels of none of `classes`, or is not of `size`.

    `classes` counts the background, 255 is ignored, and `size` is the image's (H, W).
    """
    if size is not None and mask.shape != size:
        (height, width), (rows, columns) = mask.shape, size
        raise ValueError(
            f"the mask {where} is {width} pixels wide and {height} high, but its image "
            f"{columns} and {rows}"
        )
    strange = (mask >= classes) & (mask != IGNORED)
    if strange.any():
        raise ValueError(
            f"the mask {where} has the label {mask[strange][0]}, wanted 0 to {classes - 1} for the "
            f"{classes} classes, or {IGNORED}, ignored"
        )


def labels_in_mask(mask: np.ndarray) -> list[int]:
    """The classes in a mask, sorted, from 0 for the first after the background."""
    return [int(label) - 1 for label in np.unique(mask) if label not in (0, IGNORED)]


def image_size(data: bytes, where: str, *, upright: bool = False) -> tuple[int, int]:
    """Height and width that the header of an image file says, or `upright` after it is turned as its EXIF says.

    Raises ValueError where it cannot be read.
    """
    try:
        with open_picture(data) as image:
            return upright_size(image, data) if upright else stored_size(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"cannot read the image {where}: {error}") from error
