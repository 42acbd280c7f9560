"""Which changes of how a run is started keep its bits, and by how much the others move its results.

Runs the small pipeline (configs/testing.py) once unchanged, and once for each change; then compares each stage with the
first run: weights, seeds, labels, masks, and the masks' mIoU on val. Prints a table in Markdown.

python -m benchmarks.reproducibility [--out runs/reproducibility]
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file

from benchmarks.command import parse_options
from benchmarks.tables import print_table
from vitx.data.palette import decode_mask
from vitx.runtime.files import read_npz

ROOT = Path(__file__).parent.parent


class Change(NamedTuple):
    """A way to start the pipeline that differs from the first run's."""

    name: str
    title: str
    option: str = ""
    cores: int | None = None  # None: all
    devices: bool = False  # two virtual devices
    trained: bool = False  # starts with the first run's classifier


FIRST = Change("first", "(first run)")
CHANGES = (
    Change("again", "the same command again"),
    Change("workers", "`data.workers` 2 instead of 0", "data.workers=2"),
    Change("seeds_batch", "`seeds.batch_size` 4 instead of 6", "seeds.batch_size=4"),
    Change("one_core", "one core instead of two", cores=1),
    Change(
        "one_core_trained", "one core, from the same trained classifier on", cores=1, trained=True
    ),
    Change("two_devices", "two (virtual) devices instead of one", devices=True),
    Change("pmap", "two devices, `parallel=pmap`", "parallel=pmap", devices=True),
    Change("crf", "`labels.backend` jax instead of exact", "labels.backend=jax"),
    Change("seed", "`seed` 1 instead of 0", "seed=1"),
)


def run(out: Path, change: Change) -> Path:
    """Runs both scripts to their end; returns the workdir."""
    workdir = out / change.name
    environment = dict(os.environ)
    if change.devices:
        environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    cores = sorted(os.sched_getaffinity(0))[: change.cores]
    for script, stages in (
        ("train.py", "classifier,seeds,labels,affinity"),
        ("evaluate.py", "masks"),
    ):
        command = [sys.executable, script, "--config=configs/testing.py", f"--workdir={workdir}"]
        command += [f"--config.data.root={out / 'data'}", f"--config.stages={stages}"]
        if change.option:
            command.append(f"--config.{change.option}")
        subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            check=True,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
    return workdir


def differences(one: Path, other: Path) -> Iterator[float]:
    """Between two workdirs: weights, seeds, labels, masks.

    The largest difference of a weight of the classifiers, the mean absolute difference of the seed maps, which are in
    [0, 1], and the share of the pixels that differ in labels and in masks.
    """

    def pairs(pattern: str, read: Callable[[Path], Any]) -> list[tuple[Any, Any]]:
        files = sorted(one.glob(pattern))
        return [(read(file), read(other / file.relative_to(one))) for file in files]

    ((first, second),) = pairs("classifier/model.safetensors", load_file)
    yield max(float(np.abs(first[name] - second[name]).max()) for name in first)
    maps = pairs("seeds/*/*.npz", lambda file: read_npz(file)["cues"].astype(float))
    yield float(np.mean([np.abs(a - b).mean() for a, b in maps]))
    for stage in ("labels", "masks"):
        masks = pairs(f"{stage}/*/*.png", lambda file: decode_mask(file.read_bytes()))
        yield float(np.mean(np.concatenate([(a != b).ravel() for a, b in masks])))


def miou(workdir: Path) -> str:
    """MIoU of the refined masks on val, in percent."""
    scores = json.loads((workdir / "masks/scores.json").read_text())
    return f"{100 * scores['val']['masks']['miou']:.1f} %"


def rows(out: Path) -> Iterator[list[str]]:
    """The rows of the table: the first run, and each change as its runs end."""
    first = run(out, FIRST)
    yield [FIRST.title, "", "", "", "", miou(first)]
    for change in CHANGES:
        workdir = out / change.name
        if change.trained and not workdir.exists():
            shutil.copytree(first / "classifier", workdir / "classifier")
        run(out, change)
        figures = [f"{x:.1g}" if x else "equal" for x in differences(first, workdir)]
        yield [change.title, *figures, miou(workdir)]


def main(out: str = "runs/reproducibility") -> None:
    """Prints the table; the workdirs are in `out`."""
    header = ("change", "weights", "seeds", "labels", "masks", "masks' mIoU on val")
    print_table(header, rows(Path(out).resolve()))


if __name__ == "__main__":
    main(**parse_options(main))
