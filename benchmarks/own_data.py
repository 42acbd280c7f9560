"""The pipeline from scratch on small images in VOC's layout, with their own class lists: two made datasets.

"drawings" have classes of an outline and a hue on dull grounds. "photographs" are crops of photographs with objects
whose colours are another photograph's. train.py and evaluate.py run with configs/voc_small.py and the same options on
both, and resume. Prints for each dataset the mIoU of every kind of mask, the seconds of each stage, and the
classifier's mAP.

python -m benchmarks.own_data [--datasets drawings,photographs] [--options key=value,...] [--out runs/own_data]
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import parse_options
from benchmarks.made_photographs import SIZE, make_photographs
from benchmarks.tables import print_table
from tests.made_voc import make_voc
from vitx.pipeline.controls_section import TITLES

ROOT = Path(__file__).parent.parent
STAGES = ("classifier", "seeds", "labels", "affinity", "masks", "controls")


def make_drawings(folder: Path, train: int, val: int) -> Sequence[str]:
    """The images, masks and lists of `tests.made_voc`; returns the classes."""
    classes = ("background", "ball", "crate", "funnel", "cross", "hoop")
    return make_voc(folder, train, val=val, size=SIZE, classes=classes, keep=False).classes


DATASETS: Mapping[str, Callable[[Path, int, int], Sequence[str]]] = {
    "drawings": make_drawings,
    "photographs": make_photographs,
}


def made(folder: Path, dataset: str, train: int, val: int) -> list[str]:
    """Makes a dataset in `folder`/images, once; returns the options that name it."""
    listed = folder / "classes.txt"
    if not listed.exists():
        classes = DATASETS[dataset](folder / "images", train, val)
        listed.write_text("".join(f"{name}\n" for name in classes))
    return [f"--config.data.root={folder / 'images'}", f"--config.data.classes={listed}"]


def run(folder: Path, dataset: str, train: int, val: int, options: Sequence[str]) -> None:
    """Runs both scripts on a made dataset in `folder`/run."""
    given = [*made(folder, dataset, train, val), *options]
    for script in ("train.py", "evaluate.py"):
        command = [sys.executable, script, "--config=configs/voc_small.py", *given]
        subprocess.run([*command, f"--workdir={folder / 'run'}"], cwd=ROOT, check=True)


def rows(figures: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, str, str]]:
    """A row for each kind of mask, from stage controls: its mIoU, and how far the refined masks are ahead."""
    for name, found in figures.items():
        low, high = (f"{100 * end:.1f}" for end in found["interval"])
        least, most = (f"{100 * end:+.1f}" for end in found["ahead_interval"])
        ahead = f"{100 * found['ahead']:+.1f} [{least}, {most}]"
        yield TITLES[name], f"{100 * found['miou']:.1f}", f"{low} to {high}", ahead


def main(
    datasets: Sequence[str] = tuple(DATASETS),
    options: str = "",
    out: str = "runs/own_data",
    train: int = 1200,
    val: int = 200,
) -> None:
    """Prints a table for each dataset; the datasets and workdirs are in `out`, `train` and `val` numbers of images."""
    given = [f"--config.{option}" for option in options.split(",") if option]
    for dataset in datasets:
        folder = Path(out).resolve() / dataset
        run(folder, dataset, train, val, given)
        results = _read(folder / "run/results.json")
        print(f"\n{dataset}, {train} training and {val} validation images, one run\n")
        header = ("masks", "mIoU on val, %", "95 %", "refined masks are ahead by")
        print_table(header, rows(results["controls"]["figures"]))
        seconds = (
            f"{s} {_read(folder / 'run' / s / 'stage.json')['seconds']:.0f} s" for s in STAGES
        )
        precision = _read(folder / "run/classifier/scores.json")["map"]
        print(f"\nThe classifier's mAP is {100 * precision:.1f} %. Stages: {', '.join(seconds)}.")


def _read(file: Path) -> Any:
    return json.loads(file.read_text())


if __name__ == "__main__":
    main(**parse_options(main))
