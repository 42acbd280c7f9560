"""The report's tables and curves of the pipeline: seeds, refined masks, training."""

from typing import Any

from vitx.evaluation import report
from vitx.evaluation.report import Section
from vitx.run import read_metrics
from vitx.stages import Run

FROM_TRUTH = (
    "Which classes an image shows is taken from its ground-truth label, for seeds and masks and on val too: "
    "these figures measure pseudo-masks, not a segmentation network."
)


def masks_section(results: dict[str, Any]) -> Section:
    """Seeds and refined masks by class, and what was chosen."""
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


def training_section(run: Run, results: dict[str, Any]) -> Section:
    """The classifier by class, the losses, and the time that each stage took."""
    body: list[object] = []
    if "classifier" in results:
        body.append(
            report.table(
                ["class", "average precision"],
                [
                    [name, report.percent(value)]
                    for name, value in results["classifier"]["average_precision"].items()
                ],
                f"Classifier on val, %: mAP {report.percent(results['classifier']['map'])}",
            )
        )
    charts: list[object] = []
    for name in ("classifier", "affinity"):
        lines = [line for line in read_metrics(run.workdir.folder / name) if "epoch" in line]
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
    if charts:
        body.append(report.charts(*charts))
    times = [[name, report.duration(seconds)] for name, seconds in results["stages"].items()]
    body.append(report.table(["stage", "time"], times, "Time spent, over all starts of the run"))
    return Section("Training and time" if "classifier" in results else "Time", body)
