"""Runs `train.py` and `evaluate.py` many times, as children of one process that has imported what they need.

Each child is a program of its own, with its own flags, streams and exit code, at once.
"""

import contextlib
import dataclasses
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a program ended."""

    code: int
    output: str
    errors: str


class Programs:
    """Starts programs; see `programs`."""

    def __init__(self, process: subprocess.Popen, folder: Path) -> None:
        self._process, self._folder = process, folder

    def run(self, script: str, *arguments: object) -> Ended:
        """Runs a script of the repository's root to its end, in that folder."""
        to, answers = self._process.stdin, self._process.stdout
        assert to is not None and answers is not None
        print(json.dumps([script, *map(str, arguments)]), file=to, flush=True)
        code = int(answers.readline())
        output, errors = (
            (self._folder / name).read_text(errors="replace") for name in ("out", "err")
        )
        return Ended(code, output, errors)


@contextlib.contextmanager
def programs(folder: Path) -> Iterator[Programs]:
    """Imports once, on one device; keeps what the programs write in files in `folder`."""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.forked", str(folder)],
        cwd=ROOT,
        env=environment | {"XDG_CACHE_HOME": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        yield Programs(process, folder)


def _serve(requests: IO[str], folder: Path) -> None:
    import vitx.pipeline.stages  # noqa: F401  # what is imported here, children have

    for request in requests:
        script, *arguments = json.loads(request)
        child = os.fork()
        if not child:
            _be(script, arguments, folder)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _be(script: str, arguments: list[str], folder: Path) -> None:
    """Becomes the program, and ends with its exit code."""
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.argv = [script, *arguments]
    runpy.run_path(str(ROOT / script), run_name="__main__")  # ends by sys.exit, as Python does


if __name__ == "__main__":
    _serve(sys.stdin, Path(sys.argv[1]))
