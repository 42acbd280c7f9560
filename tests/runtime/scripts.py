"""Scripts that tests run in a process of their own, to kill it or to fill its disk."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def started(script: str | Path, *arguments: object) -> Iterator[subprocess.Popen]:
    """A script, as text or as a file, that sees this repository; killed at the latest when the test ends."""
    code = [str(script)] if isinstance(script, Path) else ["-c", script]
    with subprocess.Popen(
        [sys.executable, *code, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(script: str, *arguments: object) -> tuple[int, str, str]:
    """The exit code, output and errors of a script."""
    with started(script, *arguments) as process:
        output, errors = process.communicate(timeout=100)
    return process.returncode, output, errors


def alive(pid: int) -> bool:
    """Whether a process runs, and is no zombie."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
