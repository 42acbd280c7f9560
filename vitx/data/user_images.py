"""A user's own image files: finding them, reading them, and the names of their results."""

import functools
import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, UnidentifiedImageError

from vitx.data.transforms import read_image
from vitx.images.pictures import formats
from vitx.runtime.files import first_line, safe_name

RESULT: Final = ".explained"  # before the suffix of every result, which is no image to explain
_LONGEST: Final = 120  # characters of an image's name in the names of its results
_UNDECODED: Final = ("BUFR", "GRIB", "HDF5", "WMF")  # Pillow recognises these formats only


def find_images(wanted: str | Sequence[str]) -> list[Path]:
    """The image files that a user names, each once, in order; folders with all below them, sorted.

    In folders, files count that have a suffix of a format that Pillow decodes, except hidden files and results.

    Args:
        wanted: comma-separated files and folders; one path that contains commas; or a sequence of paths.

    Raises:
        ValueError: nothing is named, or the folders hold no image.
    """
    if isinstance(wanted, str):
        whole = os.path.expanduser(wanted.strip())
        wanted = [whole] if os.path.exists(whole) else wanted.split(",")
    named = [Path(os.path.expanduser(entry.strip())) for entry in wanted if entry.strip()]
    if not named:
        raise ValueError(
            "config.images names nothing: give files and folders, as in --config.images=a.jpg,photos/"
        )
    found: dict[Path, Path] = {}
    for entry in named:
        for path in _images_in(entry) if entry.is_dir() else [entry]:
            found.setdefault(_identity(path), path)
    if not found:
        folders = ", ".join(map(printable, named))
        raise ValueError(f"config.images: there is no image in {folders}")
    return list(found.values())


def read_user_image(path: Path) -> np.ndarray:
    """The image in a user's file as uint8 (H, W, 3), turned upright; of an animation the first frame.

    Raises:
        ValueError: it cannot be read or decoded; the message names the file.
    """
    return decode(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """The content of a user's file; ValueError that names the file where it cannot be read."""
    if not path.is_file():  # missing, or a pipe that would never end
        raise ValueError(f"there is no file {printable(path)}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {printable(path)}: {error.strerror}") from error


def decode(data: bytes, path: Path) -> np.ndarray:
    """`read_user_image` of a file's content."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an image with damaged metadata is an image
            return read_image(data)
    except Exception as error:  # Pillow's plugins raise errors of any type for damaged files
        cause = error.__cause__ or error  # Pillow's own error does not repeat the file's name
        if not data:
            reason = "it is empty"
        elif isinstance(cause, UnidentifiedImageError):
            reason = "no picture of a kind that Pillow knows"
        else:
            reason = printable(first_line(cause))  # type: ignore[arg-type]
        raise ValueError(f"cannot read {printable(path)}: {reason}") from error


def result_name(path: Path) -> str:
    """The name of an image's results without suffix, unique to the file and the same for all ways to name it."""
    place = hashlib.sha256(os.fsencode(_identity(path))).hexdigest()[:12]
    stem = printable(path.stem)
    while len(safe_name(stem)) > _LONGEST:
        stem = stem[:-1]
    return f"{safe_name(stem)}-{place}{RESULT}"


def printable(text: str | os.PathLike[str]) -> str:
    """A path or message with "?" for characters that would garble a terminal or a picture."""
    return "".join(letter if letter.isprintable() else "?" for letter in os.fspath(text))


def _identity(path: Path) -> Path:
    # A link is a file of its own, but a folder may be reached in several ways.
    return path.parent.resolve() / path.name


def _images_in(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(place, name) for name in sorted(names) if not name.startswith(".")):
            if path.suffix.lower() in _suffixes() and not path.stem.endswith(RESULT):
                yield path


@functools.cache
def _suffixes() -> frozenset[str]:
    decoded = {*formats()} - {*_UNDECODED}
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in known.items() if kind in decoded)
