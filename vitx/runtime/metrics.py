"""Metrics of training: `metrics.jsonl` and TensorBoard events, written and read."""

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorboardX

from vitx import parallel
from vitx.runtime.files import append_line, first_line, parse_json, write_bytes, write_error
from vitx.runtime.paths import local_folder


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
        if not parallel.is_first_process():
            return
        kept = [line for line in self.read() if line["step"] <= step]
        write_bytes(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self.close()
        self._open_events(step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds one line; numbers that are not finite are written as null."""
        if not parallel.is_first_process():
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
