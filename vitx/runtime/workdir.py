"""The folder of one run: a lock, and a folder for each stage, from which the stage resumes.

Whatever a stage finished is a file under its final name, so a process that is killed anywhere
leaves a state from which the next start goes on.
"""

import contextlib
import functools
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from flax.traverse_util import flatten_dict

from vitx import parallel
from vitx.runtime import locks
from vitx.runtime.files import (
    TEMPORARY,
    WriteError,
    parse_json,
    plain_json,
    safe_name,
    write_error,
    write_json,
)
from vitx.runtime.paths import as_path, is_remote

_RECORD: Final = "stage.json"
# Bytes that Linux allows; the stages' own folders and files take up to 400 of a path.
_LONGEST_PATH: Final = 4096 - 400
_LONGEST_NAME: Final = 255
_SAVE_SECONDS: Final = 10.0  # a kill loses at most this much of a stage's recorded time


class Workdir:
    """The folder of one run, created if missing.

    Attributes:
        folder: Its absolute path, an `epath.Path` where it is in a bucket.

    Raises:
        ImportError, ValueError: See `vitx.runtime.paths.as_path`; or the path is too long.
        WriteError: The folder cannot be created.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.folder = as_path(path)
        if is_remote(self.folder):
            return
        self.folder = self.folder.absolute()
        _require_room(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(self.folder, error) from error

    @contextlib.contextmanager
    def lock(self) -> Iterator["Workdir"]:
        """Keeps other processes out, see `vitx.runtime.locks`, and removes half-written files of killed ones.

        Raises:
            WorkdirBusy: Another process holds the lock; the message names its pid and host.
        """
        with locks.hold(self.folder):
            if not is_remote(self.folder):  # objects are never half-written
                for path in list(self.folder.rglob("*".join(TEMPORARY))):
                    path.unlink(missing_ok=True)
            yield self

    def stage(self, name: str, options: Mapping[str, Any]) -> "StageFolder":
        """The folder of a stage, whose results depend on `options`.

        Raises:
            ValueError: The stage was begun with other options, which the message names; or the folder holds results
                without the record of the options that made them.
        """
        if parallel.is_first_process():  # it holds the lock
            _require_record(self.folder / name)
        return StageFolder(self.folder / name, options)

    def seconds(self) -> dict[str, float]:
        """Seconds spent so far in each stage that was begun, in the order they were begun."""
        paths = [folder / _RECORD for folder in self.folder.iterdir()]
        records = {path.parent.name: _read_record(path) for path in paths if path.exists()}
        names = sorted(records, key=lambda name: records[name]["begun"])
        return {name: records[name]["seconds"] for name in names}

    def recorded(self, stages: Iterable[str]) -> dict[str, Any]:
        """What decided the results of those of these stages that have some, by keys such as "model.name"."""
        found: dict[str, Any] = {}
        for name in stages:
            folder = self.folder / name
            if (folder / _RECORD).exists():
                record = _read_record(folder / _RECORD)
                if _has_results(folder, record):
                    found |= flatten_dict(record["options"], sep=".")
        return found


def _require_room(folder: Path) -> None:
    """ValueError if the folder's path, or a name in it, is too long for the files inside it."""
    path = os.fsencode(folder)
    longest = max(map(len, path.split(b"/")))
    if len(path) > _LONGEST_PATH or longest > _LONGEST_NAME:
        shown = path[:60].decode(errors="replace")
        raise ValueError(
            f"the workdir {shown}... is too long ({len(path):,} bytes, its longest name {longest:,}): "
            f"its path may have {_LONGEST_PATH:,} bytes, which leaves room for the files inside, and a name "
            f"{_LONGEST_NAME}; give another --workdir"
        )


