"""PASCAL VOC's annotations: the classes, and XML files of the objects in an image."""

import dataclasses
import xml.etree.ElementTree as ET

from vitx.data.class_names import BACKGROUND, composed

VOC_CLASSES = (
    BACKGROUND, "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ClassList:
    """Names of classes, the first "background"; `origin` names their source in errors."""

    names: tuple[str, ...]
    origin: str

    def label(self, name: str, where: str) -> int:
        """The number of a class, from 0 for the first after "background"; ValueError for others."""
        known = list(map(composed, self.names[1:]))
        if composed(name) not in known:
            raise ValueError(
                f"{where}: an object is named {name!r}, which is no class of {self.origin}; correct "
                "the name, or add it to the classes"
            )
        return known.index(composed(name))


PASCAL = ClassList(VOC_CLASSES, "PASCAL VOC (your own: --config.data.classes=FILE)")


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
