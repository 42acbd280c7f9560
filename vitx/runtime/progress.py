"""Progress bars in a terminal, and sparse lines of progress in logs."""

import contextlib
import math
import os
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

_LINE_SECONDS: Final = 10.0  # between two lines of progress where there is no terminal


class _Lines:
    """Progress for logs: a line every ten seconds, and one at the end."""

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
        shown = _show(self._values)
        print(
            f"{self._description}: {self._done}/{self._total}, {seconds:.0f} s"
            + (f", {left:.0f} s left" if left > 0 else "")
            + (f", {shown}" if shown else ""),
            file=self._file,
            flush=True,
        )


class _Bar:
    """Progress for terminals: a bar."""

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
) -> Iterator[_Bar | _Lines]:
    """Shows how far a stage is, on standard error: a bar in a terminal, else sparse lines.

    Of several processes the first shows its own part.

    Args:
        total: Number of items; `start` of them were done by an earlier start.
        description: The stage's name.
        start: Items that are done already.
        file: Where to, if not standard error.

    Yields:
        An object whose `advance(count=1, **values)` counts items and shows values.
    """
    if not parallel.is_first_process():
        with open(os.devnull, "w") as nowhere:
            yield _Lines(nowhere, total, description, start)
        return
    file = file or sys.stderr
    if not file.isatty():
        lines = _Lines(file, total, description, start)
        yield lines
        lines.print()
        return
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
