"""The embedded pipeline, killed by SIGKILL at random moments of every stage, and started again: the same bytes.

Each round takes a new workdir through all stages of `configs/testing.py`, and kills the run once in each of them, after
a random part of the time that the stage takes. Rounds follow until there were enough kills. What a round leaves must
be, byte by byte, what an undisturbed run left on this machine; results.json but for its times.

python -m tests.faults.kills [--kills 30] [--seed 0] [--folder runs/faults]
"""

import argparse
import json
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from tests.soak import different, run

STAGES = {
    "classifier": "train.py",
    "seeds": "train.py",
    "labels": "train.py",
    "affinity": "train.py",
    "masks": "evaluate.py",
    "methods": "evaluate.py",
    "report": "evaluate.py",
}
MORE_TIME = 1.3  # than the stage's own: some kills come in the stage after it, or between two


def command(script: str, folder: Path, workdir: Path) -> list[str]:
    """Of a script with all its stages."""
    return [
        sys.executable,
        script,
        "--config=configs/testing.py",
        f"--workdir={workdir}",
        f"--config.data.root={folder / 'data'}",
    ]


def finish(folder: Path, workdir: Path, script: str) -> None:
    """Runs a script to its end; RuntimeError where it does not end well."""
    log = folder / "log.txt"
    code, _, _ = run(command(script, folder, workdir), log)
    if code:
        raise RuntimeError(f"{script} in {workdir} ended with {code}: see {log}")


def kill_in(
    stage: str, folder: Path, workdir: Path, seconds: float, generator: random.Random
) -> bool:
    """Kills the stage's script `seconds` or less after the stage began; whether it still ran then."""
    record, delay = workdir / stage / "stage.json", generator.uniform(0, seconds)
    began: list[float] = []

    def due() -> bool:
        if not began and record.exists():
            began.append(time.monotonic())
        return bool(began) and time.monotonic() - began[0] >= delay

    code, _, _ = run(command(STAGES[stage], folder, workdir), folder / "log.txt", due)
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{stage} in {workdir} ended with {code}: see {folder / 'log.txt'}")
    return code == -signal.SIGKILL


def results(workdir: Path) -> dict:
    """`results.json` without the times, which no two runs share."""
    found = json.loads((workdir / "results.json").read_text())
    del found["stages"]
    return found


def wrong_files(undisturbed: Path, workdir: Path) -> list[str]:
    """What differs from the undisturbed run."""
    wrong = different(undisturbed, workdir)
    if results(undisturbed) != results(workdir):
        wrong.append("results.json")
    return wrong


def main() -> None:
    """Prints a table in Markdown; ends with 1 where a round differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/faults"))
    flags = parser.parse_args()
    folder = flags.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    undisturbed = folder / "undisturbed"
    for script in dict.fromkeys(STAGES.values()):
        finish(folder, undisturbed, script)
    seconds = {
        stage: json.loads((undisturbed / stage / "stage.json").read_text())["seconds"]
        for stage in STAGES
    }
    generator = random.Random(flags.seed)
    kills = dict.fromkeys(STAGES, 0)
    wrong: list[str] = []
    rounds = 0
    while sum(kills.values()) < flags.kills:
        rounds += 1
        workdir = folder / f"round{rounds}"
        for stage, script in STAGES.items():
            kills[stage] += kill_in(stage, folder, workdir, MORE_TIME * seconds[stage], generator)
            if stage in ("affinity", "report"):
                finish(folder, workdir, script)
        found = wrong_files(undisturbed, workdir)
        wrong += [f"{workdir.name}: {name}" for name in found]
        print(f"round {rounds}: {sum(kills.values())} kills, {len(found)} files differ", flush=True)
    print("\n| stage | kills |\n|---|---|")
    for stage, count in kills.items():
        print(f"| {stage} | {count} |")
    print(f"\n{sum(kills.values())} kills in {rounds} rounds (seed {flags.seed})")
    if wrong:
        sys.exit("\n".join(wrong[:20]))


if __name__ == "__main__":
    main()
