"""A grid of images against methods, as in the papers' appendices: a row for the predicted, one for the target class."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from vitx import parallel
from vitx.data import loader
from vitx.data.class_names import output_names
from vitx.evaluation.comparison import Comparison
from vitx.evaluation.perturbation import explain_pixels
from vitx.models.variants import Classifier
from vitx.pipeline.compared_model import (
    chosen_images,
    classifier,
    compared_source,
    fits,
    pixel_batches,
    precision,
    targets,
)
from vitx.pipeline.methods_section import title
from vitx.report.overlay import DIVERGING, nothing_in, overlay
from vitx.report.page import Section, write_report
from vitx.report.pictures import Cell, ColourScale, picture_rows
from vitx.runtime.experiment import Run, Stage
from vitx.runtime.workdir import StageFolder


def write_gallery(run: Run, stage: StageFolder) -> None:
    """Command `gallery`: writes the grid alone, `gallery.html` in the workdir."""
    page = stage.folder / "gallery.html"
    write_report(
        page,
        title=f"vitx: explanation methods on {run.config.data.name}",
        results={"options": run.config.to_dict()},
        sections=[Section("Explanation methods", pictures(run))],
    )
    print(f"page: {page}")


def pictures(run: Run) -> list[object]:
    """The grid of `config.report.images` images, evenly spaced over those compared, and what explains it.

    There are rows for the target class only where the dataset's classes are the model's.
    """
    config, source = run.config, compared_source(run)
    comparison = Comparison.from_config(config.methods)
    if config.report.images < 1:
        return []
    with precision(config.model):
        model = classifier(run)
        if not fits(model, source):
            comparison = replace(comparison, explained=("predicted",))
        by_class = "target" in comparison.explained
        chosen = chosen_images(source, config.report.images, one_class=by_class)
        rows = list(_rows(run, source, model, comparison, chosen))
    columns = ["image", *map(title, comparison.methods)]
    return [
        f"{len(chosen)} images, evenly spaced over {source.split}. Methods that do not depend on the class have one "
        "map an image. Some maps are constant, which is said below them: they show nothing.",
        picture_rows(columns, rows, "Each method's map"),
        ColourScale(),
        ColourScale(DIVERGING, "of maps with negative values: against", "for"),
    ]


def _rows(
    run: Run,
    source: loader.Source,
    model: Classifier,
    comparison: Comparison,
    chosen: Sequence[int],
) -> Iterator[tuple[str, list[Cell | None]]]:
    """The name and the cells of each row."""
    batch_size = min(run.config.methods.batch_size, len(chosen))
    batches = pixel_batches(source, chosen, model, batch_size)
    known = source.classes[1:] if fits(model, source) else model.class_names
    names = output_names(model.num_classes, known or ())
    mean, std = model.preprocess.mean, model.preprocess.std
    spread = parallel.replicate(model, parallel.local_mesh())
    explain = parallel.per_example(
        lambda model, pixels, targets: explain_pixels(
            model, comparison, pixels, targets, mean, std
        ),
        mode=run.config.parallel,
    )
    for number, batch in enumerate(batches):
        run.stop.check()
        target = targets(batch)
        logits, maps = explain(spread, batch["image"].astype(model.dtype), target)
        for row in range(len(batches.places(number))):
            classes = {"predicted": int(logits[row].argmax()), "target": int(target[row])}
            for kinds in _grouped(comparison.explained, classes):
                named = f"{' and '.join(kinds)}: {names[classes[kinds[0]]]}"
                example = batch["examples"][row]
                cells = _cells(example, comparison, kinds[0], maps[row], named)
                yield f"{example.id} ({named})", cells


def _cells(
    example: loader.Example, comparison: Comparison, kind: str, maps: np.ndarray, named: str
) -> list[Cell | None]:
    cells: list[Cell | None] = [Cell(example.image, f"image {example.id}")]
    shown = dict(zip(comparison.columns, maps, strict=True))
    for method in comparison.methods:
        if (heatmap := shown.get((method, kind))) is None:
            cells.append(None)
            continue
        remark = nothing_in(heatmap)
        note = f"{remark}: shows nothing" if remark else ""
        alt = f"{title(method)} of image {example.id}, {named}" + f": {note}" * bool(note)
        cells.append(Cell(overlay(example.image, heatmap), alt, note))
    return cells


def _grouped(explained: Sequence[str], classes: dict[str, int]) -> list[list[str]]:
    """The kinds of class that get a row each: one row where predicted and target are the same."""
    if len({classes[kind] for kind in explained}) == 1:
        return [list(explained)]
    return [[kind] for kind in explained]


COMMAND = Stage("gallery", write_gallery, command=True)
