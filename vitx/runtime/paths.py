"""Paths of a run's files: folders of this machine, or a bucket of Google Cloud Storage by `etils.epath`.

`epath.Path` has the methods of `pathlib.Path` that are used here. It has no way to write an object in one request, or
only if there is none yet, so `put` asks the bucket's client for both.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

from etils import epath

_BUCKETS: Final = "gs://"


def as_path(name: str | os.PathLike[str]) -> Path:
    """The path that a text names: a `pathlib.Path`, or an `epath.Path` for "gs://bucket/name".

    Raises:
        ImportError: gcsfs, which reads and writes buckets, is not installed.
        ValueError: It names another kind of storage.
    """
    text = os.fspath(name)
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text)
    if not scheme:
        return Path(name)
    if scheme[0] != _BUCKETS or not text.removeprefix(_BUCKETS).strip("/"):
        raise ValueError(f"{text}: give a local folder or {_BUCKETS}BUCKET/FOLDER")
    _bucket_client()
    return cast(Path, epath.Path(text))


def is_remote(path: Path) -> bool:
    """Whether a path is in a bucket."""
    return os.fspath(path).startswith(_BUCKETS)


def put(path: Path, data: bytes, *, new: bool = False) -> None:
    """Writes an object of a bucket in one request: it is whole or absent.

    Args:
        path: Its path.
        data: Its contents.
        new: Whether to write it only if there is none, which the bucket decides.

    Raises:
        FileExistsError: There is one, and it had to be new.
        OSError: It cannot be written.
    """
    with _as_os_errors():
        try:
            _bucket_client().pipe_file(os.fspath(path), data, mode="create" if new else "overwrite")
        except FileNotFoundError:
            raise OSError("there is no such bucket") from None


def get(path: Path) -> bytes:
    """Reads an object of a bucket in one request: its bytes are of one write, whoever writes meanwhile.

    Raises:
        FileNotFoundError: There is none.
        OSError: It cannot be read.
    """
    with _as_os_errors():
        return _bucket_client().cat_file(os.fspath(path))


def _bucket_client() -> Any:
    """The client of Google Cloud Storage that epath uses."""
    try:
        import fsspec

        # The client would keep listings for minutes, but others write too: Orbax's own client, other processes.
        fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
        return fsspec.filesystem("gcs", finalize_on_close=True)
    except ImportError:
        raise ImportError(
            f"{_BUCKETS} needs gcsfs, which is not installed: install vitx[gcs]"
        ) from None


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    """Gives errors of credentials, permissions and the network, which differ by library, one type."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(str(error) or type(error).__name__) from error
