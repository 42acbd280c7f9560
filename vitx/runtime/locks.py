"""One run at a time in a folder: the kernel's lock, or in a bucket an object that its holder refreshes."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from vitx.runtime.files import WorkdirError, write_error
from vitx.runtime.paths import get, is_remote, put

_NAME: Final = ".lock"
_REFRESH_SECONDS: Final = 30.0
_STALE_SECONDS: Final = 180.0  # without a refresh the holder counts as dead
_SETTLE_SECONDS: Final = 5.0  # for others that take the lock over at the same time to write


class WorkdirBusy(WorkdirError):
    """Another process is running in this workdir."""


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a folder.

    Raises:
        WorkdirBusy: Another process holds it; the message names its pid and host.
        WorkdirError: It cannot be locked.
    """
    with (_bucket_lock if is_remote(folder) else _kernel_lock)(folder / _NAME):
        yield


def _me() -> str:
    return f"pid {os.getpid()} on host {socket.gethostname()}"


def _busy(path: Path, holder: str, wait: str = "wait for it") -> WorkdirBusy:
    return WorkdirBusy(
        f"{path.parent} is in use by {holder}; {wait}, stop it, or give another --workdir"
    )


@contextlib.contextmanager
def _kernel_lock(path: Path) -> Iterator[None]:
    """A flock: it ends with the process, however that dies."""
    try:
        file = path.open("a+")
    except OSError as error:
        raise write_error(path, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise _busy(path, file.read().strip() or "another process") from None
        except OSError as error:  # some network file systems have no locks
            raise WorkdirError(f"cannot lock {path}: {error.strerror}") from error
        file.truncate(0)
        file.write(f"{_me()}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


@contextlib.contextmanager
def _bucket_lock(path: Path) -> Iterator[None]:
    """An object that names its holder, who refreshes it; one that is not refreshed is taken over.

    The bucket lets only one process create it. Of two that take over a dead one's lock, or of a new holder and one that
    was cut off and comes back, all but one see another's name in it and end within `_REFRESH_SECONDS`.
    """
    token = uuid.uuid4().hex
    _take(path, token)
    ended = threading.Event()
    refresher = threading.Thread(target=_refresh, args=(path, token, ended), daemon=True)
    refresher.start()
    try:
        yield
    finally:
        ended.set()
        refresher.join()
        with contextlib.suppress(Exception):  # a lock that is left becomes stale
            if _read(path).get("token") == token:
                path.unlink(missing_ok=True)


def _take(path: Path, token: str) -> None:
    try:
        with contextlib.suppress(FileExistsError):
            _write(path, token, new=True)
            return
        found = _read(path)
        silent = time.time() - found.get("time", 0.0)
        if found.get("token") != token and silent < _STALE_SECONDS:
            holder = f"{found.get('holder')}, last heard of {silent:.0f} s ago"
            wait = f"wait for it (killed, it counts as ended after {_STALE_SECONDS:.0f} s)"
            raise _busy(path, holder, wait)
        _write(path, token)
        time.sleep(_SETTLE_SECONDS)
        found = _read(path)
    except OSError as error:
        raise write_error(path, error) from error
    if found.get("token") != token:
        raise _busy(path, found.get("holder", "another process"))


def _refresh(path: Path, token: str, ended: threading.Event) -> None:
    while not ended.wait(_REFRESH_SECONDS):
        try:
            found = _read(path)
            if found.get("token", token) == token:
                _write(path, token)
                continue
        except OSError:
            continue  # the run's own writes report a bucket that is out of reach
        print(
            f"error: {path.parent} was taken over by {found.get('holder')}, as this run was cut off "
            f"from it for over {_STALE_SECONDS:.0f} s",
            file=sys.stderr,
        )
        os.kill(os.getpid(), signal.SIGTERM)  # and again, should the run not come to a safe point


def _write(path: Path, token: str, *, new: bool = False) -> None:
    content = {"holder": _me(), "token": token, "time": time.time()}
    put(path, json.dumps(content).encode(), new=new)


def _read(path: Path) -> dict[str, Any]:
    """What is in the lock; {} where there is none, or it is no lock of ours."""
    try:
        return dict(json.loads(get(path)))
    except (FileNotFoundError, ValueError, TypeError):
        return {}
