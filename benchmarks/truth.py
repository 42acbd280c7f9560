"""Which explanation finds the cause, and which score says so: configs/truth.py for several trainings.

The truth of a method is the share of its maps on the planted cause, over the images that the model gets right. Each
other score is judged by its rank correlation with that truth over the methods. Prints two tables in Markdown. A second
start goes on where the first ended.

python -m benchmarks.truth [--seeds 5] [--out runs/truth] [--options key=value,...]
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.stats

from benchmarks.command import parse_options
from benchmarks.seeds import half_width
from benchmarks.tables import print_table
from configs import truth
from vitx.evaluation.comparison import Comparison
from vitx.evaluation.scores import SCORES
from vitx.pipeline.methods_section import title
from vitx.runtime.files import read_npz

ROOT = Path(__file__).parent.parent
TRUTH = "energy"
DIRECTIONS = {"positive": False, "negative": True}  # of perturbation: whether higher is better


class Training(NamedTuple):
    """The measurements of one training's maps.

    Attributes:
      right: bool (N,), whether the model is right.
      energy: (N, M) share of each map on the cause.
      scores: (N, M) of each score, by name; higher is better in all of them.
    """

    right: np.ndarray
    energy: np.ndarray
    scores: dict[str, np.ndarray]


def measured(workdir: Path, comparison: Comparison) -> Training:
    """The measurements that the stage `methods` left."""
    files = [read_npz(path) for path in sorted((workdir / "methods/batches").glob("*.npz"))]
    arrays = {name: np.concatenate([file[name] for file in files]) for name in files[0]}
    scores = {
        name: arrays[f"score_{name}"] * (1 if SCORES[name].higher else -1)
        for name in comparison.scores
    }
    for direction, higher in DIRECTIONS.items():
        area = np.trapezoid(arrays[direction].astype(float), comparison.fractions, axis=-1)
        scores[f"perturbation, {direction}"] = area if higher else -area
    return Training(arrays["clean"], scores.pop(TRUTH), scores)


def found_by(training: Training, rows: np.ndarray) -> np.ndarray:
    """The mean share on the cause over some images that the model gets right, by method."""
    return np.nanmean(training.energy[rows & training.right], 0)


def method_rows(names: Sequence[str], trainings: Sequence[Training]) -> Iterator[list[str]]:
    """A row a method, the best first: its mean share on the cause, of all images and of each kind."""
    kinds = _kinds(len(trainings[0].right))
    shares = {
        kind: 100 * np.stack([found_by(one, rows) for one in trainings])
        for kind, rows in kinds.items()
    }  # (trainings, methods)
    drawn = 100 * _bootstrap(trainings)  # (samples, methods)
    for place in np.argsort(-shares["all"].mean(0)):
        half = half_width(shares["all"][:, place], drawn[:, place])
        yield [
            title(names[place]),
            *(f"{values[:, place].mean():.1f}" for values in shares.values()),
            f"+- {half:.1f}",
        ]


def score_rows(trainings: Sequence[Training]) -> Iterator[list[str]]:
    """A row a score, the best first: mean and interval of its rank correlation with the truth, and each training's."""
    everything = np.ones(len(trainings[0].right), bool)
    found = {}
    for name in trainings[0].scores:
        found[name] = np.array(
            [
                scipy.stats.spearmanr(
                    np.nanmean(one.scores[name][one.right], 0), found_by(one, everything)
                ).statistic
                for one in trainings
            ]
        )
    for name, values in sorted(found.items(), key=lambda item: -item[1].mean()):
        half = half_width(values, np.zeros(2))
        label = SCORES[name].title if name in SCORES else name
        shown = ", ".join(f"{value:.2f}" for value in values)
        yield [label, f"{values.mean():.2f}", f"+- {half:.2f}", shown]


def _kinds(count: int) -> dict[str, np.ndarray]:
    """Which images have a watermark: those of odd number (`planted.draw`)."""
    odd = np.arange(count) % 2 == 1
    return {"all": np.ones(count, bool), "object": ~odd, "watermark": odd}


def _bootstrap(trainings: Sequence[Training], samples: int = 1000) -> np.ndarray:
    """The mean over trainings of each method's share (samples, M), images drawn with replacement, alike for all."""
    generator, count = np.random.default_rng(0), len(trainings[0].right)
    drawn = []
    for _ in range(samples):
        rows = generator.integers(count, size=count)
        means = [np.nanmean(one.energy[rows][one.right[rows]], 0) for one in trainings]
        drawn.append(np.mean(means, 0))
    return np.array(drawn)


def main(seeds: int = 5, out: str = "runs/truth", options: str = "") -> None:
    """Prints the tables; the workdirs are in `out`."""
    extra = [f"--config.{option}" for option in options.split(",") if option]
    workdirs = [Path(out).resolve() / f"seed{seed}" for seed in range(seeds)]
    for seed, workdir in enumerate(workdirs):
        for script in ("train.py", "evaluate.py"):
            command = [sys.executable, script, "--config=configs/truth.py", f"--workdir={workdir}"]
            command += [f"--config.seed={seed}", *extra]
            subprocess.run(command, cwd=ROOT, check=True)
    comparison = Comparison.from_config(truth.get_config().methods)
    trainings = [measured(workdir, comparison) for workdir in workdirs]
    right = ", ".join(f"{100 * one.right.mean():.1f}" for one in trainings)
    print(f"Accuracy by training, %: {right}.\n")
    header = ("method", "on the cause, %", "object", "watermark", "95 %")
    print_table(header, method_rows(comparison.methods, trainings))
    print()
    header = ("score", "rank correlation with the truth", "95 %", "by training")
    print_table(header, score_rows(trainings))


if __name__ == "__main__":
    main(**parse_options(main))
