"""Stage `report`: `results.json`, the printed table, and `report.html`, from what the stages left."""

import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from vitx import checkpoints
from vitx.cues import read_cues, seeded
from vitx.data import pipeline
from vitx.data.palette import decode_mask, voc_palette
from vitx.data.transforms import normalise, resize_image, resize_maps
from vitx.evaluation import report
from vitx.evaluation.masks import image_seed_mask
from vitx.evaluation.report import Section
from vitx.relevance.explain import METHODS, explain
from vitx.run import read_metrics
from vitx.stages import Run
from vitx.training.labels import agreed_labels, crf_posteriors
from vitx.workdir import Stage, write_json

FROM_TRUTH = (
    "Which classes an image shows is taken from its ground-truth label, for seeds and masks and on val too: "
    "these figures measure pseudo-masks, not a segmentation network."
)
TITLES = {
    "rollout": "rollout",
    "raw_attention": "raw attention",
    "gradcam": "GradCAM",
    "lrp": "LRP",
    "partial_lrp": "partial LRP",
    "transformer_attribution": "transformer attribution",
}


def write_summary(run: Run, stage: Stage) -> None:
    """Writes `results.json` and `report.html` in the workdir, and prints the table."""
    results = gather(run, stage)
    write_json(run.workdir.folder / "results.json", results)
    page = run.workdir.folder / "report.html"
    report.write_report(
        page,
        title=f"vitx on {run.config.data.name}: image labels to masks",
        summary="A hybrid ViT learns from image labels what is shown; its explanations become seeds, a dense CRF and "
        "AffinityNet refine them into masks.",
        results=results,
        sections=[
            _masks_section(run, results),
            _pictures_section(run, results),
            _methods_section(results),
            _training_section(run, results),
            Section("Options", [report.facts(run.config.to_dict(), "All options of this run")]),
        ],
    )
    print_table(results)
    print(f"\nreport: {page.resolve()}")


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


def methods_table(methods: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows (one a method) of the comparison, in percent."""
    columns = {
        "negative, predicted": "negative_predicted",
        "negative, target": "negative_target",
        "positive, predicted": "positive_predicted",
        "positive, target": "positive_target",
    }
    segmentation = {"pixel accuracy": "pixel_accuracy", "mAP": "map", "mIoU": "miou"}
    rows = []
    for method in METHODS:
        perturbed, segmented = methods["perturbation"][method], methods["segmentation"][method]
        cells = [report.percent(perturbed.get(key, {}).get("auc")) for key in columns.values()]
        cells += [report.percent(segmented[key]["value"]) for key in segmentation.values()]
        rows.append([TITLES[method], *cells])
    return ["method", *columns, *segmentation], rows


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


def _pictures_section(run: Run, results: dict[str, Any]) -> Section:
    source = seeded(run, "val")
    model = checkpoints.load(run.finished("classifier").folder)
    # Evenly over the split, so that nobody picks the pretty ones.
    chosen = np.linspace(0, len(source) - 1, min(run.config.report.images, len(source))).astype(int)
    rows = []
    for index in chosen:
        rows.append(_picture_row(run, results, model, source, int(index)))
        run.stop.check()
    columns = [
        "image",
        "truth",
        "cue",
        "sure object",
        "sure background",
        "labels",
        "seed mask",
        "refined",
    ]
    names, split = [name for _, name in rows], len(columns)
    return Section(
        "Pictures",
        [
            f"{len(rows)} val images, evenly spaced over the split. The cue and the methods' maps are of "
            "the class under the image. Sure object and sure background: what the dense CRF says at "
            "low and (black) at high alpha; where neither is sure, the label is neutral.",
            report.class_legend(source.classes, voc_palette(), neutral="neutral"),
            report.picture_rows(
                columns, [row[:split] for row, _ in rows], "From image to mask", names=names
            ),
            report.picture_rows(
                ["image", *(TITLES[method] for method in METHODS)],
                [[row[0], *row[split:]] for row, _ in rows],
                "Each method's map",
                names=names,
            ),
            report.colour_scale(),
        ],
    )


def _picture_row(
    run: Run, results: dict[str, Any], model: Any, source: pipeline.Source, index: int
) -> tuple[list[Any], str]:
    example = source[index]
    cues, classes = read_cues(run.finished("seeds"), "val", example.id, source.most_classes)
    size = example.image.shape[:2]
    name = source.classes[classes[0] + 1]
    low, high = crf_posteriors(run.config.labels, example.image, cues, classes)
    label = agreed_labels(low, high, classes)
    object_sure = agreed_labels(low, low, classes)
    background_sure = np.where(agreed_labels(high, high, classes) == 0, 0, 255).astype(np.uint8)
    refined = run.finished("masks").item(example.id, ".png", "val").read_bytes()
    background = results["chosen"]["background"]
    palette = voc_palette()

    def mask(values: np.ndarray, what: str) -> tuple[np.ndarray, str]:
        return palette[values], f"{what} of image {example.id}"

    cue = np.asarray(resize_maps(jnp.asarray(cues[:1]), size))[0]
    row = [
        (example.image, f"image {example.id}"),
        mask(example.truth, "ground truth"),
        (report.heatmap_overlay(example.image, cue), f"cue of {name} in image {example.id}"),
        mask(object_sure, "confident objects"),
        mask(background_sure, "confident background (black)"),
        mask(label, "labels"),
        mask(image_seed_mask(example, cues, classes, background), "seed mask"),
        mask(decode_mask(refined), "refined mask"),
    ]
    for method, heatmap in _heatmaps(run, model, example, int(classes[0])):
        overlay = report.heatmap_overlay(example.image, heatmap)
        row.append((overlay, f"{TITLES[method]} of {name} in image {example.id}"))
    return row, name


def _heatmaps(
    run: Run, model: Any, example: pipeline.Example, index: int
) -> Sequence[tuple[str, np.ndarray]]:
    config = run.config.methods
    image = normalise(resize_image(example.image, model.preprocess.size), model.preprocess)[None]
    start = config.start_layer.to_dict()
    return [
        (
            method,
            np.asarray(
                explain(
                    model, image, jnp.array([index]), method, start.get(method, 0), config.rules
                )[1]
            )[0],
        )
        for method in METHODS
    ]
