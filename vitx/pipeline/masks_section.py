"""The report's tables and curves of the pipeline: seeds, refined masks, training."""

from typing import Any

from vitx.evaluation.published import PUBLISHED_MASKS
from vitx.pipeline.mask_scores import FROM_TRUTH
from vitx.report import page as report
from vitx.report.page import Section
from vitx.runtime.experiment import Run
from vitx.runtime.metrics import read_metrics

KINDS = {
    "seeds": "seeds",
    "crf_low": "CRF, low alpha",
    "crf_high": "CRF, high alpha",
    "masks": "refined masks",
}


def scored_splits(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The scores of val and train, where they have masks."""
    splits = {"val": results, **results["splits"]}
    return {split: scores for split, scores in splits.items() if "masks" in scores}


def masks_section(results: dict[str, Any], published: bool = False) -> Section:
    """Seeds, what the CRF makes of them, and refined masks by class, and what was chosen.

    `published`: beside what [Re] prints for VOC.
    """
    scored = scored_splits(results)
    if not scored:
        unscored = "No image has a mask to compare with: nothing is scored."
        return Section(
            "From seeds to masks",
            [unscored, _chosen(results["chosen"]), *_flat(results.get("cues", {}))],
        )
    columns = [(split, kind) for split in scored for kind in KINDS]
    rows = [["mean", *(report.percent(scored[split][kind]["miou"]) for split, kind in columns)]]
    for name in next(iter(scored.values()))["masks"]["iou"]:
        rows.append(
            [name, *(report.percent(scored[split][kind]["iou"][name]) for split, kind in columns)]
        )
    images = ", ".join(f"{scores['images']} of {split}" for split, scores in scored.items())
    split, scores = next(iter(scored.items()))
    body: list[object] = [
        FROM_TRUTH,
        report.table(
            ["class", *(f"{split}: {KINDS[kind]}" for split, kind in columns)],
            rows,
            f"Intersection over union, %, of the images that have masks ({images})",
        ),
        *([_beside_published(results)] if published and "masks" in results else []),
        report.bar_chart(
            list(scores["masks"]["iou"]),
            {KINDS[kind]: list(scores[kind]["iou"].values()) for kind in ("seeds", "masks")},
            "IoU",
            f"IoU by class on {split}",
        ),
        _chosen(results["chosen"])
        + f" With the published background score 0.2 the seeds' mIoU on {split} is "
        f"{report.percent(scores['seeds']['miou_at_0.2'])} %.",
        *_flat(results.get("cues", {})),
        report.charts(*_curves(scored, results["chosen"])),
    ]
    return Section("From seeds to masks", body)


def _flat(counts: dict[str, dict[str, int]]) -> list[str]:
    """A sentence, where some seed maps say nothing."""
    told = [
        f"{count['flat']} of {count['cues']} on {split}"
        for split, count in counts.items()
        if count["flat"]
    ]
    return (
        [f"Seed maps without contrast, which point to nothing: {', '.join(told)}."] if told else []
    )


def _beside_published(results: dict[str, Any]) -> Any:
    rows = []
    for kind, figure in PUBLISHED_MASKS.items():
        ours = results[kind]["miou"]
        difference = f"{100 * (ours - figure):+.2f}"
        rows.append([KINDS[kind], report.percent(ours), report.percent(figure), difference])
    title = (
        "mIoU on val beside [Re], Table 4, %, which has VOC 2012's own val and a pretrained hybrid"
    )
    return report.table(["", "ours", "published", "difference"], rows, title)


def _chosen(chosen: dict[str, Any]) -> str:
    how = (
        f"Chosen by mIoU on {chosen['split']}, never on val"
        if "walks" in chosen
        else "As set, the first where there are several candidates"
    )
    return (
        f"{how}: the seeds' background score {chosen['background']:g}; of the walk, beta {chosen['beta']:g}, "
        f"2^{chosen['log2_steps']} steps, alpha {chosen['alpha']:g}."
    )


def _curves(scored: dict[str, dict[str, Any]], chosen: dict[str, Any]) -> list[object]:
    levels = [entry["background"] for entry in next(iter(scored.values()))["backgrounds"]]
    curves: list[object] = [
        report.line_chart(
            {
                split: [entry["miou"] for entry in scores["backgrounds"]]
                for split, scores in scored.items()
            },
            levels,
            ("background score", "mIoU"),
            "Seeds: threshold",
        )
    ]
    alphas = [
        walk
        for walk in sorted(chosen.get("walks", ()), key=lambda walk: walk["alpha"])
        if (walk["beta"], walk["log2_steps"]) == (chosen["beta"], chosen["log2_steps"])
    ]
    if len(alphas) > 1:
        curves.append(
            report.line_chart(
                {"refined masks": [entry["miou"] for entry in alphas]},
                [entry["alpha"] for entry in alphas],
                ("alpha", f"mIoU on {chosen['split']}"),
                "Refined masks: alpha of the background",
            )
        )
    return curves


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
