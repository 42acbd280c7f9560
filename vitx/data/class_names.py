"""Names of classes: ImageNet's, those in a file, and finding a class by its name."""

import difflib
import functools
import os
import unicodedata
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

IMAGENET_CLASSES = 1000
BACKGROUND = "background"
MOST_CLASSES = 254  # besides the background: masks have 8 bits, and 255 is ignored


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC), in which names are compared: systems and editors differ in the form."""
    return unicodedata.normalize("NFC", name)


@functools.cache
def imagenet_names() -> tuple[str, ...]:
    """The 1000 classes of ILSVRC 2012 in the order of their WordNet ids, as in models' outputs.

    Each is the first lemma of its synset in WordNet 3.0 (Princeton University); where two share it,
    another lemma or a word in brackets distinguishes them. No name has a comma.
    """
    text = resources.files("vitx.data").joinpath("imagenet_classes.txt").read_text("utf-8")
    return tuple(text.splitlines())


def output_names(count: int, trained: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of a model's `count` outputs: the classes it was trained on, or ImageNet's, or "class 0" and so on."""
    if len(trained) == count:
        return tuple(trained)
    if count == IMAGENET_CLASSES:
        return imagenet_names()
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


def find_classes(wanted: str | Sequence[str | int], names: Sequence[str]) -> tuple[int, ...]:
    """The classes that a user asked for, each once, in the order given.

    Args:
        wanted: comma-separated numbers (from 0) and names, whose case and Unicode form do not matter; one name that
            has commas itself; or a sequence of such entries.
        names: of all classes.

    Raises:
        ValueError: for a number out of range, or a name that no class has, or several.
    """
    folded = [_folded(name) for name in names]
    if isinstance(wanted, str):
        wanted = [wanted] if _folded(wanted.strip()) in folded else wanted.split(",")
    return tuple(dict.fromkeys(_find(str(entry).strip(), names, folded) for entry in wanted))


def _folded(name: str) -> str:
    return composed(composed(name).casefold())


def _find(entry: str, names: Sequence[str], folded: Sequence[str]) -> int:
    if entry.lstrip("-").isdecimal():
        if not 0 <= int(entry) < len(names):
            raise ValueError(f"class {entry} is not one of the model's, 0 to {len(names) - 1}")
        return int(entry)
    found = [index for index, name in enumerate(folded) if name == _folded(entry)]
    if len(found) > 1:
        numbers = ", ".join(map(str, found))
        raise ValueError(f"several classes are named {entry!r}: give a number of {numbers}")
    if not found:
        near = difflib.get_close_matches(_folded(entry), folded, n=3, cutoff=0.5)
        nearest = ", ".join(names[folded.index(name)] for name in near)
        raise ValueError(f"no class is named {entry!r}; nearest: {nearest or 'none'}")
    return found[0]
