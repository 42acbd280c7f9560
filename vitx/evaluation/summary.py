"""Stage `report`: `results.json`, the printed table, and `report.html`, from what the stages left."""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from vitx.cues import seeded
from vitx.evaluation import report
from vitx.evaluation.gallery import TITLES, pictures_section
from vitx.evaluation.report import Section
from vitx.relevance.explain import METHODS
from vitx.run import read_metrics
from vitx.stages import Run
from vitx.workdir import Stage, write_json

_RESULTS, _PAGE = "results.json", "report.html"
FROM_TRUTH = (
    "Which classes an image shows is taken from its ground-truth label, for seeds and masks and on val too: "
    "these figures measure pseudo-masks, not a segmentation network."
)


def write_summary(run: Run, stage: Stage) -> None:
    """Writes `results.json` and `report.html` in the workdir."""
    results = gather(run, stage)
    write_json(run.workdir.folder / _RESULTS, results)
    report.write_report(
        run.workdir.folder / _PAGE,
        title=f"vitx on {run.config.data.name}: image labels to masks",
        summary="A hybrid ViT learns from image labels what is shown; its explanations become seeds, a dense CRF and "
        "AffinityNet refine them into masks.",
        results=results,
        sections=[
            _masks_section(run, results),
            pictures_section(run, results),
            _methods_section(results),
            _training_section(run, results),
            Section("Options", [report.facts(run.config.to_dict(), "All options of this run")]),
        ],
    )


def show_results(folder: Path) -> None:
    """Prints the table and where the page is, if the report has been made."""
    if (folder / _PAGE).exists() and (folder / _RESULTS).exists():
        print_table(json.loads((folder / _RESULTS).read_text()))
        print(f"\nreport: {(folder / _PAGE).resolve()}")


def gather(run: Run, stage: Stage) -> dict[str, Any]:
    """All figures: `classifier`, `seeds` and `masks` are those of val, other splits stand under `splits`."""

    def scores(name: str) -> Any:
        return json.loads((run.finished(name).folder / "scores.json").read_text())

    masks, methods = scores("masks"), scores("methods")
    source = seeded(run, "val")
    return {
        "classifier": scores("classifier"),
        "seeds": masks["val"]["seeds"],
        "masks": masks["val"]["masks"],
        "splits": {"train": masks["train"]},
        "chosen": masks["chosen"],
        "methods": methods,
        "note": FROM_TRUTH,
        "dataset": {"name": source.name, "fingerprint": source.fingerprint},
        "versions": {name: version(name) for name in ("jax", "flax", "optax", "numpy")},
        "device": jax.devices()[0].device_kind,
        "stages": run.workdir.seconds() | {stage.folder.name: stage.seconds},
    }


