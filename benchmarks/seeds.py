"""The pipeline for several seeds: mean and spread of every kind of mask and of the network, what each step adds.

Runs both scripts for each seed, and once more from the same trained stages for each variant: options chosen without
masks, and AffinityNet on the stem's last map alone. Prints tables in Markdown. A second start goes on where the first
ended.

python -m benchmarks.seeds [--seeds 5] [--config configs/shapes.py] [--options key=value,...] [--out runs/seeds]
    [--variants auto,single]
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import scipy.stats

from benchmarks.command import parse_options
from benchmarks.pairs import pairs_auc
from benchmarks.tables import print_table
from vitx.evaluation.metrics import mean_iou
from vitx.pipeline.controls import CONFUSIONS, REFINED
from vitx.pipeline.controls_section import TITLES
from vitx.runtime.files import read_npz

ROOT = Path(__file__).parent.parent
TRAINING = ("classifier", "seeds", "labels", "affinity")
AUTO, SINGLE = "auto", "single"
# The variants: options that differ, and the stages that are not run again.
VARIANTS: Mapping[str, tuple[str, Sequence[str]]] = {
    AUTO: ("--config.walk.choose=auto", TRAINING),
    SINGLE: ("--config.affinity.levels=()", TRAINING[:3]),
}


def run(
    workdir: Path,
    arguments: Sequence[str],
    last: Sequence[str] = ("masks",),
    training: Sequence[str] = TRAINING,
) -> None:
    """Runs both scripts, those stages that are not done."""
    for script, stages in (("train.py", training), ("evaluate.py", last)):
        command = [sys.executable, script, f"--workdir={workdir}", *arguments]
        command.append(f"--config.stages={','.join(stages)}")
        subprocess.run(command, cwd=ROOT, check=True)


def copy_stages(source: Path, workdir: Path, stages: Sequence[str]) -> None:
    """Copies stages that are done into another workdir, where they are missing."""
    for stage in stages:
        if not (workdir / stage).exists():
            part = workdir / f"{stage}.part"  # whole or absent, also after a kill
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(source / stage, part)
            part.rename(workdir / stage)


def tables(workdirs: Sequence[Path]) -> tuple[list[str], np.ndarray]:
    """The kinds of masks, and their confusion matrices (seeds, images, kinds, C, C)."""
    found = [read_npz(workdir / "controls" / CONFUSIONS) for workdir in workdirs]
    names = [str(name) for name in found[0]["names"]]
    return names, np.stack([entry["counts"] for entry in found])


def bootstrap(counts: np.ndarray, samples: int = 1000) -> np.ndarray:
    """The mean over seeds of each kind's mIoU (samples, kinds), images drawn with replacement, alike for all seeds."""
    generator = np.random.default_rng(0)
    images = counts.shape[1]
    drawn = []
    for _ in range(samples):
        weights = np.bincount(generator.integers(images, size=images), minlength=images)
        drawn.append(mean_iou(np.einsum("n,snkij->skij", weights, counts)).mean(0))
    return np.array(drawn)


def half_width(by_seed: np.ndarray, by_image: np.ndarray) -> float:
    """Half of the 95 % interval of a mean over seeds, which are few: Student's t with their number less one.

    The variance of the mean is that over seeds (S,) and that over bootstrap samples of the images (samples,) together.
    """
    seeds = len(by_seed)
    if seeds < 2:
        return float("nan")
    error = np.sqrt(by_seed.var(ddof=1) / seeds + by_image.var(ddof=1))
    return float(scipy.stats.t.ppf(0.975, seeds - 1) * error)