class StageFolder:
    """The folder of one stage of a run: its record, and its results as files.

    Attributes:
        folder: Where its results go.
        options: What its results depend on, as plain JSON values.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any]):
        self.folder = folder
        self.options: dict[str, Any] = json.loads(json.dumps(options, default=plain_json))
        self._record: dict[str, Any] = {"options": self.options, "seconds": 0.0, "done": False}
        self._started: float | None = None
        path = folder / _RECORD
        if path.exists():
            record = _read_record(path)
            # A stage that failed before its first result may start with other options.
            kept = _has_results(folder, record)
            self._record = record if kept else record | {"options": self.options}
            self._require_same_options()

    def _require_same_options(self) -> None:
        before, now = _flatten(self._record["options"]), _flatten(self.options)
        changed = [
            f"{key} {before.get(key, 'absent')} -> {now.get(key, 'absent')}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]
        if changed:
            raise ValueError(
                f"stage {self.folder.name!r} in {self.folder.parent} was begun with other options "
                f"({', '.join(changed)}); give another --workdir, the old options, or delete "
                f"{self.folder} and the folders of the stages after it"
            )

    @property
    def done(self) -> bool:
        """Whether the stage ran to its end."""
        return self._record["done"]

    @property
    def seconds(self) -> float:
        """Wall-clock seconds spent in it, over all starts."""
        running = 0.0 if self._started is None else time.monotonic() - self._started
        return self._record["seconds"] + running

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """Times the body, and marks the stage done when it ends without an exception."""
        self._record.setdefault("begun", time.time())
        self._started = time.monotonic()
        self._save()
        ended = threading.Event()
        saver = threading.Thread(target=self._save_regularly, args=(ended,), daemon=True)
        saver.start()
        done = False
        try:
            yield
            done = True
        finally:
            ended.set()
            saver.join()
            self._record |= {"seconds": self.seconds, "done": done}
            self._started = None
            try:
                self._save()
            except WriteError:
                if done:  # else it would hide why the body failed
                    raise

    def _save_regularly(self, ended: threading.Event) -> None:
        while not ended.wait(_SAVE_SECONDS):
            with contextlib.suppress(WriteError):  # the stage's own writes report it
                self._save()

    def _save(self) -> None:
        if parallel.is_first_process():
            write_json(self.folder / _RECORD, self._record | {"seconds": self.seconds})

    def stamp(self, identifier: str, folder: str = "") -> str:
        """A digest of the stage's name and options and of an item's id and folder, to store in the item's file."""
        made_by = [self.folder.name, self._sorted_options, folder, identifier]
        return hashlib.sha256(json.dumps(made_by).encode()).hexdigest()[:32]

    @functools.cached_property
    def _sorted_options(self) -> list[tuple[str, str]]:
        return sorted(_flatten(self.options).items())

    def require_stamp(
        self, path: Path, stamp: str | None, identifier: str, folder: str = ""
    ) -> None:
        """Raises ValueError for a file that this stage did not write for this item with its options.

        Args:
            path: The file.
            stamp: The stamp in the file; None if it has none.
            identifier: The item whose file it should be.
            folder: The item's folder in the stage.
        """
        if stamp is None:
            raise ValueError(
                f"{path} was made by an older version of vitx or by another program: it does not name "
                f"the image and the options that made it; delete {self.folder} and the folders of the "
                "stages after it"
            )
        if stamp != self.stamp(identifier, folder):
            raise ValueError(
                f"{path} was made for another image or with other options than those in "
                f"{self.folder / _RECORD}: {self.remedy()}"
            )

    def missing(self, path: Path) -> ValueError:
        """The error for a file of this stage that is missing, with what to do."""
        what = f"stage {self.folder.name!r} is done, but {path}" if self.done else str(path)
        return ValueError(f"{what} is missing: {self.remedy('put it back')}")

    def remedy(self, action: str = "delete it") -> str:
        """What to do about a file of this stage that is wrong (delete it) or missing (put it back)."""
        if not self.done:
            return f"{action} and start again with the same --workdir"
        joined = ", or" if action != "delete it" else ","
        return (
            f'{action}{joined} set "done" to false in {self.folder / _RECORD} and run stage '
            f"{self.folder.name!r} again, which makes only what is missing"
        )

    def item(self, identifier: str, suffix: str, folder: str = "") -> Path:
        """The file of one item, such as an image's mask: `folder/<id><suffix>` in the stage."""
        return self.folder / folder / (safe_name(identifier) + suffix)

    def items_done(self, suffix: str, folder: str = "") -> set[str]:
        """The ids whose file `item(id, suffix, folder)` exists, and so is whole."""
        place = self.folder / folder
        if not place.is_dir():
            return set()
        return {
            unquote(entry.name.removesuffix(suffix), errors="surrogateescape")
            for entry in place.iterdir()
            if entry.name.endswith(suffix) and not entry.name.startswith(".")
        }


def recorded_options(folder: Path) -> dict[str, Any]:
    """The options that the stage in `folder` was begun with; ValueError if they are not recorded."""
    _require_record(folder)
    return _read_record(folder / _RECORD)["options"]


def _require_record(folder: Path) -> None:
    """ValueError if a stage's folder holds results, but not the options that made them."""
    if (folder / _RECORD).exists() or not folder.is_dir():
        return
    found = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    if found:
        raise ValueError(
            f"{folder} holds results ({', '.join(found[:3])}{', ...' if found[3:] else ''}) but no "
            f"{_RECORD}, which names the options that made them: put that file back, or delete {folder} "
            "and the folders of the stages after it"
        )


def _has_results(folder: Path, record: Mapping[str, Any]) -> bool:
    return record["done"] or any(entry.name != _RECORD for entry in folder.iterdir())


def _flatten(options: dict[str, Any]) -> dict[str, str]:
    """Nested options as {"a.b": JSON text}, so that they are compared and shown one by one."""
    return {key: json.dumps(value) for key, value in flatten_dict(options, sep=".").items()}


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = parse_json(path.read_text())
        record["options"].items(), record["seconds"], record["done"], record["begun"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete {path.parent}") from error
    return record