def print_table(results: dict[str, Any]) -> None:
    """The main figures, in percent, on standard output."""
    console = Console(file=sys.stdout, width=100)
    table = Table(title="Masks from image labels, %", caption=FROM_TRUTH)
    for column in ("", "classifier mAP", "seeds mIoU", "refined mIoU", "gain"):
        table.add_column(column, justify="right" if column else "left")
    for split in ("val", "train"):
        scores = results if split == "val" else results["splits"]["train"]
        seeds, masks = scores["seeds"]["miou"], scores["masks"]["miou"]
        classifier = f"{100 * results['classifier']['map']:.1f}" if split == "val" else ""
        table.add_row(
            split,
            classifier,
            f"{100 * seeds:.1f}",
            f"{100 * masks:.1f}",
            f"{100 * (masks - seeds):+.1f}",
        )
    console.print(table)
    headers, rows = methods_table(results["methods"])
    table = Table(title=f"Explanation methods, {results['methods']['images']} images, %")
    for number, header in enumerate(headers):
        table.add_column(header, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


_PERTURBED = {
    "negative, predicted": "negative_predicted",
    "negative, target": "negative_target",
    "positive, predicted": "positive_predicted",
    "positive, target": "positive_target",
}
_SEGMENTED = {"pixel accuracy": "pixel_accuracy", "mAP": "map", "mIoU": "miou"}


def methods_table(
    methods: dict[str, Any], *, intervals: bool = False
) -> tuple[list[str], list[Any]]:
    """Headers and rows (one a method) of the comparison in percent, or of its 95 % intervals."""
    rows = []
    for method in METHODS:
        perturbed, segmented = methods["perturbation"][method], methods["segmentation"][method]
        figures = [perturbed.get(key, {}) for key in _PERTURBED.values()]
        figures += [segmented[key] for key in _SEGMENTED.values()]
        rows.append([TITLES[method], *(_cell(figure, intervals) for figure in figures)])
    return ["method", *_PERTURBED, *_SEGMENTED], rows


def _cell(figure: dict[str, Any], interval: bool) -> str:
    if interval and figure:
        return f"[{', '.join(map(report.percent, figure['interval']))}]"
    return report.percent(figure.get("auc", figure.get("value")))


def _masks_section(run: Run, results: dict[str, Any]) -> Section:
    rows = []
    for split, scores in (("val", results), ("train", results["splits"]["train"])):
        for name, title in (("seeds", "seeds"), ("masks", "refined masks")):
            iou = scores[name]["iou"].values()
            rows.append(
                [
                    f"{split}, {title}",
                    report.percent(scores[name]["miou"]),
                    *map(report.percent, iou),
                ]
            )
    names = list(results["masks"]["iou"])
    chosen = results["chosen"]
    alphas = [
        walk
        for walk in chosen["walks"]
        if (walk["beta"], walk["log2_steps"]) == (chosen["beta"], chosen["log2_steps"])
    ]
    return Section(
        "From seeds to masks",
        [
            FROM_TRUTH,
            report.table(["", "mIoU", *names], rows, "Intersection over union, %, by class"),
            report.bar_chart(
                names,
                {
                    "seeds": list(results["seeds"]["iou"].values()),
                    "refined masks": list(results["masks"]["iou"].values()),
                },
                "IoU",
                "IoU by class on val",
            ),
            f"Chosen by mIoU on {chosen['split']}, never on val: the seeds' background score "
            f"{chosen['background']:g}; of the walk, beta {chosen['beta']:g}, 2^{chosen['log2_steps']} steps, "
            f"alpha {chosen['alpha']:g}. With the published background score 0.2 the seeds' mIoU on val is "
            f"{report.percent(results['seeds']['miou_at_0.2'])} %.",
            report.charts(
                report.line_chart(
                    {"seeds": [entry["miou"] for entry in chosen["backgrounds"]]},
                    [entry["background"] for entry in chosen["backgrounds"]],
                    ("background score", "mIoU on train"),
                    "Seeds: threshold",
                ),
                report.line_chart(
                    {"refined masks": [entry["miou"] for entry in alphas]},
                    [entry["alpha"] for entry in alphas],
                    ("alpha", "mIoU on train"),
                    "Refined masks: alpha of the background",
                ),
            ),
        ],
    )


def _methods_section(results: dict[str, Any]) -> Section:
    methods = results["methods"]
    headers, rows = methods_table(methods)
    curves = []
    for direction, remark in (("positive", "lower is better"), ("negative", "higher is better")):
        series = {
            TITLES[method]: methods["perturbation"][method][f"{direction}_predicted"]["accuracy"]
            for method in METHODS
        }
        curves.append(
            report.line_chart(
                series,
                [100 * x for x in methods["fractions"]],
                ("% of pixels removed", "accuracy"),
                f"{direction.capitalize()} perturbation, predicted class ({remark})",
            )
        )
    return Section(
        "Explanation methods",
        [
            f"{methods['images']} val images that show one class; accuracy of the classifier's best class on them: "
            f"{report.percent(methods['accuracy'])} %. Perturbation: area under the accuracy as pixels are removed, "
            "most relevant first (positive, lower is better) or least relevant first (negative, higher is better). "
            "Segmentation: the map of the predicted class, thresholded at its mean, against the object.",
            report.table(headers, rows, "Perturbation AUC and segmentation scores, %"),
            report.fold(
                "95 % bootstrap intervals over the images",
                report.table(*methods_table(methods, intervals=True), "Intervals, %"),
            ),
            report.charts(*curves),
        ],
    )


def _training_section(run: Run, results: dict[str, Any]) -> Section:
    charts: list[object] = []
    for name in ("classifier", "affinity"):
        lines = [line for line in read_metrics(run.stage(name).folder) if "epoch" in line]
        if len(lines) > 1:
            charts.append(
                report.line_chart(
                    {"validation loss": [line["val/loss"] for line in lines]},
                    [line["epoch"] for line in lines],
                    ("epoch", "loss"),
                    f"{name.capitalize()}: validation loss",
                    in_percent=False,
                )
            )
    times = [[name, report.duration(seconds)] for name, seconds in results["stages"].items()]
    return Section(
        "Training and time",
        [
            report.table(
                ["class", "average precision"],
                [
                    [name, report.percent(value)]
                    for name, value in results["classifier"]["average_precision"].items()
                ],
                f"Classifier on val, %: mAP {report.percent(results['classifier']['map'])}",
            ),
            report.charts(*charts),
            report.table(["stage", "time"], times, "Time spent, over all starts of the run"),
        ],
    )
