"""Which explanation finds the cause, and which score says so: configs/truth.py for several trainings.

The truth of a method is the share of its maps on the planted cause, and the average precision of the cause under the
map's order, over the images that the model gets right. Each other score is judged by its rank correlation with both
over the methods, without the two controls and without methods whose maps are constant on more than a tenth of the
images. Prints tables in Markdown. A second start goes on where the first ended.

python -m benchmarks.truth [--seeds 5] [--out runs/truth] [--root data]
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
from vitx.report.parts import DASH
from vitx.runtime.files import read_npz

ROOT = Path(__file__).parent.parent
CONTROLS = ("random", "centre")
DIRECTIONS = {"positive": False, "negative": True}  # of perturbation: whether higher is better


class Training(NamedTuple):
    """The measurements of one training's maps.

    Attributes:
      right: bool (N,), whether the model is right.
      energy: (N, M) share of each map on the cause.
      precision: (N, M) average precision of the cause under the map's order.
      scores: (N, M) of each score, by name; higher is better in all of them.
      constant: (N, M) whether a map has no contrast.
    """

    right: np.ndarray
    energy: np.ndarray
    precision: np.ndarray
    scores: dict[str, np.ndarray]
    constant: np.ndarray

    def mean(self, figures: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """The mean (M,) of figures (N, M) over the images that the model gets right, of some `rows` of them."""
        chosen = np.flatnonzero(self.right) if rows is None else rows[self.right[rows]]
        return np.ma.masked_invalid(figures[chosen]).mean(0).filled(np.nan)


def measured(workdir: Path, comparison: Comparison) -> Training:
    """The measurements that the stage `methods` left."""
    files = [read_npz(path) for path in sorted((workdir / "methods/batches").glob("*.npz"))]
    names = [name for name, values in files[0].items() if values.ndim]
    arrays = {name: np.concatenate([file[name] for file in files]) for name in names}
    scores = {
        name: arrays[f"score_{name}"] * (1 if SCORES[name].higher else -1)
        for name in comparison.scores
    }
    for direction, higher in DIRECTIONS.items():
        area = np.trapezoid(arrays[direction].astype(float), comparison.fractions, axis=-1)
        scores[f"perturbation, {direction}"] = area if higher else -area
    precision = np.stack([arrays[f"ap_{m}"] for m in range(len(comparison.methods))], 1)
    return Training(arrays["clean"], scores.pop("energy"), precision, scores, arrays["constant"])


def kinds(count: int) -> dict[str, np.ndarray]:
    """The places of the images with each kind of cause: pictures of odd number have a watermark (`planted.draw`).

    The n-th compared image is picture 3 n, which is odd where n is.
    """
    places = np.arange(count)
    return {"all": places, "object": places[::2], "watermark": places[1::2]}


def ranked(names: Sequence[str], trainings: Sequence[Training]) -> np.ndarray:
    """The places of the methods that are no control and whose maps have contrast on nine tenths of all images."""
    constant = np.concatenate([one.constant for one in trainings]).mean(0) > 0.1
    return np.array([m for m, name in enumerate(names) if name not in CONTROLS and not constant[m]])


def method_rows(names: Sequence[str], trainings: Sequence[Training]) -> Iterator[list[str]]:
    """A row a method, the best first: its share on the cause, of all images and of each kind, and its precision."""
    count, fit = len(trainings[0].right), ranked(names, trainings)
    shares = {
        kind: 100 * np.stack([one.mean(one.energy, rows) for one in trainings])
        for kind, rows in kinds(count).items()
    }  # (trainings, methods)
    precision = 100 * np.stack([one.mean(one.precision) for one in trainings])
    drawn = 100 * np.array(
        [
            np.mean([one.mean(one.energy, rows) for one in trainings], 0)
            for rows in np.random.default_rng(0).integers(count, size=(1000, count))
        ]
    )
    for m in np.argsort(-shares["all"].mean(0)):
        control = names[m] in CONTROLS
        if not control and m not in fit:
            yield [f"{title(names[m])} (constant)", *[DASH] * 4]
            continue
        mark = " (control)" if control else ""
        half = half_width(shares["all"][:, m], drawn[:, m])
        yield [
            title(names[m]) + mark,
            f"{shares['all'][:, m].mean():.1f} +- {half:.1f}",
            f"{shares['object'][:, m].mean():.1f}",
            f"{shares['watermark'][:, m].mean():.1f}",
            f"{precision[:, m].mean():.1f}",
        ]


def score_rows(names: Sequence[str], trainings: Sequence[Training]) -> Iterator[list[str]]:
    """A row a score, the best first: its rank correlation with each truth, mean and interval over the trainings."""
    fit = ranked(names, trainings)
    found = {
        name: np.array(
            [
                [
                    scipy.stats.spearmanr(
                        one.mean(one.scores[name])[fit], one.mean(truth)[fit]
                    ).statistic
                    for truth in (one.energy, one.precision)
                ]
                for one in trainings
            ]
        )
        for name in trainings[0].scores
    }  # (trainings, truths)
    for name, values in sorted(found.items(), key=lambda item: -item[1][:, 0].mean()):
        label = SCORES[name].title if name in SCORES else name
        mark = " (reads the cause)" if name in SCORES and SCORES[name].masks else ""
        yield [
            label + mark,
            *(
                f"{column.mean():.2f} +- {half_width(column, np.zeros(2)):.2f}"
                for column in values.T
            ),
            ", ".join(f"{value:.2f}" for value in values[:, 0]),
        ]


def main(seeds: int = 5, out: str = "runs/truth", root: str = "data") -> None:
    """Prints the tables; the workdirs are in `out`, the pictures in `root`."""
    workdirs = [Path(out).resolve() / f"seed{seed}" for seed in range(seeds)]
    for seed, workdir in enumerate(workdirs):
        for script in ("train.py", "evaluate.py"):
            command = [sys.executable, script, "--config=configs/truth.py", f"--workdir={workdir}"]
            command += [f"--config.seed={seed}", f"--config.data.root={Path(root).resolve()}"]
            subprocess.run(command, cwd=ROOT, check=True)
    comparison = Comparison.from_config(truth.get_config().methods)
    trainings = [measured(workdir, comparison) for workdir in workdirs]
    for kind, rows in kinds(len(trainings[0].right)).items():
        right = ", ".join(f"{100 * one.right[rows].mean():.1f}" for one in trainings)
        print(f"Accuracy by training, {kind}, %: {right}.")
    print()
    header = ("method", "on the cause, %", "object", "watermark", "average precision, %")
    print_table(header, method_rows(comparison.methods, trainings))
    print("\nIntervals: over trainings and images, 95 %.\n")
    header = ("score", "correlation with the share", "with the precision", "by training")
    print_table(header, score_rows(comparison.methods, trainings))
    print("\nIntervals: over trainings alone, 95 %.")


if __name__ == "__main__":
    main(**parse_options(main))
