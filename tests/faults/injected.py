"""Faults other than kills: the run tells the user what to do, and then ends like an undisturbed one.

A fault is a function (pipeline, workdir) -> what the run printed about it. It leaves a workdir from which the same
commands go on to the end.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests import soak
from tests.faults.pipeline import STAGES, Ended, Pipeline, begun, wrong_files

Fault = Callable[[Pipeline, Path], str]
TRAIN, EVALUATE = "train.py", "evaluate.py"


def _expect(ended: Ended, code: int, *words: str) -> str:
    """The line with the first of the words; RuntimeError for another end, or where a traceback is shown."""
    missing = [word for word in words if word not in ended.printed]
    if ended.code != code or missing or "Traceback" in ended.printed:
        raise RuntimeError(
            f"ended with {ended.code}, not {code}, without {missing}: {ended.printed[-3000:]}"
        )
    return next(line.strip() for line in ended.printed.splitlines() if words[0] in line)


def _unfinished(workdir: Path, stage: str, result: str) -> Path:
    """Makes a stage look as if it was killed just before its end; returns its folder."""
    record = workdir / stage / "stage.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"done": False}))
    (workdir / stage / result).unlink()
    return workdir / stage


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for place in range(len(data) // 3, len(data), max(1, len(data) // 7)):
        data[place] ^= 0x10
    path.write_bytes(bytes(data))


def damaged_checkpoint(
    stage: str, damage: Callable[[Path], None], pipeline: Pipeline, workdir: Path
) -> str:
    """The newest checkpoint of an unfinished stage is damaged."""
    ended = pipeline.start(TRAIN, workdir, ",".join([*STAGES][: [*STAGES].index(stage) + 1]))
    _expect(ended, 0, f"{stage}: done")
    checkpoints = _unfinished(workdir, stage, "model.safetensors") / "checkpoints"
    newest = max(
        (path for path in checkpoints.iterdir() if path.name.isdigit()),
        key=lambda path: int(path.name),
    )
    largest = max(
        (path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    damage(largest)
    return _expect(pipeline.start(TRAIN, workdir, stage), 0, "damaged", f"{stage}: done")


@contextlib.contextmanager
def _mounted(workdir: Path, size: int) -> Iterator[None]:
    """A file system of `size` bytes in the place of the workdir, which keeps the files afterwards."""
    workdir.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", workdir], check=True)
    try:
        yield
    finally:
        kept = workdir.with_suffix(".kept")
        shutil.copytree(workdir, kept)
        subprocess.run(["umount", workdir], check=True)
        workdir.rmdir()
        kept.rename(workdir)


def full_disk(share: float, pipeline: Pipeline, workdir: Path) -> str:
    """The disk holds a share of what the run writes."""
    undisturbed = pipeline.folder / "undisturbed"
    used = sum(path.stat().st_blocks * 512 for path in undisturbed.rglob("*") if path.is_file())
    with _mounted(workdir, int(share * used)):
        for script in (TRAIN, EVALUATE):
            ended = pipeline.start(script, workdir)
            if ended.code:
                return _expect(ended, 1, "No space left on device", "finished work is kept")
    raise RuntimeError(f"{share} of {used} bytes were enough")


def read_only(pipeline: Pipeline, workdir: Path) -> str:
    """The workdir is read-only."""
    with _mounted(workdir, 2**28):
        _expect(pipeline.start(TRAIN, workdir, "classifier"), 0, "classifier: done")
        subprocess.run(["mount", "-o", "remount,ro", workdir], check=True)
        return _expect(pipeline.start(TRAIN, workdir), 1, "Read-only file system")


def two_runs(pipeline: Pipeline, workdir: Path) -> str:
    """A second run starts in the same workdir; the first is not disturbed."""
    command = pipeline.arguments(TRAIN, workdir, "", ())
    with (pipeline.folder / "first.txt").open("w") as log:
        first = subprocess.Popen(command, cwd=soak.ROOT, stdout=log, stderr=log)
        is_begun = begun(workdir, "classifier")
        while not is_begun() and first.poll() is None:
            pass
        second = pipeline.start(TRAIN, workdir)
        if first.wait():
            raise RuntimeError(f"the first run ended with {first.returncode}")
    return _expect(second, 1, f"is in use by pid {first.pid}")


def asked_to_stop(stage: str, number: signal.Signals, pipeline: Pipeline, workdir: Path) -> str:
    """Ctrl-C or SIGTERM in a stage."""
    script = STAGES[stage]
    if script == EVALUATE:
        _expect(pipeline.start(TRAIN, workdir), 0, "affinity: done")
    ended = pipeline.start(script, workdir, until=begun(workdir, stage), number=number)
    return _expect(ended, 128 + number, f"stopped by {number.name}; the same command goes on")


def dead_loader(pipeline: Pipeline, workdir: Path) -> str:
    """A process that decodes images is killed, as by the kernel when memory runs out."""
    options = ("--config.data.workers=2", "--config.classifier.epochs=2")
    children: list[int] = []

    def kill_a_worker() -> bool:
        if not children and (workdir / "classifier/metrics.jsonl").exists():
            children.extend(_workers())
            for child in children[:1]:
                os.kill(child, signal.SIGKILL)
        return False

    ended = pipeline.start(TRAIN, workdir, "classifier", options=options, until=kill_a_worker)
    if not children:
        raise RuntimeError("no loader process was found")
    return _expect(ended, 1, "a loader process died")


def _workers() -> list[int]:
    """The worker processes below this process."""
    found, waiting = [], [os.getpid()]
    while waiting:
        folder = Path(f"/proc/{waiting.pop()}")
        with contextlib.suppress(OSError):
            if b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
            for task in (folder / "task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
    return found


def jumping_clock(pipeline: Pipeline, workdir: Path) -> str:
    """The machine's clock jumps by hours during the run."""
    for script in (TRAIN, EVALUATE):
        ended = pipeline.start(script, workdir, around=("-m", "tests.faults.jumping_clock"))
        _expect(ended, 0, "done in")
    return "nothing"


