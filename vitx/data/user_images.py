"""Images that a user names: finding them, reading them, and what their results are called."""

import functools
import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from vitx.data.pictures import formats
from vitx.data.transforms import read_image
from vitx.runtime.files import first_line, safe_name

RESULT: Final = ".explained"  # before the suffix of every result: folders' results are no images
_LONGEST: Final = 120  # characters of the image's name in its results' names


@dataclass(frozen=True)
class UserImage:
    """A picture of the user's: its file, and what that holds."""

    path: Path
    data: bytes

    @property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pixels(self) -> np.ndarray:
        """The picture as uint8 (H, W, 3), upright; of an animation the first. Decoded each time.

        Raises:
            ValueError: there is none, or it is damaged; the message names the file.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a picture with some defect is a picture
                return read_image(self.data)
        except Exception as error:  # Pillow's plugins raise whatever a damaged file leads them to
            reason = _reason(self.data, error)
            raise ValueError(f"cannot read {printable(self.path)}: {reason}") from error


def find_images(wanted: str | Sequence[str]) -> list[Path]:
    """The files that a user named, each once, in order; folders with all below them, sorted.

    Of a folder, files count whose suffix is one that Pillow opens, but for hidden ones and results.

    Args:
        wanted: comma-separated files and folders; one path that has commas itself; or a sequence.

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
        for path in _files_in(entry) if entry.is_dir() else [entry]:
            found.setdefault(_identity(path), path)
    if not found:
        folders = ", ".join(map(printable, named))
        raise ValueError(f"config.images: there is no image in {folders}")
    return list(found.values())


def read_user_image(path: Path) -> UserImage:
    """Reads a file, and does not decode it yet.

    Raises:
        ValueError: it cannot be read; the message names it.
    """
    if not path.is_file():  # a missing one, or a pipe that would never end
        raise ValueError(f"there is no file {printable(path)}")
    try:
        return UserImage(path, path.read_bytes())
    except OSError as error:
        raise ValueError(f"cannot read {printable(path)}: {error.strerror}") from error


def _reason(data: bytes, error: Exception) -> str:
    if not data:
        return "it is empty"
    cause = error.__cause__ or error  # Pillow's own words, without the file's name again
    if isinstance(cause, UnidentifiedImageError):
        return "no picture of a kind that Pillow knows"
    return printable(first_line(cause))  # type: ignore[arg-type]


def result_name(path: Path) -> str:
    """What an image's results are called, less the suffix: the same for a file however it was named."""
    place = hashlib.sha256(os.fsencode(_identity(path))).hexdigest()[:12]
    stem = printable(path.stem)
    while len(safe_name(stem)) > _LONGEST:
        stem = stem[:-1]
    return f"{safe_name(stem)}-{place}{RESULT}"


def printable(text: str | os.PathLike[str]) -> str:
    """A path or message without what would garble a terminal or a picture."""
    return "".join(letter if letter.isprintable() else "?" for letter in os.fspath(text))


def _identity(path: Path) -> Path:
    # Links keep their own names, but a folder may be reached in several ways.
    return path.parent.resolve() / path.name


def _files_in(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            ours = path.stem.endswith(RESULT)
            if path.suffix.lower() in _suffixes() and not (ours or name.startswith(".")):
                yield path


@functools.cache
def _suffixes() -> frozenset[str]:
    """Those of formats that Pillow itself decodes: some it only recognises, for others to decode."""
    known = Image.registered_extensions()
    stubs = ImageFile.StubImageFile
    return frozenset(
        suffix
        for suffix, kind in known.items()
        if kind in formats()
        and not (isinstance(opener := Image.OPEN[kind][0], type) and issubclass(opener, stubs))
    )
