"""Stage `report`: `results.json`, the tables in the terminal, and `report.html`, from what all stages left."""

import json
import platform
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

import jax
from rich.console import Console

from vitx import __version__, weights
from vitx.pipeline.classifier import checkpoint_digest
from vitx.pipeline.given_weights import given_weights
from vitx.pipeline.training_stage import WEIGHTS
from vitx.report.page import Section, Tile, write_report
from vitx.report.parts import Files, Fold, Table, duration
from vitx.runtime.experiment import Run, Stage
from vitx.runtime.files import write_json
from vitx.runtime.options import whole
from vitx.runtime.workdir import StageFolder
from vitx.weights.metadata import remark_on_guesses

_RESULTS, _PAGE = "results.json", "report.html"
# Packages whose version may change a number.
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pillow")


def write_summary(run: Run, stage: StageFolder) -> None:
    """Writes `results.json` and `report.html` in the workdir: what the stages of this experiment left."""
    stages = [other for other in run.stages.values() if other.part_of(run.config)]
    results = gather(run, stages)
    sections = [section for other in stages for section in other.section(run, results)]
    write_results(run, results, sections, [tile for each in stages for tile in each.tiles(results)])


def write_results(
    run: Run, results: dict[str, Any], sections: Sequence[Section], tiles: Sequence[Tile]
) -> None:
    """Writes `results.json`, and `report.html` with the sections and what each page ends with."""
    sections = [*sections]
    if assumed := results.get("assumed"):
        sections.append(Section("Assumed", list(assumed.values())))
    if left_out := results["dataset"]["left_out"]:
        sections.append(Section("Left out", [Fold("Images that cannot be read", left_out)]))
    sections.append(Section("Files", [_FILES, _files(run, results["stages"])]))
    sections.append(Section("Options", [Fold("All options", run.config.to_dict())]))
    write_json(run.workdir.folder / _RESULTS, results)
    write_report(
        run.workdir.folder / _PAGE,
        title=f"vitx on {run.config.data.name}: {run.config.report.title}",
        summary=run.config.report.summary,
        results=results,
        sections=sections,
        tiles=tiles,
    )


_FILES = "What the figures come from, in the run's folder. Links work where this page lies in that folder."


def _files(run: Run, stages: Iterable[str]) -> Files:
    """`results.json`, and what each stage left."""
    paths = {"all results": [_RESULTS]}
    for name in stages:
        paths[name] = [
            f"{name}/{entry.name}{'/' * entry.is_dir()}"
            for entry in sorted((run.workdir.folder / name).iterdir())
            if not entry.name.startswith((".", "events."))  # TensorBoard's have the host's name
        ]
    return Files(paths)


def gather(run: Run, stages: list[Stage]) -> dict[str, Any]:
    """All figures of the experiment's stages, and what they were computed with.

    `classifier`, `seeds` and `masks` are those of val; `splits` has other splits.
    """
    results: dict[str, Any] = {}
    for other in stages:
        results |= other.scores(run)
    source, seconds = run.source(run.config.data.val_split), run.workdir.seconds()
    weight_files = {other.name: run.workdir.folder / other.name / WEIGHTS for other in stages}
    return results | {
        "dataset": {
            "name": source.name,
            "split": source.split,
            "images": len(source),
            "fingerprint": source.fingerprint,
            "left_out": run.sources.left_out(),
        },
        # Which stages the last command named decides nothing.
        "options": {key: value for key, value in run.config.to_dict().items() if key != "stages"},
        "checkpoint": checkpoint_digest(run),  # that training began with, or that is explained
        "given": given_weights(run, [other.name for other in stages]),  # in place of training
        "assumed": {  # of the model, as no file specifies it
            name: remark
            for name, path in weight_files.items()
            if path.exists() and (remark := remark_on_guesses(path))
        },
        "weights": {  # that the stages ended with
            name: weights.digest(path) for name, path in weight_files.items() if path.exists()
        },
        "versions": {name: version(name) for name in _PACKAGES}
        | {"vitx": __version__, "python": platform.python_version()},
        "device": jax.devices()[0].device_kind,
        "stages": {name: taken for name, taken in seconds.items() if name != STAGE.name},
    }


def show_results(run: Run) -> None:
    """Prints the tables of all stages on standard output, in percent, and where the page is."""
    folder = run.workdir.folder
    if not ((folder / _PAGE).exists() and (folder / _RESULTS).exists()):
        return
    results = json.loads((folder / _RESULTS).read_text())
    stages = [stage for stage in run.stages.values() if stage.part_of(run.config)]
    print_tables(run, [table for stage in stages for table in stage.tables(results)])


def print_tables(run: Run, tables: Sequence[Any]) -> None:
    """Prints strings and tables of rich on standard output, and where the page is."""
    console = Console(file=sys.stdout, width=120)
    for table in tables:
        console.print(table)
    print(f"\nreport: {run.workdir.folder / _PAGE}")


def _tiles(results: dict[str, Any]) -> list[Tile]:
    stages = results["stages"]
    return [Tile("Time", duration(sum(stages.values())), f"over {len(stages)} stages")]


def _section(run: Run, results: dict[str, Any]) -> list[Section]:
    times = [[name, duration(seconds)] for name, seconds in results["stages"].items()]
    return [
        Section("Time", [Table(["stage", "time"], times, "Time spent, over all starts of the run")])
    ]


STAGE = Stage(
    "report",
    write_summary,
    needs_all=True,
    keys=["report"],
    options={"report.images": whole(0), "report.extremes": whole(0)},
    tiles=_tiles,
    section=_section,
    show=show_results,
)
