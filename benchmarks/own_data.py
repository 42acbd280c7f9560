"""The pipeline from scratch on more than a thousand small images in VOC's layout, with their own class list.

Writes a part of the embedded dataset as folders of JPEGs, masks and lists, like a user's own data; then runs train.py
and evaluate.py with configs/voc_small.py, which resume. Prints the seconds of each stage and the scores.

python -m benchmarks.own_data [--out runs/own_data] [--train 1300] [--val 200]
"""

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

from benchmarks.command import parse_options
from benchmarks.tables import print_table
from vitx.data.palette import encode_mask
from vitx.data.source import open_source

ROOT = Path(__file__).parent.parent
STAGES = ("classifier", "seeds", "labels", "affinity", "masks")


def export(folder: Path, root: str, parts: dict[str, int]) -> Path:
    """Writes so many images of each split below `folder`, and beside it a file of classes, which it returns.

    There are no annotations: labels follow from the masks.
    """
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for split, count in parts.items():
        source = open_source("shapes", f"{split}[:{count}]", root)
        identifiers = []
        for example in source:
            identifiers.append(f"{split} {example.id}")
            picture = Image.fromarray(example.image)
            picture.save(folder / f"JPEGImages/{identifiers[-1]}.jpg", quality=95)
            mask = folder / f"SegmentationClass/{identifiers[-1]}.png"
            mask.write_bytes(encode_mask(example.mask))
        listed = folder / f"ImageSets/Segmentation/{split}.txt"
        listed.write_text("".join(f"{identifier}\n" for identifier in identifiers))
    classes = folder.with_name("classes.txt")
    classes.write_text("".join(f"{name}\n" for name in source.classes))
    return classes


def main(out: str = "runs/own_data", root: str = "data", train: int = 1300, val: int = 200) -> None:
    """Prints two tables in Markdown; `root` is the embedded dataset's folder, `train` and `val` numbers of images."""
    folder = Path(out).resolve()
    classes = export(folder / "images", root, {"train": train, "val": val})
    for script in ("train.py", "evaluate.py"):
        options = [f"--config.data.root={folder / 'images'}", f"--config.data.classes={classes}"]
        command = [sys.executable, script, "--config=configs/voc_small.py", *options]
        subprocess.run([*command, f"--workdir={folder / 'run'}"], cwd=ROOT, check=True)

    records = {name: _read(folder / "run" / name / "stage.json") for name in STAGES}
    seconds = ((name, f"{record['seconds']:.0f}") for name, record in records.items())
    print_table(("stage", "seconds"), seconds)
    results = _read(folder / "run/results.json")
    names = ("seeds", "crf_low", "crf_high", "masks")
    print()
    print_table(
        ("result", "mIoU on val, %"), ((n, f"{100 * results[n]['miou']:.1f}") for n in names)
    )


def _read(file: Path) -> dict:
    return json.loads(file.read_text())


if __name__ == "__main__":
    main(**parse_options(main))
