"""Every performance target, measured: one table in Markdown, and JSON beside it, in runs/bench.

python -m benchmarks [--only explanation,memory] [--quick] [--gpu] [--out runs/bench]

Each benchmark runs in a process of its own, and its ratios are of alternatives that take turns in that process. --quick
takes the smallest models, to see that everything runs. --gpu measures what only an accelerator shows.
"""

import argparse
import datetime
import importlib
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.targets import BENCHMARKS, GPU_TARGETS, TARGETS, Benchmark, Target

ROOT = Path(__file__).parent.parent
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow", "grain")


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints and writes the table; 1 where a benchmark failed, 2 where the options are wrong."""
    options = _parser().parse_args(argv)
    if options.measure:
        return _measure(options.measure, json.loads(options.options), options.out)
    try:
        device = _in_process(Benchmark("benchmarks.__main__:device"), quick=False)
        if options.gpu and device["platform"] == "cpu":
            raise ValueError(
                "--gpu wants a GPU or TPU, but JAX found only the CPU: install it with the extra cuda13, cuda12 or "
                "tpu (docs/install.md)"
            )
        chosen = choose(GPU_TARGETS if options.gpu else TARGETS, options.only)
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    names = list(dict.fromkeys(target.benchmark for target in chosen))
    # One at a time, or they would disturb each other; --quick is not about time.
    with ThreadPoolExecutor(2 if options.quick and not options.gpu else 1) as pool:
        results = dict(
            zip(names, pool.map(partial(_attempt, quick=options.quick), names), strict=True)
        )
    errors = {name: found for name, found in results.items() if isinstance(found, str)}
    figures = {name: found for name, found in results.items() if not isinstance(found, str)}
    about = {
        "command": f"python -m benchmarks{' --gpu' * options.gpu}{' --quick' * options.quick}",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "device": device,
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
    }
    rows = [judge(target, figures.get(target.benchmark, {})) for target in chosen]
    text = report(about, rows, figures, errors)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "bench.md").write_text(text)
    content = about | {"rows": rows, "figures": figures, "errors": errors}
    (options.out / "bench.json").write_text(json.dumps(content, indent=1) + "\n")
    print(text, end="")
    return 1 if errors else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--only", default="", help="rows to measure, separated by commas")
    parser.add_argument("--quick", action="store_true", help="the smallest models: does it run?")
    parser.add_argument("--gpu", action="store_true", help="what only an accelerator shows")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="where results go")
    # A child's: the function it measures, and its arguments.
    parser.add_argument("--measure", default="", help=argparse.SUPPRESS)
    parser.add_argument("--options", default="{}", help=argparse.SUPPRESS)
    return parser


def choose(targets: Sequence[Target], only: str) -> list[Target]:
    """Those that `only` names, or all.

    Raises:
      ValueError: for a name that no target has.
    """
    names = [name.strip() for name in only.split(",") if name.strip()]
    known = [target.name for target in targets]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"--only: there is no row {unknown[0]!r}; rows are {', '.join(known)}")
    return [target for target in targets if not names or target.name in names]


def judge(target: Target, figures: Mapping[str, float]) -> dict[str, Any]:
    """A row of the table: the figure over its limit, and whether that is met; None where it is not known."""
    figure = figures.get(target.figure)
    limit = figures.get(target.limit) if isinstance(target.limit, str) else target.limit
    ratio = met = None
    if figure is not None and limit is not None:
        ratio = figure / limit
        met = bool(ratio <= 1 if target.at_most else ratio >= 1)
    return {
        "name": target.name,
        "target": target.text,
        "yardstick": target.yardstick,
        "figure": figure,
        "unit": target.unit,
        "limit": limit,
        "ratio": ratio,
        "met": met,
    }


def report(
    about: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    figures: Mapping[str, Mapping[str, Any]],
    errors: Mapping[str, str],
) -> str:
    """The table in Markdown, with what it was measured on, and every figure by its name."""
    device = about["device"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines = [
        "# Benchmarks",
        "",
        f"`{about['command']}`, {about['date']}, commit {about['commit'] or 'unknown'}; "
        f"{device['count']} x {device['kind']}, {device['cores']} cores; {versions}.",
        "Ratio: the figure over the limit that the target names.",
        "",
        "| target | yardstick | figure | ratio | met |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        figure = "not measured" if row["figure"] is None else f"{row['figure']:.3g} {row['unit']}"
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        met = {True: "yes", False: "no", None: "-"}[row["met"]]
        lines.append(f"| {row['target']} | {row['yardstick']} | {figure} | {ratio} | {met} |")
    lines.append("")
    for name, found in figures.items():
        values = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
        lines.append(f"- {name}: {values}")
    lines += [f"- {name} failed: {error}" for name, error in errors.items()]
    return "\n".join(lines) + "\n"


def device() -> dict[str, Any]:
    """What JAX computes on, and the cores that feed it."""
    import jax

    first = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": jax.device_count(),
        "cores": cores,
    }


def _attempt(name: str, quick: bool) -> dict[str, Any] | str:
    """A benchmark's figures, or why there are none."""
    start = time.monotonic()
    try:
        found: dict[str, Any] | str = _in_process(BENCHMARKS[name], quick)
        ended = "done"
    except RuntimeError as error:
        found = ended = str(error)
    print(f"{name}: {ended} in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return found


def _in_process(benchmark: Benchmark, quick: bool) -> dict[str, Any]:
    """What the benchmark's function returns in a process of its own.

    Raises:
      RuntimeError: with the process's last line, where it failed.
    """
    environment = {**os.environ, **benchmark.environment}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # or nothing would be compiled
    if quick:
        environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    options = json.dumps(benchmark.quick if quick else benchmark.options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "benchmarks", f"--measure={benchmark.function}"]
        ended = subprocess.run(
            [*command, f"--options={options}", f"--out={path}"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if ended.returncode:
            print(ended.stderr, end="", file=sys.stderr)
            lines = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
            raise RuntimeError(lines[-1])
        return json.loads(path.read_text())


def _measure(function: str, options: Mapping[str, Any], out: Path) -> int:
    """What a child does; the last line that it prints says what went wrong."""
    module, name = function.split(":")
    try:
        found = getattr(importlib.import_module(module), name)(**options)
        wrong = [k for k, v in found.items() if isinstance(v, float) and not math.isfinite(v)]
        if wrong:
            raise ValueError(f"{function} gave no finite {', '.join(wrong)}")
    except Exception as error:
        traceback.print_exc()
        summary = next(iter(str(error).strip().splitlines()), "no further message, see above")
        print(f"{type(error).__name__}: {summary}", file=sys.stderr)
        return 1
    out.write_text(json.dumps(found))
    return 0


def _commit() -> str | None:
    """The commit of the working tree, marked where that differs; None without Git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return ended.stdout.strip() if ended.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main())
