"""The report's pictures of the pipeline: from image to mask."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from vitx.cues import read_cues, seeded
from vitx.data import pipeline
from vitx.data.palette import decode_mask, voc_palette
from vitx.data.transforms import resize_maps
from vitx.evaluation import report
from vitx.evaluation.masks import image_seed_mask
from vitx.evaluation.report import Section
from vitx.stages import Run
from vitx.training.labels import agreed_labels, crf_posteriors


def pictures_section(run: Run, results: dict[str, Any]) -> Section:
    """Rows of val images: how each mask came about."""
    source = seeded(run, "val")
    # Evenly over the split, so that nobody picks the pretty ones.
    chosen = np.linspace(0, len(source) - 1, min(run.config.report.images, len(source))).astype(int)
    rows = []
    for index in chosen:
        rows.append(_picture_row(run, results, source, int(index)))
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
    return Section(
        "Pictures",
        [
            f"{len(rows)} val images, evenly spaced over the split. The cue is of the class under the image. Sure "
            "object and sure background: what the dense CRF says at low and (black) at high alpha; where neither is "
            "sure, the label is neutral.",
            report.class_legend(source.classes, voc_palette(), neutral="neutral"),
            report.picture_rows(
                columns,
                [row for row, _ in rows],
                "From image to mask",
                names=[name for _, name in rows],
            ),
        ],
    )


def _picture_row(
    run: Run, results: dict[str, Any], source: pipeline.Source, index: int
) -> tuple[list[Any], str]:
    # The cells of a row, and the class whose cue it shows.
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
    return row, name
