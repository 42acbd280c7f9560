"""Which changes of how a run is started keep its bits, and by how much the others move its results.

Runs the small pipeline (configs/testing.py) once as it is, and once for each change; then compares, stage by stage,
with the first run: weights, seeds, labels, masks, and the masks' mIoU on val. Prints a table in Markdown.

python -m benchmarks.reproducibility [--out runs/reproducibility]
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from vitx.data.palette import decode_mask
from vitx.runtime.files import read_npz

ROOT = Path(__file__).parent.parent
DEVICES = "--xla_force_host_platform_device_count=2"


@dataclasses.dataclass(frozen=True)
class Change:
    """A way to start the pipeline that differs from the first run's."""

    name: str
    title: str
    options: Sequence[str] = ()
    cores: int = 0  # 0: all
    devices: bool = False  # two virtual devices
    trained: bool = False  # begins with the first run's classifier


CHANGES = (
    Change("again", "the same command again"),
    Change("workers", "`data.workers` 2 instead of 0", ["--config.data.workers=2"]),
    Change("seeds_batch", "`seeds.batch_size` 4 instead of 6", ["--config.seeds.batch_size=4"]),
    Change("one_core", "one core instead of two", cores=1),
    Change(
        "one_core_trained", "one core, from the same trained classifier on", cores=1, trained=True
    ),
    Change("two_devices", "two (virtual) devices instead of one", devices=True),
    Change("pmap", "two devices, `parallel=pmap`", ["--config.parallel=pmap"], devices=True),
    Change("crf", "`labels.backend` jax instead of exact", ["--config.labels.backend=jax"]),
    Change("seed", "`seed` 1 instead of 0", ["--config.seed=1"]),
)


def start(workdir: Path, data: Path, change: Change) -> None:
    """Runs both scripts in a workdir to their end."""
    environment = dict(os.environ)
    if change.devices:
        environment["XLA_FLAGS"] = DEVICES
    cores = sorted(os.sched_getaffinity(0))[: change.cores or None]
    for script in ("train.py", "evaluate.py"):
        stages = "classifier,seeds,labels,affinity" if script == "train.py" else "masks"
        command = [sys.executable, script, "--config=configs/testing.py", f"--workdir={workdir}"]
        command += [f"--config.data.root={data}", f"--config.stages={stages}", *change.options]
        subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            check=True,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )


def weights(one: Path, other: Path) -> str:
    """Largest difference of the trained classifiers' weights."""
    first, second = (load_file(path / "classifier/model.safetensors") for path in (one, other))
    return _figure(max(float(np.abs(first[name] - second[name]).max()) for name in first))


def seeds(one: Path, other: Path) -> str:
    """Mean absolute difference of the seed maps, which are in [0, 1]."""
    pairs = [
        (read_npz(path)["cues"], read_npz(other / path.relative_to(one))["cues"])
        for path in sorted((one / "seeds").glob("*/*.npz"))
    ]
    return _figure(float(np.mean([np.abs(a.astype(float) - b).mean() for a, b in pairs])))


def pixels(stage: str, one: Path, other: Path) -> str:
    """Share of the pixels of a stage's PNGs that differ."""
    pairs = [
        (decode_mask(path.read_bytes()), decode_mask((other / path.relative_to(one)).read_bytes()))
        for path in sorted((one / stage).glob("*/*.png"))
    ]
    return _figure(float(np.mean(np.concatenate([(a != b).ravel() for a, b in pairs]))))


def miou(workdir: Path) -> str:
    """MIoU of the refined masks on val, in percent."""
    return f"{100 * json.loads((workdir / 'masks/scores.json').read_text())['val']['masks']['miou']:.1f}"


def _figure(value: float) -> str:
    return "equal" if value == 0 else f"{value:.1g}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/reproducibility"))
    out = parser.parse_args().out.resolve()
    first, data = out / "first", out / "data"
    start(first, data, Change("first", ""))
    print("| change | weights | seeds | labels | masks | masks' mIoU on val |")
    print("|---|---|---|---|---|---|")
    print(f"| (first run) | | | | | {miou(first)} % |")
    for change in CHANGES:
        workdir = out / change.name
        if change.trained and not workdir.exists():
            shutil.copytree(first / "classifier", workdir / "classifier")
        start(workdir, data, change)
        row = [weights(first, workdir), seeds(first, workdir)]
        row += [pixels(stage, first, workdir) for stage in ("labels", "masks")]
        print("|", " | ".join([change.title, *row, f"{miou(workdir)} %"]), "|", flush=True)


if __name__ == "__main__":
    main()
