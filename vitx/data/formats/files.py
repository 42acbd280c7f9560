"""The files of a folder, or of a tar that is read in place."""

import os
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".jp2", ".png", ".gif", ".webp", ".avif", ".bmp", ".tif", ".tiff",
    ".ppm", ".pgm",
)  # fmt: skip
LARGEST_FILE = 2**26  # bytes of a file in an archive; those of published datasets have far fewer


class File(NamedTuple):
    """A file: its path below a folder, its size in bytes, and its mtime in ns, 0 in an archive."""

    path: str
    size: int
    modified: int


def folder_files(root: Path, below: str) -> list[File]:
    """The files in `root`/`below`, without hidden ones; links count as what they point to."""
    with os.scandir(root / below) as entries:
        return [
            File(os.path.join(below, entry.name), entry.stat().st_size, entry.stat().st_mtime_ns)
            for entry in entries
            if not entry.name.startswith(".") and entry.is_file()
        ]


def tar_files(path: Path, key: Callable[[str], str | None]) -> dict[str, tuple[int, int]]:
    """Offset and size of the files in an uncompressed tar by `key` of their names, without those of key None.

    Raises ValueError where the tar is damaged or cut short, or holds a name that leads out of it, such a file twice,
    too large a one, or a link in its place.
    """
    found: dict[str, tuple[int, int]] = {}
    last = None
    try:
        with path.open("rb") as file:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for last in tar:
                    refuse_climbing(last.name, path)
                    name = None if last.isdir() else key(last.name.removeprefix("./"))
                    if name is None:
                        continue
                    check_member(last, path)
                    if name in found:
                        raise ValueError(f"{path} holds {last.name} twice; get it again")
                    found[name] = last.offset_data, last.size
            # At a damaged or missing header tarfile just ends; a whole archive ends with zeros.
            if last is not None:
                blocks = -(-last.size // tarfile.BLOCKSIZE)
                file.seek(last.offset_data + blocks * tarfile.BLOCKSIZE)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise ValueError(
                        f"{path} is cut short or damaged after {last.name}; get it again"
                    )
    except tarfile.TarError as error:
        raise ValueError(f"{path} is damaged or no tar file ({error}); get it again") from error
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    return found


def refuse_climbing(name: str, path: Path) -> None:
    """Raises ValueError where the name of a member of the archive `path` leads out of it."""
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise ValueError(f"{path} holds {name!r}, which leads out of it; get it again")


def check_member(member: tarfile.TarInfo, path: Path) -> None:
    """Raises ValueError where a member of the archive `path` is no regular file, or a huge one."""
    if not member.isreg() or member.issparse() or member.size > LARGEST_FILE:
        raise ValueError(
            f"{path}: {member.name} is no file, or larger than any published; get the archive again"
        )


def read_file(path: Path, origin: str, start: int = 0, size: int | None = None) -> bytes:
    """`size` bytes of a file from `start`, by default all; ValueError naming `origin` where they cannot be read."""
    try:
        if size is None:
            return path.read_bytes()
        with path.open("rb") as file:
            file.seek(start)
            return file.read(size)
    except OSError as error:
        raise ValueError(f"cannot read {origin}: {error.strerror}") from error
