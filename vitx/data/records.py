"""Records: the examples of a split as they are stored, encoded."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol


@dataclasses.dataclass(frozen=True)
class Record:
    """An example as stored.

    Attributes:
      id: unique in the split, the name of what is made from it.
      origin: names it in errors.
      image: the bytes of an image file.
      mask: those of a PNG of class indices, None where there is no mask.
      labels: the classes shown, from 0 for the first after "background".
      mask_origin: names the mask in errors; "" where `origin` does.
      upright: whether the image is turned as its EXIF says. Your own photographs are; published data sets are read as
        they are stored, as by the code that their figures come from.
    """

    id: str
    origin: str
    image: bytes
    mask: bytes | None
    labels: Sequence[int]
    mask_origin: str = ""
    upright: bool = False


class Records(Protocol):
    """A split as stored; pickled on the way to loader processes.

    Attributes:
      name: of the dataset.
      split: as asked for.
      classes: names, the first is "background".
      content: what the content follows from, beside name, split and length; without masks that tell no labels.
      mask_content: what those masks follow from, "" where `content` says all.
      one_class: whether every image is known to show exactly one class.
      has_masks: whether every example has a mask.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    content: str
    mask_content: str
    one_class: bool
    has_masks: bool

    def __len__(self) -> int:
        """How many examples there are."""

    def read(self, index: int) -> Record:
        """The example at `index`, from 0; ValueError where it cannot be read."""

    def identifier(self, index: int) -> str:
        """Its id alone; decodes no image."""

    def labels(self, index: int) -> Sequence[int]:
        """Its labels alone; decodes no image."""

    def masked(self, index: int) -> bool:
        """Whether it has a mask; reads nothing."""
