"""Names of classes: ImageNet's, and those in a file; `vitx.naming` finds a class by its name."""

import functools
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from vitx.naming import composed as composed
from vitx.naming import find_classes as find_classes

IMAGENET_CLASSES = 1000
BACKGROUND = "background"
MOST_CLASSES = 254  # besides the background: masks have 8 bits, and 255 is ignored


@functools.cache
def imagenet_names() -> tuple[str, ...]:
    """The 1000 classes of ILSVRC 2012 in the order of their WordNet ids, as in models' outputs.

    Each is the first lemma of its synset in WordNet 3.0 (Princeton University); where two share it,
    another lemma or a word in brackets distinguishes them. No name has a comma.
    """
    text = resources.files("vitx.data").joinpath("imagenet_classes.txt").read_text("utf-8")
    return tuple(text.splitlines())


def output_names(count: int, trained: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of a model's `count` outputs: those of the classes it was trained on, or "class 0" and so on."""
    if len(trained) == count:
        return tuple(trained)
    return tuple(f"class {number}" for number in range(count))


def read_names(path: str | os.PathLike[str], count: int) -> tuple[str, ...]:
    """The names in a UTF-8 text file, one a line; blank lines at its end do not count.

    Raises:
        ValueError: it cannot be read, a line is blank, or there are not `count` names.
    """
    names = _lines(path)
    if len(names) != count:
        raise ValueError(f"{path} has {len(names)} class names, but the model {count} outputs")
    if not all(names):
        raise ValueError(f"{path}: line {names.index('') + 1} is blank, where a name is expected")
    return tuple(names)


def read_classes(path: Path) -> tuple[str, ...]:
    """The classes of masks in a UTF-8 text file, one a line, "background" first; blank lines may end it.

    Raises:
        ValueError: it cannot be read, a line is blank, a name comes twice, or there are more than 254 besides
            "background"; the message names file and line.
    """
    names = _lines(path)
    if names[0] != BACKGROUND:
        raise ValueError(
            f"{path}, line 1: found {names[0]!r}, wanted {BACKGROUND!r}, then the classes, one a line"
        )
    seen = set()
    for line, name in enumerate(names, 1):
        if not name:
            raise ValueError(f"{path}, line {line} is blank; remove it, or name a class")
        if composed(name) in seen:
            raise ValueError(f"{path}, line {line}: {name!r} again; name each class once")
        seen.add(composed(name))
    if not 1 <= len(names) - 1 <= MOST_CLASSES:
        raise ValueError(
            f"{path} has {len(names) - 1} classes beside {BACKGROUND!r}, wanted 1 to {MOST_CLASSES}"
        )
    return tuple(names)


def _lines(path: str | os.PathLike[str]) -> list[str]:
    try:
        text = Path(path).read_text("utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot read the class names in {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"the class names in {path} are not UTF-8 text: {error}") from error
    return [line.strip() for line in text.rstrip().split("\n")]
