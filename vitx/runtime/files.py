"""Files that are whole or absent: atomic writes, and reading without pickle."""

import contextlib
import errno
import io
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import numpy as np
from numpy.typing import ArrayLike

from vitx.runtime import paths

TEMPORARY: Final = (".vitx-", ".tmp")  # beginning and end of the names of half-written files
# A .zip file of data does not hold more bytes than the first and more than the second times its size.
_EXPANDED, _EXPANSION = 2**30, 100
# MemoryError: the header of an array may claim any size.
_NO_NPZ: Final = (ValueError, EOFError, zipfile.BadZipFile, AttributeError, zlib.error, MemoryError)


class WorkdirError(RuntimeError):
    """A problem of the workdir that the user can fix; the message is one line."""


class WriteError(WorkdirError):
    """A file could not be written: the disk is full, read-only or not permitted."""


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def write_error(path: Path, error: Exception) -> WriteError:
    """The error for a file that could not be written, in one line: why, and what to do."""
    reason = getattr(error, "strerror", None) or first_line(error)
    return WriteError(
        f"cannot write {path}: {reason}; fix that (free space, permissions) and start again with "
        "the same --workdir: finished work is kept"
    )


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file so that it is whole or absent, whenever the process dies.

    Args:
        path: The file, here or in a bucket; missing folders are created, an existing file is replaced.
            If it is a symbolic link, its target is replaced or created, and the link stays.
        data: Its contents.

    Raises:
        WriteError: It cannot be written, or it is a link to something other than a file; nothing is left behind.
    """
    path = paths.as_path(path)
    temporary = None
    try:
        if paths.is_remote(path):
            return paths.put(path, data)
        target = _target(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(
            dir=target.parent, prefix=TEMPORARY[0], suffix=TEMPORARY[1]
        )
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o644)  # mkstemp's 0600 would hide results from others
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _target(path: Path) -> Path:
    """The file that a chain of symbolic links points to, which need not exist; other paths as they are."""
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():  # the chain is a circle
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, f"it is a link to {target}, which is not a regular file")
    return target


def append_line(path: Path, line: str) -> None:
    """Appends a line to a text file; one in a bucket is rewritten whole.

    Raises:
        WriteError: It cannot be written.
    """
    try:
        if paths.is_remote(path):
            with contextlib.suppress(FileNotFoundError):
                line = paths.get(path).decode() + line
            return paths.put(path, line.encode())
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(line)
    except OSError as error:
        raise write_error(path, error) from error


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes JSON atomically, see `write_bytes`; NumPy and JAX scalars become numbers."""
    write_bytes(
        path, (json.dumps(value, indent=2, default=plain_json, allow_nan=False) + "\n").encode()
    )


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, ArrayLike]) -> None:
    """Writes named arrays atomically, see `write_bytes`.

    Raises:
        ValueError: An array holds Python objects, which only pickle could store.
        WriteError: It cannot be written.
    """
    plain = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in plain.items():
        if array.dtype.hasobject:
            raise ValueError(f"{path}: array {name!r} holds Python objects; store numbers only")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **plain)  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue())


def read_npz(
    path: str | os.PathLike[str], only: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """Reads the arrays of an .npz file.

    Args:
        path: The file.
        only: Names of the arrays to read, if they exist; default: all.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or holds Python objects.
    """
    try:
        path = paths.as_path(path)
        lazily = only is not None and not paths.is_remote(path)
        with (
            path.open("rb") if lazily else io.BytesIO(path.read_bytes()) as content,
            np.load(content, allow_pickle=False) as arrays,
        ):
            check_members(arrays.zip)
            names = [name for name in arrays.files if only is None or name in only]
            found = {name: arrays[name] for name in names}
        if strange := [name for name, array in found.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"its member {strange[0]!r} is no array")
        return found
    except _NO_NPZ as error:
        raise ValueError(f"{path} is no .npz file of arrays, or damaged: {error}") from error


def check_members(archive: zipfile.ZipFile) -> None:
    """Raises ValueError if a .zip file would expand to far more than its size."""
    held = sum(member.file_size for member in archive.infolist())
    size = sum(member.compress_size for member in archive.infolist())
    if held > _EXPANDED and held > _EXPANSION * size:
        raise ValueError(f"it would expand from {size:,} to {held:,} bytes, as no data does")


def parse_json(text: str | bytes) -> Any:
    """`json.loads`, which also raises ValueError for text that nests too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it nests too deeply") from None


def safe_name(identifier: str) -> str:
    """A file name for any non-empty id, which `unquote` gives back; ordinary ids stay as they are."""
    if not identifier:
        raise ValueError("an id is empty: there is no file name for it")
    # File names need not be Unicode, so neither need ids that come from them.
    name = quote(identifier, safe=" ()+,=@[]", errors="surrogateescape")
    return "%2E" + name[1:] if name.startswith(".") else name


def plain_json(value: Any) -> Any:
    """Converts for json: config dicts, NumPy and JAX numbers and arrays, paths."""
    for method in ("to_dict", "tolist"):
        if hasattr(value, method):
            return getattr(value, method)()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r} cannot be written as JSON")
