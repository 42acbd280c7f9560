"""Measures every performance target: a table in Markdown, and JSON beside it, in runs/bench.

python -m benchmarks [--only explanation,memory] [--quick] [--gpu] [--out runs/bench]

Each benchmark runs in a process of its own, and its ratios are of alternatives that take turns in that process. --quick
takes the smallest models, to check that everything runs. --gpu measures what only an accelerator shows.
"""

import datetime
import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.command import parse_options
from benchmarks.process import in_process
from benchmarks.tables import judge, target_table
from benchmarks.targets import BENCHMARKS, GPU_TARGETS, TARGETS, Benchmark, Target

ROOT = Path(__file__).parent.parent
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow", "grain")


def main(
    only: str = "", quick: bool = False, gpu: bool = False, out: str | Path = "runs/bench"
) -> int:
    """Measures, prints and writes the table.

    Args:
      only: names of rows to measure, separated by commas; "" for all.
      quick: the smallest models.
      gpu: the targets of an accelerator.
      out: folder of bench.md and bench.json.

    Returns:
      1 where a benchmark failed, 2 where the options are wrong.
    """
    try:
        device = in_process(Benchmark("benchmarks.process:device"))
        if gpu and device["platform"] == "cpu":
            raise ValueError(
                "--gpu wants a GPU or TPU, but JAX found only the CPU: install it with the extra cuda13, cuda12 or "
                "tpu (docs/install.md)"
            )
        chosen = choose(GPU_TARGETS if gpu else TARGETS, only)
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    names = list(dict.fromkeys(target.benchmark for target in chosen))
    # One at a time, or they would disturb each other; the times of --quick mean nothing.
    with ThreadPoolExecutor(2 if quick and not gpu else 1) as pool:
        results = list(pool.map(partial(_figures_or_error, quick=quick), names))
    figures = {name: found for name, (found, _) in zip(names, results, strict=True) if found}
    errors = {name: error for name, (_, error) in zip(names, results, strict=True) if error}
    content: dict[str, Any] = {
        "command": f"python -m benchmarks{' --gpu' * gpu}{' --quick' * quick}",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "device": device,
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "rows": [judge(target, figures.get(target.benchmark, {})) for target in chosen],
        "figures": figures,
        "errors": errors,
    }
    text = report(content)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "bench.md").write_text(text)
    (out / "bench.json").write_text(json.dumps(content, indent=1) + "\n")
    print(text, end="")
    return 1 if errors else 0


def choose(targets: Sequence[Target], only: str) -> list[Target]:
    """The targets named in `only`, or all.

    Raises:
      ValueError: for a name that no target has.
    """
    names = [name.strip() for name in only.split(",") if name.strip()]
    known = [target.name for target in targets]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"--only: there is no row {unknown[0]!r}; rows are {', '.join(known)}")
    return [target for target in targets if not names or target.name in names]


def report(content: Mapping[str, Any]) -> str:
    """The table in Markdown, the machine and versions it was measured on, and every figure by its name."""
    device = content["device"]
    versions = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
    lines = [
        "# Benchmarks",
        "",
        f"`{content['command']}`, {content['date']}, commit {content['commit'] or 'unknown'}; "
        f"{device['count']} x {device['kind']}, {device['cores']} cores; {versions}.",
        "Ratio: the figure over the target's limit.",
        "",
        *target_table(content["rows"]),
        "",
    ]
    for name, found in content["figures"].items():
        values = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
        lines.append(f"- {name}: {values}")
    lines += [f"- {name} failed: {error}" for name, error in content["errors"].items()]
    return "\n".join(lines) + "\n"


def _figures_or_error(name: str, quick: bool) -> tuple[dict[str, Any], str]:
    start = time.monotonic()
    figures, error = {}, ""
    try:
        figures = in_process(BENCHMARKS[name], quick)
    except RuntimeError as failure:
        error = str(failure)
    print(f"{name}: {error or 'done'} in {time.monotonic() - start:.0f} s", file=sys.stderr)
    return figures, error


def _commit() -> str | None:
    """The commit of the working tree, marked if that has changes; None without Git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return ended.stdout.strip() if ended.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main(**parse_options(main)))
