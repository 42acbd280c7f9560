"""Where a run's files lie: in folders of this machine, or in a bucket of Google Cloud Storage.

A path in a bucket is an `etils.epath.Path`, which has the methods of `pathlib.Path` that are used here. In a bucket an
object is written whole or not at all, none is appended to, and there are no folders but those that names spell. What
differs for these reasons is here; the lock, which differs too, is in `vitx.runtime.locks`.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

_BUCKETS: Final = "gs://"


def as_path(name: str | os.PathLike[str]) -> Path:
    """The path that a text names: a `pathlib.Path`, or an `epath.Path` for "gs://bucket/name".

    Raises:
        ImportError: What reads and writes buckets is not installed.
        ValueError: It names another kind of storage.
    """
    text = os.fspath(name)
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text)
    if not scheme:
        return Path(name)
    if scheme[0] != _BUCKETS or not text.removeprefix(_BUCKETS).strip("/"):
        raise ValueError(f"{text}: give a local folder or {_BUCKETS}BUCKET/FOLDER")
    _file_system()
    from etils import epath

    return cast(Path, epath.Path(text))


def is_remote(path: Path) -> bool:
    """Whether a path is in a bucket."""
    return os.fspath(path).startswith(_BUCKETS)


def absolute(path: Path) -> Path:
    """The path from the root on; epath would put the working directory before a bucket."""
    return path if is_remote(path) else path.absolute()


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, where there are folders."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)


def put(path: Path, data: bytes, *, new: bool = False) -> None:
    """Writes an object of a bucket in one request: it is whole or absent.

    Args:
        path: Its path.
        data: Its contents.
        new: Whether to write it only where there is none, which the bucket decides.

    Raises:
        FileExistsError: There is one already, and it had to be new.
        OSError: It cannot be written.
    """
    with _as_os_errors():
        try:
            _file_system().pipe_file(os.fspath(path), data, mode="create" if new else "overwrite")
        except FileNotFoundError:
            raise OSError("there is no such bucket") from None


def get(path: Path) -> bytes:
    """An object's contents in one request: those of one write, whoever writes meanwhile.

    Raises:
        FileNotFoundError: There is none.
        OSError: It cannot be read.
    """
    with _as_os_errors():
        return _file_system().cat_file(os.fspath(path))


@contextlib.contextmanager
def local_folder(folder: Path) -> Iterator[Path]:
    """A folder for a library that writes local files: itself, or a temporary one that is copied to it in the end."""
    if not is_remote(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)
        for file in sorted(Path(scratch).iterdir()):
            put(folder / file.name, file.read_bytes())


def _file_system() -> Any:
    """The client of Google Cloud Storage, the same one that epath uses."""
    try:
        import fsspec

        # Listings are kept for minutes, and others write too: Orbax's own client, other processes.
        fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
        return fsspec.filesystem("gcs", finalize_on_close=True)
    except ImportError:
        raise ImportError(
            f"{_BUCKETS} needs gcsfs, which is not installed: install vitx[gcs]"
        ) from None


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    """Gives errors of credentials, permissions and the network, each library's own, one type."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(str(error) or type(error).__name__) from error
