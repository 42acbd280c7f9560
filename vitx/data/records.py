"""Records: the examples of a split as they are stored, encoded."""

import abc
import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Record:
    """An example as stored.

    Attributes:
      id: unique in the split; outputs of the pipeline are named after it.
      origin: names the example in errors.
      image: the bytes of an image file.
      mask: the bytes of a PNG of class indices, None where there is no mask.
      labels: the classes shown, from 0 for the first after "background".
      mask_origin: names the mask in errors; "" where `origin` does.
      upright: whether the image is turned by its EXIF orientation, as the user's photographs are; published datasets
        are read as they are stored, as by the code of their published figures.
    """

    id: str
    origin: str
    image: bytes
    mask: bytes | None
    labels: Sequence[int]
    mask_origin: str = ""
    upright: bool = False


@dataclasses.dataclass(eq=False)
class Records(abc.ABC):
    """A split as stored, without masks unless a subclass has some; pickled on the way to loader processes.

    Attributes:
      name: of the dataset.
      split: its name.
      classes: names, the first is "background".
      ids: of the examples, in order.
      one_class: whether every image is known to show exactly one class.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    ids: Sequence[str]
    one_class: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    @abc.abstractmethod
    def read(self, index: int) -> Record:
        """The example at `index`, from 0; ValueError where it cannot be read."""

    @abc.abstractmethod
    def content(self, places: Sequence[int]) -> str:
        """A digest of what these examples follow from, except for masks that decide no labels."""

    def mask_content(self, places: Sequence[int]) -> str:
        """A digest of those masks; "" where `content` covers all."""
        return ""

    def labels(self, index: int) -> Sequence[int]:
        """The labels of an example; decodes no image."""
        return self.read(index).labels

    def masked(self, index: int) -> bool:
        """Whether an example has a mask; reads nothing."""
        return False
