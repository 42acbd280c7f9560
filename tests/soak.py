"""The whole pipeline at VOC's scale, undisturbed and killed in every stage: `make soak`, tens of minutes on two cores.

A generated VOC tree (tests/made_voc.py: photographs' sizes, XML, palette masks with 255, SBD's .mat files) goes through
`configs/voc.py` with the R50 hybrid at 448 and through `configs/voc_cam.py` with VGG-16, half of its images and a few
steps a stage: once undisturbed, once with each stage killed by SIGKILL after its first results. Both must end with the
same bytes. Prints seconds and peak memory of each stage.

python -m tests.soak [--folder /tmp/soak] [--images 24] [--configs voc,voc_cam]
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.made_voc import make_voc, write_sbd

ROOT = Path(__file__).parent.parent
STAGES = {
    "classifier": "train.py",
    "seeds": "train.py",
    "labels": "train.py",
    "affinity": "train.py",
    "masks": "evaluate.py",
    "segmenter": "evaluate.py",
}
BEGUN = {  # files that show that a stage has results
    "classifier": "checkpoints/[0-9]*",
    "seeds": "train/*.npz",
    "labels": "train/*.png",
    "affinity": "checkpoints/[0-9]*",
    "masks": "train/*.png",
    "segmenter": "checkpoints/[0-9]*",
}
RESULTS = (
    "*/model.safetensors",
    "*/scores.json",
    "seeds/*/*.npz",
    "labels/**/*.png",
    "masks/**/*.png",
    "segmenter/**/*.png",
)
OPTIONS = (
    "--config.data.train_split=train_aug[:50%]",
    "--config.data.val_split=val[:50%]",
    "--config.data.workers=0",
    "--config.classifier.epochs=2",
    "--config.classifier.batch_size=2",
    "--config.affinity.epochs=2",
    "--config.affinity.batch_size=2",
    "--config.segmenter.train_split=train_aug[:50%][25%:]",
    "--config.segmenter.val_split=train_aug[:50%][:25%]",
    "--config.segmenter.epochs=2",
    "--config.segmenter.batch_size=2",
    "--config.seeds.batch_size=1",  # fewer paddings than images
)
CONFIGS = {  # and their further options
    "voc": (),
    # Without pretrained weights the published rate diverges.
    "voc_cam": (
        "--config.seeds.scales=(1.0,0.5)",
        "--config.classifier.learning_rate=1e-3",
        "--config.affinity.learning_rate=1e-3",
    ),
}


def command(
    script: str,
    data: Path,
    workdir: Path,
    options: Sequence[str],
    stages: str = "",
    config: str = "configs/voc.py",
) -> list[str]:
    """The command line of a script, for all of its stages or those named."""
    return [
        sys.executable,
        script,
        f"--config={config}",
        f"--workdir={workdir}",
        f"--config.data.root={data}",
        *([f"--config.stages={stages}"] if stages else []),
        *options,
    ]


def run(
    arguments: list[str],
    log: Path,
    until: Callable[[], bool] = lambda: False,
    number: int = signal.SIGKILL,
) -> tuple[int, float, float]:
    """Runs a command, and sends it a signal once `until()` is true: exit code, seconds, and peak memory in GB."""
    start = time.monotonic()
    with log.open("a") as file:
        process = subprocess.Popen(arguments, cwd=ROOT, stdout=file, stderr=file)
        pid = sent = 0
        while not pid:
            time.sleep(0.02)
            if not sent and until():
                os.kill(process.pid, number)  # Popen's own would reap it, and its usage
                sent = 1
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, time.monotonic() - start, usage.ru_maxrss / 2**20


def undisturbed(
    data: Path, workdir: Path, options: Sequence[str], log: Path, config: str
) -> dict[str, dict]:
    """Seconds, images (those of all steps in training) and peak memory of each stage."""
    figures = {}
    for stage in STAGES:
        arguments = command(STAGES[stage], data, workdir, options, stage, config)
        code, _, gigabytes = run(arguments, log)
        if code:
            raise RuntimeError(f"{stage} ended with {code}: see {log}")
        seconds = json.loads((workdir / stage / "stage.json").read_text())["seconds"]
        images = sum(1 for _ in (workdir / "seeds").glob("*/*.npz"))
        if stage in ("classifier", "affinity", "segmenter"):
            lines = (workdir / stage / "metrics.jsonl").read_text().splitlines()
            images = max(json.loads(line)["step"] for line in lines) * 2  # of a batch
        figures[stage] = {"seconds": seconds, "images": images, "peak_gb": gigabytes}
        print(f"{stage}: {seconds:.0f} s, {gigabytes:.2f} GB", flush=True)
    return figures


def disturbed(
    data: Path, workdir: Path, options: Sequence[str], log: Path, config: str = "configs/voc.py"
) -> int:
    """Kills the script once each stage has results, and starts it again; returns the number of kills."""
    kills = 0
    for script in dict.fromkeys(STAGES.values()):
        arguments = command(script, data, workdir, options, config=config)
        for stage in (name for name, its in STAGES.items() if its == script):

            def begun(folder: Path = workdir / stage, pattern: str = BEGUN[stage]) -> bool:
                return any(folder.glob(pattern))

            code, _, _ = run(arguments, log, begun)
            kills += code == -signal.SIGKILL
            print(f"{stage}: {'killed' if code else 'ended before it was killed'}", flush=True)
        code, _, _ = run(arguments, log)
        if code:
            raise RuntimeError(f"{script}, started again, ended with {code}: see {log}")
    return kills


def different(one: Path, two: Path) -> list[str]:
    """Files of results that differ between two runs, in the folders of `STAGES`."""
    paths = {
        path.relative_to(run)
        for run in (one, two)
        for pattern in RESULTS
        for path in run.glob(pattern)
        if path.relative_to(run).parts[0] in STAGES
    }
    if not paths:
        raise RuntimeError(f"{one} has no results")

    def same(path: Path) -> bool:
        both = (one / path, two / path)
        return all(file.exists() for file in both) and both[0].read_bytes() == both[1].read_bytes()

    return sorted(str(path) for path in paths if not same(path))


def main() -> None:
    """Prints a table in Markdown for each config, and exits with 1 if its two runs differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/soak"))
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--configs", default=",".join(CONFIGS))
    parser.add_argument("options", nargs="*", help="more options of the configs")
    flags = parser.parse_args()
    data = flags.folder / "data"
    if not (data / "VOCdevkit").exists():
        third = flags.images // 3
        made = make_voc(
            data / "VOCdevkit" / "VOC2012",
            train=third,
            aug=third,
            val=flags.images - 2 * third,
            size=(375, 500),
        )
        write_sbd(made, data / "benchmark_RELEASE" / "dataset")
    for name in flags.configs.split(","):
        _soak(name, data, flags.folder / name, [*OPTIONS, *CONFIGS[name], *flags.options])


def _soak(name: str, data: Path, folder: Path, options: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config, log = f"configs/{name}.py", folder / "log.txt"
    print(f"\n{config}", flush=True)
    figures = undisturbed(data, folder / "undisturbed", options, log, config)
    print("\n| stage | seconds | seconds an image | peak memory, GB |\n|---|---|---|---|")
    for stage, found in figures.items():
        print(
            f"| {stage} | {found['seconds']:.0f} | {found['seconds'] / found['images']:.1f} | "
            f"{found['peak_gb']:.2f} |"
        )
    print(flush=True)
    kills = disturbed(data, folder / "disturbed", options, log, config)
    wrong = different(folder / "undisturbed", folder / "disturbed")
    print(f"\n{kills} of {len(STAGES)} stages were killed; {len(wrong)} files differ")
    if wrong or kills < len(STAGES):
        sys.exit("\n".join(wrong[:20]) or "a stage ended before it was killed: give it more to do")


if __name__ == "__main__":
    main()
