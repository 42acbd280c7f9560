"""Progress of a stage: a bar in a terminal, sparse lines in a log."""

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Final, TextIO

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

_LINE_SECONDS: Final = 10.0  # between two lines in a log


class Counter:
    """Counts items that are done; this one shows nothing."""

    def advance(self, count: int = 1, /, **values: float) -> None:
        """Adds `count` items, and shows values beside the count."""


class _Lines(Counter):
    """A line every ten seconds, and one at the end."""

    def __init__(self, file: TextIO, total: int, description: str, start: int):
        self._file, self._total, self._description = file, total, description
        self._start = self._done = start
        self._began = self._printed = time.monotonic()
        self._values: dict[str, float] = {}

    def advance(self, count: int = 1, /, **values: float) -> None:
        self._done += count
        self._values |= values
        if time.monotonic() - self._printed >= _LINE_SECONDS:
            self.print()

    def print(self) -> None:
        self._printed = time.monotonic()
        seconds = self._printed - self._began
        done = self._done - self._start
        left = seconds / done * (self._total - self._done) if done else math.nan
        parts = [f"{self._description}: {self._done}/{self._total}", f"{seconds:.0f} s"]
        parts += [f"{left:.0f} s left"] if left > 0 else []
        parts += [_show(self._values)] if self._values else []
        print(", ".join(parts), file=self._file, flush=True)


class _Bar(Counter):
    def __init__(self, bar: Progress, total: int, description: str, start: int):
        self._bar = bar
        self._task = bar.add_task(description, total=total, completed=start, values="")

    def advance(self, count: int = 1, /, **values: float) -> None:
        self._bar.advance(self._task, count)
        if values:
            self._bar.update(self._task, values=_show(values))


def _show(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


@contextlib.contextmanager
def progress(
    total: int, description: str, *, start: int = 0, file: TextIO | None = None
) -> Iterator[Counter]:
    """Shows how far a stage is: a bar in a terminal, else sparse lines.

    Of several processes only the first shows its own part.

    Args:
        total: Number of items, those of earlier starts included.
        description: The stage's name.
        start: Items that an earlier start did.
        file: Where to; default: standard error.
    """
    file = file or sys.stderr
    if not parallel.is_first_process():
        yield Counter()
    elif not file.isatty():
        lines = _Lines(file, total, description, start)
        yield lines
        lines.print()
    else:
        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}"),
        )
        with Progress(*columns, console=Console(file=file), refresh_per_second=4) as bar:
            yield _Bar(bar, total, description, start)
