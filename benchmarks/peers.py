"""Explanations of vitx beside PyTorch's: seconds an image on this machine, memory, and whether they agree.

python -m benchmarks.peers [--python .peers/bin/python] [--batches 1,8] [--threads 2] [--rounds 5] [--only forward]
  [--chefer PATH]

`make bench-peers` makes the environment of --python first (benchmarks/peers.txt). Each side is a process of its own
with the same random ViT-B/16 in float32, the same images and classes and as many cores. They take turns, and the least
time of several turns counts, after one call that is not timed. Seconds of CPU are those of all cores: where other work
takes the cores away, they change less. "MB" is what the process takes at most in a call of the batch beyond what it had
before, "GFLOP an image" its matrix products: those of vitx are counted in the traced program, those of PyTorch as they
run. With `--chefer` the published code of transformer attribution is another peer, from the user's own clone.
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

import vitx
from benchmarks import peers_chefer
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
    Row("generic_attention", "attribution", "PyTorch, by the paper"),
    Row("transformer_attribution", "attribution", "PyTorch, by the paper"),
    Row("transformer_attribution of 3 classes"),
)
PUBLISHED = Row("transformer_attribution", "chefer", "the published code")
HEADER = (
    *("s an image (s of CPU)", "batch", "vitx", "peer", "peer / vitx"),
    *("GFLOP an image", "MB", "correlation", "peer"),
)


class Figures(NamedTuple):
    """What a row shows of vitx and of its peer, if it has one.

    Attributes:
      seconds: an image, and those of CPU, the least of the turns, (sides, 2).
      flops: of an image's matrix products.
      growth: bytes that a call took, None where the system does not say.
      correlation: of the results, None for one side.
    """

    seconds: np.ndarray
    flops: list[float]
    growth: list[float | None]
    correlation: float | None


class Side:
    """A process that answers what `peers_worker.serve` measures."""

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

    def seconds(self, name: str, batch: int) -> list[float]:
        """How long a call takes, and its seconds of CPU."""
        return self._ask(name, batch, None)

    def products_and_growth(self, name: str, batch: int, file: str) -> list[float]:
        """FLOPs of a call's matrix products and the bytes that it takes; its result goes to `file`."""
        return self._ask(name, batch, file)

    def _ask(self, name: str, batch: int, file: str | None) -> list[float]:
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
    chefer: str = "",
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
      chefer: a clone of the published code of transformer attribution; "" for none.

    Raises:
      FileNotFoundError: where `chefer` lacks the published code.
    """
    if chefer:
        peers_chefer.require(Path(chefer))
    rows = (*ROWS, PUBLISHED) if chefer else ROWS
    chosen = [row for row in rows if not only or row.name in only.split(",")]
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        started = [str(folder), str(threads)]
        command = [python, "-m", "benchmarks.peers_torch"]
        subprocess.run([*command, "small" if small else "base", *started], cwd=ROOT, check=True)
        if chefer:
            vitx.save(vitx.load(folder), folder / peers_chefer.WEIGHTS)
        ours = stack.enter_context(Side([sys.executable, "-m", "benchmarks.peers_vitx", *started]))
        theirs = {
            kind: stack.enter_context(Side([*command, kind, *started, chefer]))
            for kind in sorted({row.kind for row in chosen if row.kind})
        }
        print_table(
            HEADER,
            (
                cells(row, batch, measure(row, batch, ours, theirs, folder, rounds, seconds))
                for row in chosen
                for batch in batches
            ),
        )
    print("\nA row without a peer: none of these packages has it.")


def measure(
    row: Row,
    batch: int,
    ours: Side,
    theirs: dict[str, Side],
    folder: Path,
    rounds: int,
    seconds: float,
) -> Figures:
    """The figures of vitx and of its peer, if any."""
    sides = {"vitx": ours} | ({"peer": theirs[row.kind]} if row.kind else {})
    facts = [
        side.products_and_growth(row.name, batch, f"{name}.npy") for name, side in sides.items()
    ]
    correlation = least_correlation(*(np.load(folder / f"{name}.npy") for name in sides))
    times, start = [], time.monotonic()
    while len(times) < rounds and (len(times) < 2 or time.monotonic() - start < seconds):
        times.append([side.seconds(row.name, batch) for side in sides.values()])
    flops, growth = zip(*facts, strict=True)
    return Figures(
        np.min(times, 0) / batch, [count / batch for count in flops], list(growth), correlation
    )


def least_correlation(*results: np.ndarray) -> float | None:
    """Pearson's correlation of two results (B, ...), the least of the images'; None for one result."""
    if len(results) < 2:
        return None
    pairs = zip(*(result.reshape(len(result), -1) for result in results), strict=True)
    return min(float(np.corrcoef(*pair)[0, 1]) for pair in pairs)


def cells(row: Row, batch: int, figures: Figures) -> tuple[str, ...]:
    """A row of the table."""
    seconds = figures.seconds
    times = [f"{wall:.3f} ({cpu:.3f})" for wall, cpu in seconds]
    flops = " / ".join(f"{count / 1e9:.1f}" for count in figures.flops)
    grown = " / ".join("?" if size is None else f"{size / 1e6:.0f}" for size in figures.growth)
    if figures.correlation is None:
        return f"`{row.name}`", str(batch), *times, "", "", flops, grown, "", ""
    wall, cpu = seconds[1] / seconds[0]
    agreed = f"{figures.correlation:.6f}", row.packages
    return f"`{row.name}`", str(batch), *times, f"{wall:.1f} ({cpu:.1f})", flops, grown, *agreed


if __name__ == "__main__":
    main(**parse_options(main))
