"""Metrics of training: `metrics.jsonl` and TensorBoard events, written and read."""

import contextlib
import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import tensorboardX

from vitx import parallel
from vitx.runtime.files import append_line, first_line, parse_json, write_bytes, write_error
from vitx.runtime.paths import is_remote

_NAME: Final = "metrics.jsonl"


class MetricsWriter(contextlib.AbstractContextManager):
    """Writes metrics to a folder as JSON lines (`metrics.jsonl`) and as TensorBoard events.

    What an earlier start wrote is kept up to the step that training goes on from: a killed run wrote
    later lines after it last saved its state. Only the first process writes.

    Args:
        folder: Created if missing. In a bucket the events arrive when the writer is closed.
        step: The last step whose metrics are kept.

    Raises:
        ValueError: The lines of an earlier start are damaged.
        WriteError: The folder cannot be written.
    """

    def __init__(self, folder: Path, step: int = 0):
        self._folder = folder
        self._closing = contextlib.ExitStack()
        if not parallel.is_first_process():
            return
        kept = [line for line in read_metrics(folder) if line["step"] <= step]
        write_bytes(folder / _NAME, "".join(json.dumps(line) + "\n" for line in kept).encode())
        local = self._closing.enter_context(_copied_to(folder)) if is_remote(folder) else folder
        self._events = tensorboardX.SummaryWriter(str(local), purge_step=step + 1)
        self._closing.callback(self._events.close)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds one line; numbers that are not finite are written as null."""
        if not parallel.is_first_process():
            return
        numbers = {name: float(value) for name, value in metrics.items()}
        finite = {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        append_line(self._folder / _NAME, json.dumps({"step": step} | finite) + "\n")
        for name, value in numbers.items():
            self._events.add_scalar(name, value, step)

    def __exit__(self, *_: object) -> None:
        """Writes the events that TensorBoard's writer still holds in memory."""
        try:
            self._closing.close()
        except OSError as error:
            raise write_error(self._folder, error) from error


@contextlib.contextmanager
def _copied_to(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files are copied into a bucket's folder in the end."""
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)
        for file in sorted(Path(scratch).iterdir()):
            write_bytes(folder / file.name, file.read_bytes())


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines that a MetricsWriter left in a folder, oldest first; [] if there are none.

    A last line that does not end is left out: the run was killed while it wrote it.

    Raises:
        ValueError: Another line is damaged.
    """
    path = folder / _NAME
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
    """ValueError if a line is not a dict of `step` and of numbers, or null for one that is not finite."""
    if not isinstance(line, dict):
        raise ValueError("it is no JSON object")
    if type(line.get("step")) is not int:
        raise ValueError(f"its step is {line.get('step')!r}")
    for name, value in line.items():
        if value is not None and type(value) not in (int, float):
            raise ValueError(f"its {name} is {value!r}, no number")
