"""Scaling over processes on one machine: the comparison of methods in 1, 2 and 4 processes of one device each.

Each process has one core, the n-th that of n modulo the machine's. "Strong": the images are shared; "weak": each
process has as many. From a finished demo, whose classifier is explained. What a process compiles it reads from a cache
that an earlier run filled. The seconds are the stage's, the seconds of CPU those of all processes with their starts.

python -m benchmarks.hosts [--run runs/shapes] [--processes 1,2,4] [--images 256] [--options key=value,...]
"""

import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.command import parse_options
from benchmarks.seeds import copy_stages
from benchmarks.tables import print_table

ROOT = Path(__file__).parent.parent
OPTIONS = ("methods.split=train", "methods.compared=('transformer_attribution','rollout')")


def start(workdir: Path, count: int, images: int, options: Sequence[str]) -> list[subprocess.Popen]:
    """Starts stage `methods` in `count` processes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XDG_CACHE_HOME": str(workdir.parent / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05",
    }
    command = [sys.executable, "evaluate.py", "--config=configs/shapes.py", f"--workdir={workdir}"]
    command += ["--config.stages=methods", f"--config.methods.images={images}"]
    command += [f"--config.{option}" for option in (*OPTIONS, *options)]
    several = [f"--coordinator_address=127.0.0.1:{port}", f"--num_processes={count}"]
    return [
        subprocess.Popen(
            command + ([*several, f"--process_id={index}"] if count > 1 else []),
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda index=index: os.sched_setaffinity(0, {index % os.cpu_count()}),
        )
        for index in range(count)
    ]


def measure(run: Path, count: int, images: int, options: Sequence[str]) -> tuple[float, float]:
    """Seconds of the stage, and of CPU of all processes from their start; the second of two runs."""
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(2):
            workdir = Path(folder) / f"run{turn}"
            workdir.mkdir()
            copy_stages(run, workdir, ["classifier"])
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            started = start(workdir, count, images, options)
            messages = [process.communicate()[1] for process in started]
            for process, message in zip(started, messages, strict=True):
                if process.returncode:
                    raise RuntimeError(f"a process ended with {process.returncode}: {message}")
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        record = json.loads((workdir / "methods/stage.json").read_text())
        return record["seconds"], cpu


def rows(
    run: Path, processes: Sequence[int], images: int, options: Sequence[str]
) -> Iterator[tuple[str, ...]]:
    """A row for each number of processes, with the same images in all and in each."""
    for kind, each in (("strong", False), ("weak", True)):
        first = None
        for count in processes:
            total = images * count if each else images
            seconds, cpu = measure(run, count, total, options)
            first = first or seconds
            yield (
                kind,
                str(count),
                str(total),
                f"{seconds:.1f}",
                f"{first / seconds:.2f}",
                f"{cpu:.1f}",
            )


def main(
    run: str = "runs/shapes",
    processes: tuple[int, ...] = (1, 2, 4),
    images: int = 256,
    options: str = "",
) -> None:
    """Prints a table in Markdown; `run` is the demo's workdir."""
    print(f"{os.cpu_count()} cores\n")
    header = ("scaling", "processes", "images", "seconds", "first's seconds / these", "s of CPU")
    given = [option for option in options.split(",") if option]
    print_table(header, rows(Path(run).resolve(), processes, images, given))


if __name__ == "__main__":
    main(**parse_options(main))