FAULTS: dict[str, Fault] = {
    **{
        f"{stage}: newest checkpoint {name}": partial(damaged_checkpoint, stage, damage)
        for stage in ("classifier", "affinity")
        for name, damage in (("truncated", _cut), ("with flipped bits", _flip))
    },
    **{f"disk full at {share:.0%}": partial(full_disk, share) for share in (0.1, 0.5, 0.9)},
    "workdir read-only": read_only,
    "two runs in one workdir": two_runs,
    **{
        f"{stage}: {number.name}": partial(asked_to_stop, stage, number)
        for stage, number in zip(
            STAGES, [signal.SIGINT, signal.SIGTERM] * len(STAGES), strict=False
        )
    },
    "loader process killed": dead_loader,
    "clock jumps": jumping_clock,
}
NEED_ROOT = (full_disk, read_only)


def inject(pipeline: Pipeline, undisturbed: Path, chosen: str = "") -> list[str]:
    """Injects each fault in its own workdir, then runs to the end; prints a table, returns the files that differ."""
    wrong, tried, left = [], 0, 0
    print(
        "| fault | what the run prints | files that differ in the end |\n|---|---|---|", flush=True
    )
    for number, (name, fault) in enumerate(FAULTS.items()):
        if chosen not in name:
            continue
        if getattr(fault, "func", fault) in NEED_ROOT and os.geteuid():
            print(f"| {name} | not tried: it takes root to mount a file system | |", flush=True)
            left += 1
            continue
        workdir = pipeline.folder / f"fault{number}"
        printed = fault(pipeline, workdir).replace(str(pipeline.folder), "FOLDER").replace("|", "/")
        pipeline.finish(workdir)
        differ = wrong_files(undisturbed, workdir)
        wrong += [f"{name}: {file}" for file in differ]
        tried += 1
        print(f"| {name} | {printed} | {len(differ)} |", flush=True)
    print(f"\n{tried} faults, {left} not tried, {len(wrong)} files differ\n", flush=True)
    return wrong