def rows(names: Sequence[str], counts: np.ndarray) -> Iterator[list[str]]:
    """A row for each kind of mask: its mIoU by seed, their mean and spread, and how far the refined masks are ahead."""
    by_seed = 100 * mean_iou(counts.sum(1))  # (seeds, kinds)
    drawn = 100 * bootstrap(counts)
    last = names.index(REFINED)
    for place, name in enumerate(names):
        found = by_seed[:, place]
        ahead = by_seed[:, last] - found
        half = half_width(ahead, drawn[:, last] - drawn[:, place])
        yield [
            TITLES[name],
            f"{found.mean():.1f}",
            f"{found.std(ddof=1):.1f}" if len(found) > 1 else "",
            f"{found.min():.1f} to {found.max():.1f}",
            f"{ahead.mean():+.1f} [{ahead.mean() - half:+.1f}, {ahead.mean() + half:+.1f}]",
            f"{ahead.min():+.1f}",
        ]


def scores(workdirs: Sequence[Path], kind: str) -> list[float]:
    """The mIoU of the masks on val, percent, by seed."""
    read = [json.loads((workdir / "masks/scores.json").read_text()) for workdir in workdirs]
    return [100 * found["val"][kind]["miou"] for found in read]


def network(workdirs: Sequence[Path]) -> list[float]:
    """The mIoU on val of the network that learned from the masks, without image labels, percent, by seed."""
    read = [json.loads((workdir / "segmenter/scores.json").read_text()) for workdir in workdirs]
    return [100 * found["miou"] for found in read]


def spread(name: str, values: Sequence[float], digits: int = 1) -> list[str]:
    """A row: the values' mean, spread, and all of them."""
    deviation = np.std(values, ddof=1) if len(values) > 1 else float("nan")
    shown = ", ".join(f"{value:.{digits}f}" for value in values)
    return [name, f"{np.mean(values):.{digits}f}", f"{deviation:.{digits}f}", shown]


def main(
    seeds: int = 5,
    config: str = "configs/shapes.py",
    options: str = "",
    out: str = "runs/seeds",
    variants: str = "auto,single",
) -> None:
    """Prints the tables; the workdirs are in `out`."""
    folder = Path(out).resolve()
    extra = [f"--config.{option}" for option in options.split(",") if option]
    workdirs: dict[str, list[Path]] = {}
    for seed in range(seeds):
        common = [f"--config={config}", f"--config.seed={seed}", *extra]
        first = folder / f"seed{seed}"
        run(first, common, ("masks", "controls", "segmenter"))
        workdirs.setdefault("", []).append(first)
        for name in filter(None, variants.split(",")):
            option, kept = VARIANTS[name]
            workdir = folder / f"seed{seed}_{name}"
            copy_stages(first, workdir, kept)
            run(workdir, [*common, option])
            workdirs.setdefault(name, []).append(workdir)
    header = ("masks", "mean", "sd", "range", "refined masks are ahead by", "least")
    print_table(header, rows(*tables(workdirs[""])))
    print()
    found = [spread("refined masks, options chosen by masks", scores(workdirs[""], "masks"))]
    seen = network(workdirs[""])
    found.append(spread("network, without image labels", seen))
    ahead = np.subtract(seen, scores(workdirs[""], "masks"))
    found.append(spread("network, ahead of the refined masks, which use them", list(ahead)))
    if AUTO in workdirs:
        found.append(spread("chosen without masks", scores(workdirs[AUTO], "masks")))
    if SINGLE in workdirs:
        found.append(
            spread("AffinityNet on the stem's last map", scores(workdirs[SINGLE], "masks"))
        )
        for name, title in (("", "several levels"), (SINGLE, "the stem's last map")):
            values = [100 * pairs_auc(workdir) for workdir in workdirs[name]]
            found.append(spread(f"AUC of pairs, {title}", values))
    precision = [
        100 * json.loads((workdir / "classifier/scores.json").read_text())["map"]
        for workdir in workdirs[""]
    ]
    print_table(
        ("percent", "mean", "sd", "by seed"), [*found, spread("classifier's mAP", precision)]
    )


if __name__ == "__main__":
    main(**parse_options(main))
