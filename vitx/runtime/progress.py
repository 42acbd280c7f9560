"""Graceful shutdown, metric logging, progress bars."""

import contextlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, TextIO

import tensorboardX
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from vitx import processes
from vitx.runtime.files import (
    WorkdirError,
    append_line,
    first_line,
    parse_json,
    write_bytes,
    write_error,
)
from vitx.runtime.paths import local_folder

_LINE_SECONDS: Final = 10.0  # between two lines of progress where there is no terminal


class Stopped(Exception):
    """The run was asked to stop, and did so at a safe point.

    Attributes:
        signal: The signal that asked.
    """

    def __init__(self, signal_number: int):
        self.signal = signal.Signals(signal_number)
        super().__init__(f"stopped by {self.signal.name}; the same command goes on from here")

    @property
    def exit_code(self) -> int:
        """What shells expect of a process that a signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signal


class StopRequest:
    """Turns Ctrl-C and SIGTERM into a flag that the run looks at where stopping is safe.

    Use as a context in the main thread. The second signal acts as if the context were not there; worker processes end
    with the run, see `vitx.runtime.workers`.

    Attributes:
        signal: The number of the signal that has come, 0 if none has.
    """

    def __init__(self) -> None:
        self.signal = 0  # that has come
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()  # Python would handle a second signal only after a long call of C has returned
        print("\nstopping at the next safe point; again to stop at once", file=sys.stderr)

    def check(self) -> None:
        """Raises Stopped if a signal has come: call where everything is saved."""
        if self.signal:
            raise Stopped(self.signal)


@contextlib.contextmanager
def clean_exit() -> Iterator[None]:
    """Ends the program with one line and the right exit code where the user knows what to do."""
    try:
        yield
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        raise SystemExit(stopped.exit_code) from None
    except (WorkdirError, FloatingPointError) as error:
        raise SystemExit(f"error: {error}") from None


class MetricsWriter:
    """Metrics as JSON lines (`metrics.jsonl`) and as TensorBoard events, in one folder.

    Lines are added to those of an earlier start: see `rewind`. Of several processes the first writes.

    Args:
        folder: Made when it is missing. In a bucket the events arrive when the writer is closed.
    """

    def __init__(self, folder: Path):
        self.path = folder / "metrics.jsonl"
        self._events: tensorboardX.SummaryWriter | None = None
        self._closing = contextlib.ExitStack()

    def rewind(self, step: int) -> None:
        """Drops lines of later steps: a killed run wrote them after it last saved its state."""
        if not processes.is_first():
            return
        kept = [line for line in self.read() if line["step"] <= step]
        write_bytes(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self.close()
        self._open_events(step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds one line; numbers that are not finite are written as null."""
        if not processes.is_first():
            return
        numbers = {name: float(value) for name, value in metrics.items()}
        finite = {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        append_line(self.path, json.dumps({"step": step} | finite) + "\n")
        events = self._events or self._open_events()
        for name, value in numbers.items():
            events.add_scalar(name, value, step)

    def _open_events(self, purge_step: int | None = None) -> tensorboardX.SummaryWriter:
        folder = self._closing.enter_context(local_folder(self.path.parent))
        self._events = tensorboardX.SummaryWriter(str(folder), purge_step=purge_step)
        self._closing.callback(self._events.close)
        return self._events

    def read(self) -> list[dict[str, Any]]:
        """All lines, oldest first: dicts with `step` and the metrics."""
        return read_metrics(self.path.parent)

    def close(self) -> None:
        """Writes out what TensorBoard still holds in memory."""
        self._events = None
        try:
            self._closing.close()
        except OSError as error:
            raise write_error(self.path.parent, error) from error

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines that a MetricsWriter left in a folder, oldest first; [] if there are none.

    A last line without its end is left out: the run was killed while it wrote it.

    Raises:
        ValueError: Another line is damaged.
    """
    path = folder / "metrics.jsonl"
    texts = path.read_bytes().split(b"\n") if path.exists() else [b""]
    lines = []
    for number, text in enumerate(texts[:-1], 1):
        try:
            line = parse_json(text)
            _require_metrics(line)
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged in line {number} ({first_line(error)}): delete that line, or the "
                "file, which only curves are drawn from"
            ) from error
        lines.append(line)
    return lines


def _require_metrics(line: Any) -> None:
    """ValueError where a line is not a dict of `step` and of numbers, or null for one that is not finite."""
    if not isinstance(line, dict):
        raise ValueError("it is no JSON object")
    if type(line.get("step")) is not int:
        raise ValueError(f"its step is {line.get('step')!r}")
    for name, value in line.items():
        if value is not None and type(value) not in (int, float):
            raise ValueError(f"its {name} is {value!r}, no number")


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
    if not processes.is_first():
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
