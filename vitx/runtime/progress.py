"""Progress of a stage: a bar in a terminal, sparse lines in a log, in which silence stays short."""

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from vitx import parallel

# Between two lines in a log. A reader should wait for ten at most; a call of compiled code may delay one.
_SECONDS: Final = 8.0


class Counter:
    """Counts items that are done; this one shows nothing."""

    def advance(self, count: int = 1, /, **values: float) -> None:
        """Adds `count` items, and shows values beside the count."""


class _Lines(Counter):
    """Has a line for the log at any time."""

    def __init__(self, total: int, description: str, start: int, compiles: bool):
        self._total, self._description, self._compiles = total, description, compiles
        self._start = self._done = start
        self._began = time.monotonic()
        self._values: dict[str, float] = {}

    def advance(self, count: int = 1, /, **values: float) -> None:
        self._done += count
        self._values = self._values | values  # a new one: the heartbeat may read the old

    def line(self) -> str:
        seconds = time.monotonic() - self._began
        done = self._done - self._start
        if self._compiles and not done and self._done < self._total:
            return f"{self._description}: compiling, {seconds:.0f} s"
        left = seconds / done * (self._total - self._done) if done else math.nan
        parts = [f"{self._description}: {self._done}/{self._total}", f"{seconds:.0f} s"]
        parts += [f"{left:.0f} s left"] if left > 0 else []
        parts += [_show(self._values)] if self._values else []
        return ", ".join(parts)


class _Bar(Counter):
    def __init__(self, bar: Progress, total: int, description: str, start: int, compiles: bool):
        self._bar, self._description = bar, description
        shown = f"{description}: compiling" if compiles else description
        self._task = bar.add_task(shown, total=total, completed=start, values="")

    def advance(self, count: int = 1, /, **values: float) -> None:
        shown: Any = {"values": _show(values)} if values else {}
        self._bar.update(self._task, advance=count, description=self._description, **shown)


def _show(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


class _Heartbeat:
    """Prints a line of the innermost of the running blocks whenever none was printed for a while."""

    def __init__(self) -> None:
        self._blocks: list[threading.Event] = []  # the innermost last; each is set when it ends
        self._printed = 0.0

    def print(self, line: str, file: TextIO) -> None:
        self._printed = time.monotonic()
        print(line, file=file, flush=True)

    @contextlib.contextmanager
    def block(self, line: Callable[[], str] | None, file: TextIO) -> Iterator[None]:
        """Lines are wanted while this runs; without a `line` those of the blocks around are not."""
        ended = threading.Event()
        if not self._blocks:
            self._printed = time.monotonic()
        self._blocks.append(ended)
        # A daemon: a process that ends does not wait for it.
        thread = threading.Thread(target=self._beat, args=(ended, line, file), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            self._blocks.remove(ended)
            thread.join()

    def _beat(self, ended: threading.Event, line: Callable[[], str] | None, file: TextIO) -> None:
        # Each block looks again when the last line is that old, as one within it may begin and end meanwhile.
        pause = self._left()
        while line and not ended.wait(pause):
            if self._left() <= 0 and self._blocks[-1:] == [ended]:
                self.print(line(), file)
            pause = self._left() if self._left() > 0 else _SECONDS

    def _left(self) -> float:
        """Seconds until a line is due."""
        return self._printed + _SECONDS - time.monotonic()


_HEARTBEAT: Final = _Heartbeat()


@contextlib.contextmanager
def busy(what: str, *, file: TextIO | None = None) -> Iterator[None]:
    """Prints every eight seconds that work goes on which has no count, while nothing within it shows its own progress.

    Args:
        what: Such as "explain: loading the model".
        file: Where to; default: standard error.
    """
    began = time.monotonic()
    if not parallel.is_first_process():
        yield
        return
    with _HEARTBEAT.block(lambda: f"{what}, {time.monotonic() - began:.0f} s", file or sys.stderr):
        yield


@contextlib.contextmanager
def progress(
    total: int,
    description: str,
    *,
    start: int = 0,
    item: str = "image",
    compiles: bool = False,
    file: TextIO | None = None,
) -> Iterator[Counter]:
    """Shows how far a stage is: a bar in a terminal, else a line every eight seconds, whether or not it advances.

    Of several processes only the first shows its own part.

    Args:
        total: Number of items, those of earlier starts included.
        description: The stage's name.
        start: Items that an earlier start did; if any, a line says so.
        item: What is counted.
        compiles: Whether a program is compiled before the first item, which is shown until then.
        file: Where to; default: standard error.
    """
    file = file or sys.stderr
    if not parallel.is_first_process():
        yield Counter()
        return
    if start:
        _HEARTBEAT.print(f"{description}: resumes at {item} {start} of {total}", file)
    if not file.isatty():
        lines = _Lines(total, description, start, compiles)
        with _HEARTBEAT.block(lines.line, file):
            yield lines
        _HEARTBEAT.print(lines.line(), file)
        return
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[values]}"),
    )
    shown = Progress(*columns, console=Console(file=file), refresh_per_second=4)
    with _HEARTBEAT.block(None, file), shown:
        yield _Bar(shown, total, description, start, compiles and start < total)
