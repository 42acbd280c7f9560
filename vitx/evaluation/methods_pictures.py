"""A grid of images against methods, as in the papers' appendices: a row for the predicted, one for the target class."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vitx import parallel
from vitx.data import pipeline
from vitx.data.transforms import to_fractions
from vitx.evaluation import report
from vitx.evaluation.comparison import Comparison
from vitx.evaluation.methods import Batches, chosen_images, classifier
from vitx.evaluation.methods_report import title
from vitx.evaluation.perturbation import explain_pixels
from vitx.evaluation.report import Section
from vitx.stages import Run
from vitx.workdir import Stage


def write_gallery(run: Run, stage: Stage) -> None:
    """Command `gallery`: writes the grid alone, `gallery.html` in the workdir."""
    config, source = run.config.methods, run.source(run.config.data.val_split)
    grid = pictures(
        source,
        classifier(run),
        Comparison.from_config(config),
        images=run.config.report.images,
        batch_size=config.batch_size,
    )
    page = stage.folder / "gallery.html"
    report.write_report(
        page,
        title=f"vitx: explanation methods on {source.name}",
        results={"options": run.config.to_dict()},
        sections=[Section("Explanation methods", grid)],
    )
    print(f"page: {page.resolve()}")


def pictures(
    source: pipeline.Source, model: Any, comparison: Comparison, *, images: int, batch_size: int
) -> list[object]:
    """The grid and what explains it, for a section of the page.

    Args:
      source: where the images come from.
      model: a `VisionTransformer`.
      comparison: the methods and classes.
      images: how many, evenly spaced over the split.
      batch_size: images explained at once.
    """
    by_class = "target" in comparison.explained
    chosen = chosen_images(source, 0, one_class=by_class)
    # Evenly over the split, so that nobody picks the pretty ones.
    places = np.linspace(0, len(chosen) - 1, min(images, len(chosen))).astype(int)
    rows, names = [], []
    for name, row in _picture_rows(
        source, model, comparison, [chosen[place] for place in places], batch_size
    ):
        rows.append(row)
        names.append(name)
    grid = report.picture_rows(
        ["image", *map(title, comparison.methods)], rows, "Each method's map", names=names
    )
    return [
        f"{len(places)} images, evenly spaced over {source.split}. Methods that know no class have one map an image.",
        grid,
        report.colour_scale(),
    ]


def _picture_rows(
    source: pipeline.Source,
    model: Any,
    comparison: Comparison,
    chosen: Sequence[int],
    batch_size: int,
) -> Iterator[tuple[str, list[Any]]]:
    size, devices = model.preprocess.size, parallel.mesh().size
    batch_size = -(-min(batch_size, len(chosen)) // devices) * devices
    batches = Batches(source, chosen, size, batch_size, with_masks=False)
    names: Sequence[str] = source.classes[1:]
    names = (
        names
        if len(names) == model.num_classes
        else [f"class {i}" for i in range(model.num_classes)]
    )
    for number, batch in enumerate(batches):
        pixels, targets = parallel.shard_batch((to_fractions(batch["image"]), batch["target"]))
        mean, std = model.preprocess.mean, model.preprocess.std
        logits, maps = (
            np.asarray(x) for x in explain_pixels(model, comparison, pixels, targets, mean, std)
        )
        for row in range(batches.count(number)):
            example = source[chosen[number * batch_size + row]]
            classes = {"predicted": int(logits[row].argmax()), "target": int(batch["target"][row])}
            for kinds in _grouped(comparison.explained, classes):
                named = f"{' and '.join(kinds)}: {names[classes[kinds[0]]]}"
                cells: list[Any] = [(example.image, f"image {example.id}")]
                for method in comparison.methods:
                    column = (method, kinds[0])
                    if column not in comparison.columns:
                        cells.append(None)
                        continue
                    overlay = report.heatmap_overlay(
                        example.image, maps[row, comparison.columns.index(column)]
                    )
                    cells.append((overlay, f"{title(method)} of image {example.id}, {named}"))
                yield named, cells


def _grouped(explained: Sequence[str], classes: dict[str, int]) -> list[list[str]]:
    """The kinds of class that get a row each: one row where predicted and target are the same."""
    if len({classes[kind] for kind in explained}) == 1:
        return [list(explained)]
    return [[kind] for kind in explained]
