"""Stage `report`: `results.json`, the printed table, and `report.html`, from what the stages left."""

import json
import platform
import sys
from importlib.metadata import version
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from vitx import __version__, weights
from vitx.pipeline.gallery import pictures
from vitx.pipeline.masks_pictures import pictures_section
from vitx.pipeline.masks_section import (
    FROM_TRUTH,
    KINDS,
    masks_section,
    scored_splits,
    training_section,
)
from vitx.pipeline.methods_section import (
    accuracies_table,
    beside_published,
    departures,
    methods_section,
    methods_table,
)
from vitx.report.page import Section, write_report
from vitx.report.parts import Fold
from vitx.runtime.experiment import DEPENDS, Run
from vitx.runtime.files import write_json
from vitx.runtime.paths import absolute
from vitx.runtime.workdir import StageFolder

_RESULTS, _PAGE = "results.json", "report.html"
_VERSIONS = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "pillow",
)  # that may change a number


def write_summary(run: Run, stage: StageFolder) -> None:
    """Writes `results.json` and `report.html` in the workdir: what the stages of this experiment left."""
    results = gather(run, stage)
    sections = []
    if "chosen" in results:
        sections += [
            masks_section(results, run.config.report.published),
            pictures_section(run, results),
        ]
    if "methods" in results:
        sections.append(
            methods_section(
                results["methods"], differing=_differing(run.config), pictures=pictures(run)
            )
        )
    sections.append(training_section(run, results))
    if left_out := run.left_out():
        sections.append(Section("Left out", [Fold("Images that cannot be read", left_out)]))
    sections.append(Section("Options", [Fold("All options", run.config.to_dict())]))
    write_json(run.workdir.folder / _RESULTS, results)
    write_report(
        run.workdir.folder / _PAGE,
        title=f"vitx on {run.config.data.name}: {run.config.report.title}",
        summary=run.config.report.summary,
        results=results,
        sections=sections,
    )


def show_results(run: Run) -> None:
    """Prints the tables and where the page is, if stage `report` is asked for and done."""
    folder = run.workdir.folder
    if "report" not in run.config.stages:
        return
    if (folder / _PAGE).exists() and (folder / _RESULTS).exists():
        print_tables(json.loads((folder / _RESULTS).read_text()))
        print(f"\nreport: {absolute(folder / _PAGE)}")


def gather(run: Run, stage: StageFolder) -> dict[str, Any]:
    """All figures of the experiment's stages.

    `classifier`, `seeds` and `masks` are those of val, other splits stand under `splits`.
    """

    def scores(name: str) -> Any:
        return json.loads((run.finished(name).folder / "scores.json").read_text())

    results: dict[str, Any] = {}
    if "walk" in run.config:
        masks = scores("masks")
        if (run.finished("seeds").folder / "scores.json").exists():  # not in older workdirs
            results["cues"] = scores("seeds")
        results |= {
            "classifier": scores("classifier"),
            **masks["val"],  # nothing, where no image has a mask
            "splits": {"train": masks["train"]},
            "chosen": masks["chosen"],
            "note": FROM_TRUTH,
        }
    if "methods" in run.config:
        results["methods"] = scores("methods")
        if run.config.report.published:
            headers, rows = beside_published(results["methods"])
            results["published"] = {
                "differing": _differing(run.config),
                "figures": [dict(zip(headers, row, strict=True)) for row in rows],
            }
    source, seconds = run.source(run.config.data.val_split), run.workdir.seconds()
    return results | {
        "dataset": {
            "name": source.name,
            "split": source.split,
            "images": len(source),
            "fingerprint": source.fingerprint,
            "left_out": run.left_out(),
        },
        # Which stages the last command named decides nothing.
        "options": {key: value for key, value in run.config.to_dict().items() if key != "stages"},
        "checkpoint": run.checkpoint_digest,  # that training began with, or that is explained
        "weights": {  # that training ended with
            name: weights.digest(run.finished(name).folder / "model.safetensors")
            for name in ("classifier", "affinity")
            if name in run.config
        },
        "versions": {name: version(name) for name in _VERSIONS}
        | {"vitx": __version__, "python": platform.python_version()},
        "device": jax.devices()[0].device_kind,
        "stages": {
            name: seconds[name]
            for name in DEPENDS
            if name in seconds and name != stage.folder.name  # which is still running
        },
    }


def _differing(config: Any) -> list[str] | None:
    return departures(config) if config.report.published else None


def print_tables(results: dict[str, Any]) -> None:
    """The main figures, in percent, on standard output."""
    console = Console(file=sys.stdout, width=120)
    if "chosen" in results:
        precision = results["classifier"]["map"]
        shown = "no image shows a class" if precision is None else f"mAP {100 * precision:.1f} %"
        console.print(f"Classifier on val: {shown}")
    if "chosen" in results and scored_splits(results):
        table = Table(title="Masks from image labels, mIoU %", caption=FROM_TRUTH)
        for column in ("", *KINDS.values(), "gain"):
            table.add_column(column, justify="right" if column else "left")
        for split, scores in scored_splits(results).items():
            found = {kind: 100 * scores[kind]["miou"] for kind in KINDS}
            gain = found["masks"] - found["seeds"]
            table.add_row(split, *(f"{value:.1f}" for value in found.values()), f"{gain:+.1f}")
        console.print(table)
    if "methods" in results:
        methods = results["methods"]
        name = f"Explanation methods, {methods['images']} images, %"
        _print(console, name, *methods_table(methods))
        if "perturbation" in methods and "chosen" not in results:  # there, the page has them
            _print(console, "Accuracy as pixels are removed, %", *accuracies_table(methods))
    if "published" in results:
        table = results["published"]["figures"]
        if results["published"]["differing"]:
            console.print(f"Not as published: {', '.join(results['published']['differing'])}.")
        rows = [list(row.values()) for row in table]
        _print(console, "Beside the published figures, %", list(table[0]), rows)


def _print(console: Console, name: str, headers: list[str], rows: list[list[str]]) -> None:
    table = Table(title=name)
    for number, header in enumerate(headers):
        table.add_column(header, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
