"""Explanations of vitx beside those of PyTorch's packages: seconds an image on this machine, and whether they agree.

python -m benchmarks.peers [--python .peers/bin/python] [--batches 1,8] [--threads 2] [--rounds 5] [--only forward]

`make bench-peers` makes the environment of --python first (benchmarks/peers.txt). Each side is a process of its own
with the same random ViT-B/16 in float32, the same images and classes and as many cores. They take turns, and the least
time of several turns counts, after one call that is not timed. Seconds of CPU are those of all cores: where other work
takes the cores away, they change less.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.command import parse_options
from benchmarks.tables import print_table

ROOT = Path(__file__).parent.parent


class Row(NamedTuple):
    """What is compared: a name of a method or "forward", and the process and packages that have it, if any."""

    name: str
    kind: str | None = None
    packages: str = ""


ROWS = (
    Row("forward", "plain", "transformers"),
    Row("attn_lrp", "lxt", "lxt"),
    Row("attn_lrp_gamma", "lxt", "lxt, zennit"),
    Row("integrated_gradients", "plain", "captum"),
    Row("generic_attention"),
    Row("transformer_attribution"),
)
HEADER = ("s an image (s of CPU)", "batch", "vitx", "peer", "peer / vitx", "correlation", "peer")


class Side:
    """A process that answers with seconds and seconds of CPU (`peers_worker.serve`)."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> "Side":
        self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):  # of a process that has ended
            self.process.__exit__(None, None, None)

    def seconds(self, name: str, batch: int, file: str | None = None) -> list[float]:
        """How long a call takes; its result goes to `file`."""
        assert self.process.stdin
        print(json.dumps([name, batch, file]), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> list[float]:
        assert self.process.stdout
        if line := self.process.stdout.readline():
            return json.loads(line)
        raise RuntimeError(f"{self.process.args} ended, see its error above")


def main(
    python: str = ".peers/bin/python",
    batches: tuple[int, ...] = (1, 8),
    threads: int = 2,
    rounds: int = 5,
    seconds: float = 120.0,
    only: str = "",
    small: bool = False,
) -> None:
    """Prints the table.

    Args:
      python: the interpreter of the environment with the peers.
      batches: images of a call.
      threads: cores of each side.
      rounds: turns of each side in a row of the table.
      seconds: no more turns than two begin in a row after these.
      only: rows, separated by commas; "" for all.
      small: a tiny model, to check that everything runs.
    """
    chosen = [row for row in ROWS if not only or row.name in only.split(",")]
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        started = [str(folder), str(threads)]
        command = [python, "-m", "benchmarks.peers_torch"]
        subprocess.run([*command, "small" if small else "base", *started], cwd=ROOT, check=True)
        ours = stack.enter_context(Side([sys.executable, "-m", "benchmarks.peers_vitx", *started]))
        theirs = {
            kind: stack.enter_context(Side([*command, kind, *started]))
            for kind in sorted({row.kind for row in chosen if row.kind})
        }
        print_table(
            HEADER,
            (
                cells(row, batch, *measure(row, batch, ours, theirs, folder, rounds, seconds))
                for row in chosen
                for batch in batches
            ),
        )
    print("\nA row without a peer: none of these packages has the method.")


def measure(
    row: Row,
    batch: int,
    ours: Side,
    theirs: dict[str, Side],
    folder: Path,
    rounds: int,
    seconds: float,
) -> tuple[np.ndarray, float | None]:
    """The least seconds an image and of CPU (sides, 2) of vitx and its peer, if any, and their results' correlation."""
    sides = {"vitx": ours} | ({"peer": theirs[row.kind]} if row.kind else {})
    for name, side in sides.items():
        side.seconds(row.name, batch, f"{name}.npy")
    correlation = least_correlation(*(np.load(folder / f"{name}.npy") for name in sides))
    times, start = [], time.monotonic()
    while len(times) < rounds and (len(times) < 2 or time.monotonic() - start < seconds):
        times.append([side.seconds(row.name, batch) for side in sides.values()])
    return np.min(times, 0) / batch, correlation


def least_correlation(*results: np.ndarray) -> float | None:
    """Pearson's correlation of two results (B, ...), the least of the images'; None for one result."""
    if len(results) < 2:
        return None
    pairs = zip(*(result.reshape(len(result), -1) for result in results), strict=True)
    return min(float(np.corrcoef(*pair)[0, 1]) for pair in pairs)


def cells(row: Row, batch: int, seconds: np.ndarray, correlation: float | None) -> tuple[str, ...]:
    """A row of the table."""
    times = [f"{wall:.3f} ({cpu:.3f})" for wall, cpu in seconds]
    if correlation is None:
        return f"`{row.name}`", str(batch), *times, "", "", "", ""
    wall, cpu = seconds[1] / seconds[0]
    ratio = f"{wall:.1f} ({cpu:.1f})"
    return f"`{row.name}`", str(batch), *times, ratio, f"{correlation:.6f}", row.packages


if __name__ == "__main__":
    main(**parse_options(main))
