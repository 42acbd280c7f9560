"""Class activation maps and relevance as seeds, like for like: does the paper's conclusion hold on small images?

[Re] concludes from Table 4 that CNNs give better seeds. Here a small CNN and a small hybrid learn from the same images.
Their maps go through the same steps with the same candidates of options, of which the same training images choose: only
the model, its training, its maps and AffinityNet's levels differ. A hybrid has CAMs where its head reads the mean of
the patches; that of `configs/shapes.py` reads the class token. The images are those of `shapes`, or "photographs" in
VOC's layout (benchmarks/own_data.py), on which the walk takes the affinity of the classifier's features. Prints tables
in Markdown. A second start goes on where the first ended.

python -m benchmarks.cam [--seeds 5] [--dataset shapes] [--options key=value,...] [--out runs/cam]
    [--systems vgg_cam,attribution] [--train 1200] [--val 400]
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.command import parse_options
from benchmarks.own_data import made
from benchmarks.seeds import TRAINING, copy_stages, half_width, run
from benchmarks.tables import print_table

KINDS = {
    "seeds": "seeds",
    "crf_low": "CRF'd seeds, low alpha",
    "crf_high": "CRF'd seeds, high alpha",
    "masks": "refined masks",
}
REFERENCE = "attribution"


class System(NamedTuple):
    """A model and its maps: title, the options that differ from configs/shapes.py, and whose classifier it has."""

    title: str
    options: Mapping[str, str]
    classifier: str = ""


_VGG = {
    "model.name": "vgg_mini_cam",
    "model.image_size": "192",  # 48 x 48 pixels, enlarged: at their own, a cell would see them whole
    "classifier.epochs": "6",
    "classifier.learning_rate": "2e-3",
    "affinity.levels": "('conv2','conv3','conv4','fc7')",
    "walk.levels": "('conv3','fc7')",
    "affinity.learning_rate": "0.02",
}
_GAP = {"model.name": "vit_mini_conv_full_gap_s4_48"}
SYSTEMS = {
    REFERENCE: System("hybrid, class token: transformer attribution", {}),
    "gap": System("hybrid, mean of patches: transformer attribution", _GAP),
    "gap_cam": System("hybrid, mean of patches: CAM", _GAP | {"seeds.method": "cam"}, "gap"),
    "vgg_cam": System("VGG: CAM", _VGG | {"seeds.method": "cam"}),
}


def figures(workdir: Path) -> list[float]:
    """Percent: the classifier's mAP, and the mIoU of each of `KINDS` on val."""
    precision = json.loads((workdir / "classifier/scores.json").read_text())["map"]
    scores = json.loads((workdir / "masks/scores.json").read_text())["val"]
    return [100 * precision, *(100 * scores[kind]["miou"] for kind in KINDS)]


def rows(found: Mapping[str, np.ndarray]) -> Iterator[list[str]]:
    """A row for each system, of its figures (seeds, kinds): mean and standard deviation over the seeds."""
    for name, values in found.items():
        several = len(values) > 1
        cells = [
            f"{column.mean():.1f}" + (f" ± {column.std(ddof=1):.1f}" if several else "")
            for column in values.T
        ]
        yield [SYSTEMS[name].title, *cells]


def differences(found: Mapping[str, np.ndarray], reference: str) -> Iterator[list[str]]:
    """A row for each other system: how far it is ahead of the reference, with 95 % intervals, paired by seed."""
    for name, values in found.items():
        if name == reference:
            continue
        cells = []
        for ahead in (values - found[reference]).T:
            half = half_width(ahead, np.zeros(2))
            interval = f" [{ahead.mean() - half:+.1f}, {ahead.mean() + half:+.1f}]"
            cells.append(f"{ahead.mean():+.1f}" + (interval if len(ahead) > 1 else ""))
        yield [SYSTEMS[name].title, *cells]


def measured(folder: Path, seed: int, name: str, config: str, common: Sequence[str]) -> list[float]:
    """The figures of a system, whose stages run where they are not done."""
    system, workdir = SYSTEMS[name], folder / f"seed{seed}_{name}"
    own = [f"--config.{key}={value}" for key, value in system.options.items()]
    source = folder / f"seed{seed}_{system.classifier}"
    if (source / "classifier/stage.json").exists():
        copy_stages(source, workdir, ["classifier"])
    # The script wants the config first; of a key the last counts.
    arguments = [f"--config={config}", *own, *common, f"--config.seed={seed}"]
    trains = "--config.walk.affinity=features" not in common
    run(workdir, arguments, training=TRAINING if trains else TRAINING[:-1])
    return figures(workdir)


def main(
    seeds: int = 5,
    dataset: str = "shapes",
    options: str = "",
    out: str = "runs/cam",
    systems: str = ",".join(SYSTEMS),
    train: int = 1200,
    val: int = 400,
) -> None:
    """Prints the tables; the workdirs are in `out`."""
    folder, found = Path(out).resolve(), {}
    config, common = "configs/shapes.py", []
    if dataset != "shapes":
        config, common = "configs/voc_small.py", made(folder, dataset, train, val)
        common += ["--config.walk.affinity=features", "--config.classifier.epochs=20"]
    common += [f"--config.{option}" for option in options.split(",") if option]
    for seed in range(seeds):
        for name in systems.split(","):
            found.setdefault(name, []).append(measured(folder, seed, name, config, common))
    arrays = {name: np.array(values) for name, values in found.items()}
    print_table(("percent", "classifier's mAP", *KINDS.values()), rows(arrays))
    if REFERENCE in arrays:
        print(f"\nAhead of {SYSTEMS[REFERENCE].title}, points:\n")
        print_table(
            ("percent", "classifier's mAP", *KINDS.values()), differences(arrays, REFERENCE)
        )


if __name__ == "__main__":
    main(**parse_options(main))
