"""Names of classes: ImageNet's, those in a file, and finding a class by its name."""

import difflib
import functools
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

IMAGENET_CLASSES = 1000


@functools.cache
def imagenet_names() -> tuple[str, ...]:
    """The 1000 classes of ILSVRC 2012 in the order of their WordNet ids, which models' outputs have.

    Each is the first lemma of its synset in WordNet 3.0 (Princeton University); where two share it,
    another lemma or a word in brackets tells them apart. No name has a comma.
    """
    text = resources.files("vitx.data").joinpath("imagenet_classes.txt").read_text("utf-8")
    return tuple(text.splitlines())


def read_names(path: str | os.PathLike[str], count: int) -> tuple[str, ...]:
    """The names in a UTF-8 text file, one a line; blank lines at its end do not count.

    Raises:
        ValueError: it cannot be read, a line is blank, or there are not `count` names.
    """
    try:
        text = Path(path).read_text("utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot read the class names in {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"the class names in {path} are not UTF-8 text: {error}") from error
    names = tuple(line.strip() for line in text.rstrip().split("\n"))
    if len(names) != count:
        raise ValueError(f"{path} has {len(names)} class names, but the model {count} outputs")
    if not all(names):
        raise ValueError(f"{path}: line {names.index('') + 1} is blank, where a name is expected")
    return names


def find_classes(wanted: str | Sequence[str | int], names: Sequence[str]) -> tuple[int, ...]:
    """The classes that a user asked for, each once, in the order given.

    Args:
        wanted: comma-separated numbers (from 0) and names, whose case does not matter; one name that
            has commas itself; or a sequence of such entries.
        names: of all classes.

    Raises:
        ValueError: for a number out of range, or a name that no class has, or several.
    """
    folded = [name.casefold() for name in names]
    if isinstance(wanted, str):
        whole = wanted.strip().casefold()
        wanted = [wanted] if whole in folded else wanted.split(",")
    return tuple(dict.fromkeys(_find(str(entry).strip(), names, folded) for entry in wanted))


def _find(entry: str, names: Sequence[str], folded: Sequence[str]) -> int:
    if entry.lstrip("-").isdecimal():
        if not 0 <= int(entry) < len(names):
            raise ValueError(f"class {entry} is not one of the model's, 0 to {len(names) - 1}")
        return int(entry)
    found = [index for index, name in enumerate(folded) if name == entry.casefold()]
    if len(found) > 1:
        numbers = ", ".join(map(str, found))
        raise ValueError(f"several classes are named {entry!r}: give a number of {numbers}")
    if not found:
        near = difflib.get_close_matches(entry.casefold(), folded, n=3, cutoff=0.5)
        nearest = ", ".join(names[folded.index(name)] for name in near)
        raise ValueError(f"no class is named {entry!r}; nearest: {nearest or 'none'}")
    return found[0]
