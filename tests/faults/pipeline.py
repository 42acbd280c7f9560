"""The embedded pipeline in a small setting, started like a user starts it, and its results compared."""

import dataclasses
import json
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests import soak

STAGES = soak.STAGES | {"methods": "evaluate.py", "report": "evaluate.py"}
SCRIPTS = tuple(dict.fromkeys(STAGES.values()))


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a start ended: its exit code, negative after a signal, and what it printed."""

    code: int
    printed: str


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Starts in workdirs below a folder, on one dataset."""

    folder: Path

    def arguments(
        self, script: str, workdir: Path, stages: str, options: Sequence[str]
    ) -> list[str]:
        """The command of a start."""
        data = self.folder / "data"
        return soak.command(script, data, workdir, options, stages, config="configs/testing.py")

    def start(
        self,
        script: str,
        workdir: Path,
        stages: str = "",
        *,
        options: Sequence[str] = (),
        until: Callable[[], bool] = lambda: False,
        number: int = signal.SIGKILL,
        around: Sequence[str] = (),
    ) -> Ended:
        """Starts all stages of a script, or some; sends a signal once `until()` is true.

        `around` goes before the script: `-m` and a module that runs it.
        """
        python, *rest = self.arguments(script, workdir, stages, options)
        log = self.folder / "log.txt"
        before = log.stat().st_size if log.exists() else 0
        code, _, _ = soak.run([python, *around, *rest], log, until, number)
        with log.open(errors="replace") as file:
            file.seek(before)
            return Ended(code, file.read())

    def finish(self, workdir: Path, *, options: Sequence[str] = ()) -> str:
        """Runs both scripts to their end, and returns what they printed; RuntimeError if one fails."""
        printed = ""
        for script in SCRIPTS:
            ended = self.start(script, workdir, options=options)
            printed += ended.printed
            if ended.code:
                raise RuntimeError(
                    f"{script} in {workdir} ended with {ended.code}: {ended.printed[-2000:]}"
                )
        return printed


def begun(workdir: Path, stage: str) -> Callable[[], bool]:
    """For `Pipeline.start`: whether this start, not an earlier one, has begun a stage."""
    record = workdir / stage / "stage.json"
    before = record.read_bytes() if record.exists() else b""
    return lambda: record.exists() and record.read_bytes() != before


def after(seconds: float, what: Callable[[], bool]) -> Callable[[], bool]:
    """For `Pipeline.start`: whether so many seconds passed since `what()` became true."""
    since: list[float] = []

    def due() -> bool:
        if not since and what():
            since.append(time.monotonic())
        return bool(since) and time.monotonic() - since[0] >= seconds

    return due


def seconds(workdir: Path) -> dict[str, float]:
    """Seconds that each stage took."""
    records = {stage: workdir / stage / "stage.json" for stage in STAGES}
    return {stage: json.loads(path.read_text())["seconds"] for stage, path in records.items()}


def wrong_files(undisturbed: Path, workdir: Path) -> list[str]:
    """Files that differ from the undisturbed run's in a byte, and results.json if more than its times differ."""
    wrong = soak.different(undisturbed, workdir)
    if _results(undisturbed) != _results(workdir):
        wrong.append("results.json")
    return wrong


def _results(workdir: Path) -> dict:
    found = json.loads((workdir / "results.json").read_text())
    found["stages"] = list(found["stages"])
    return found
