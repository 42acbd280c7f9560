"""The pipeline from scratch on more than a thousand small images in VOC's layout, with a class list of their own.

Writes a part of the embedded dataset as folders of JPEGs, masks and lists, as a user's data would come; then runs
train.py and evaluate.py with configs/voc_small.py, which resume. Prints the seconds of each stage and the scores.

python -m benchmarks.own_data [--out runs/own_data] [--train 1300] [--val 200]
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

from vitx.data.palette import encode_mask
from vitx.data.source import open_source

ROOT = Path(__file__).parent.parent
STAGES = ("classifier", "seeds", "labels", "affinity", "masks")


def export(folder: Path, root: Path, parts: dict[str, int]) -> Path:
    """Writes so many images of each split below `folder`, and a file of classes beside it, which it returns.

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
        listed = "".join(f"{identifier}\n" for identifier in identifiers)
        (folder / f"ImageSets/Segmentation/{split}.txt").write_text(listed)
    classes = folder.with_name("classes.txt")
    classes.write_text("".join(f"{name}\n" for name in source.classes))
    return classes


def main() -> None:
    """Prints two tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/own_data"))
    parser.add_argument("--root", default="data", help="where the embedded dataset is")
    parser.add_argument("--train", type=int, default=1300)
    parser.add_argument("--val", type=int, default=200)
    flags = parser.parse_args()
    out = flags.out.resolve()
    classes = export(out / "images", flags.root, {"train": flags.train, "val": flags.val})
    for script in ("train.py", "evaluate.py"):
        options = [f"--config.data.root={out / 'images'}", f"--config.data.classes={classes}"]
        command = [sys.executable, script, "--config=configs/voc_small.py", *options]
        subprocess.run([*command, f"--workdir={out / 'run'}"], cwd=ROOT, check=True)

    print("| stage | seconds |\n|---|---|")
    for stage in STAGES:
        record = json.loads((out / "run" / stage / "stage.json").read_text())
        print(f"| {stage} | {record['seconds']:.0f} |")
    results = json.loads((out / "run" / "results.json").read_text())
    print("\n| result | mIoU on val, % |\n|---|---|")
    for name in ("seeds", "crf_low", "crf_high", "masks"):
        print(f"| {name} | {100 * results[name]['miou']:.1f} |")


if __name__ == "__main__":
    main()
