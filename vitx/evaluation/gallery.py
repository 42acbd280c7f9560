"""The report's pictures: from image to mask, and the methods' maps."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from vitx import checkpoints
from vitx.cues import read_cues, seeded
from vitx.data import pipeline
from vitx.data.palette import decode_mask, voc_palette
from vitx.data.transforms import normalise, resize_image, resize_maps
from vitx.evaluation import report
from vitx.evaluation.masks import image_seed_mask
from vitx.evaluation.report import Section
from vitx.relevance.explain import METHODS, explain
from vitx.stages import Run
from vitx.training.labels import agreed_labels, crf_posteriors

TITLES = {
    "rollout": "rollout",
    "raw_attention": "raw attention",
    "gradcam": "GradCAM",
    "lrp": "LRP",
    "partial_lrp": "partial LRP",
    "transformer_attribution": "transformer attribution",
}


def pictures_section(run: Run, results: dict[str, Any]) -> Section:
    """Rows of val images: how each mask came about, and each method's map."""
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
    # The cells of both tables, and the class that is explained.
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
