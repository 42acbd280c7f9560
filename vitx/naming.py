"""Finds classes by their names."""

import difflib
import unicodedata
from collections.abc import Sequence


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC), in which names are compared: systems and editors differ in the form."""
    return unicodedata.normalize("NFC", name)


def find_classes(wanted: str | Sequence[str | int], names: Sequence[str]) -> tuple[int, ...]:
    """The classes that a user asked for, each once, in the order given.

    Args:
        wanted: comma-separated numbers (from 0) and names, whose case and Unicode form do not matter; one name that
            has commas itself; or a sequence of such entries. Of a class named "tench, Tinca tinca", either is a name.
        names: of all classes.

    Raises:
        ValueError: for a number out of range, or a name that no class has, or several.
    """
    folded = [_folded(name) for name in names]
    if isinstance(wanted, str):
        wanted = [wanted] if _folded(wanted.strip()) in folded else wanted.split(",")
    return tuple(dict.fromkeys(_find(entry, names, folded) for entry in wanted))


def _folded(name: str) -> str:
    return composed(composed(name).casefold())


def _find(wanted: str | int, names: Sequence[str], folded: Sequence[str]) -> int:
    entry = str(wanted).strip()
    if entry.lstrip("-").isdecimal():
        if isinstance(wanted, str) and entry in names and names.index(entry) != int(entry):
            raise ValueError(
                f"{entry!r} is the name of class {names.index(entry)}, and the number of another: give an int"
            )
        if not 0 <= int(entry) < len(names):
            raise ValueError(f"class {entry} is not one of the model's, 0 to {len(names) - 1}")
        return int(entry)
    found = [index for index, name in enumerate(folded) if name == _folded(entry)]
    if not found:
        parts = ([part.strip() for part in name.split(",")] for name in folded)
        found = [index for index, synonyms in enumerate(parts) if _folded(entry) in synonyms]
    if len(found) > 1:
        numbers = ", ".join(map(str, found))
        raise ValueError(f"several classes are named {entry!r}: give a number of {numbers}")
    if not found:
        near = difflib.get_close_matches(_folded(entry), folded, n=3, cutoff=0.5)
        nearest = ", ".join(names[folded.index(name)] for name in near)
        raise ValueError(f"no class is named {entry!r}; nearest: {nearest or 'none'}")
    return found[0]
