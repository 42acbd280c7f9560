"""Stage `methods`: explanation methods compared by perturbation (Table 2) and by segmentation (Table 3)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.table import Table

from vitx import parallel
from vitx.data import loader
from vitx.data.transforms import resize_mask
from vitx.evaluation.comparison import (
    Comparison,
    measure,
    program,
    score_program,
)
from vitx.evaluation.cost import cost_in_forwards
from vitx.evaluation.segmentation import foreground_masks
from vitx.evaluation.summary import summary
from vitx.models.variants import Classifier
from vitx.models.vit import VisionTransformer
from vitx.pipeline.artifacts import SCORES, items_done, read_arrays, read_scores, write_arrays
from vitx.pipeline.compared_model import (
    chosen_images,
    classifier,
    compared_source,
    pixel_batches,
    precision,
    require_classes,
    targets,
)
from vitx.pipeline.gallery import pictures
from vitx.pipeline.methods_section import (
    accuracies_table,
    beside_published,
    departures,
    methods_section,
    methods_table,
)
from vitx.relevance.registry import method_of
from vitx.report.page import Section
from vitx.runtime.experiment import Run, Stage
from vitx.runtime.files import write_json
from vitx.runtime.options import whole
from vitx.runtime.progress import progress
from vitx.runtime.workdir import StageFolder

_BATCHES = "batches"  # folder of the stage


def compare_methods(run: Run, stage: StageFolder) -> None:
    """Writes `scores.json`: for each method, perturbation accuracies and AUCs, and segmentation scores.

    Each batch is a file of its own, so that a stopped run loses at most one. Batches are shared out among processes,
    and each is spread over the devices of one.
    """
    config = run.config.methods
    comparison, source = Comparison.from_config(config), compared_source(run)
    with precision(run.config.model):
        model = classifier(run)
        if comparison.needs_classes:
            require_classes(model, source)
        if comparison.needs_masks and not source.has_masks:
            raise ValueError(
                f"methods.measures or methods.scores needs masks of objects, but {source.name} has none"
            )
        chosen = chosen_images(source, config.images, one_class=comparison.needs_classes)
        batches = pixel_batches(source, chosen, model, config.batch_size)
        names = [f"{number:06}" for number in range(len(batches))]
        mine = parallel.share(range(len(batches)))
        done = items_done(stage, ".npz", _BATCHES, [names[number] for number in mine])
        missing = [number for number in mine if names[number] not in done]
        spread = parallel.replicate(model, parallel.local_mesh())
        images, left = (sum(len(batches.places(n)) for n in numbers) for numbers in (mine, missing))
        with progress(images, "methods", start=images - left, compiles=True) as bar:
            for number, batch in zip(missing, loader.read_ahead(batches, missing), strict=True):
                measured = _measured(spread, comparison, batch, run.config.parallel)
                write_arrays(stage, _BATCHES, names[number], measured)
                bar.advance(len(batches.places(number)))
                run.stop.check()
        parallel.barrier()
        if not parallel.is_first_process():
            return
        scores = summary(comparison, [read_arrays(stage, _BATCHES, name) for name in names])
        scores["cost"] = cost_in_forwards(comparison, model)
    if scores["images"] != len(chosen):
        raise ValueError(
            f"{stage.folder} has results of {scores['images']} images, not of {len(chosen)}: delete it"
        )
    used = {method_of(name).name: dict(method_of(name).options) for name in comparison.methods}
    scores["options"] = {
        name: usual | dict(dict(comparison.options).get(name, ()))
        for name, usual in used.items()
        if usual
    }
    write_json(stage.folder / SCORES, scores | {"model": _facts(model), "devices": _devices()})


def _measured(
    model: Any, comparison: Comparison, batch: dict[str, Any], mode: str
) -> dict[str, np.ndarray]:
    """What the figures need of each image; without the repeats that fill up the last batch."""
    pixels, size = batch["image"].astype(model.dtype), batch["image"].shape[1:3]
    classes, masks = targets(batch), None
    found = program(comparison, mode)(model, pixels, classes)
    if comparison.needs_masks:
        truths = [resize_mask(example.truth, size) for example in batch["examples"]]
        masks = foreground_masks(np.stack(truths))
    if comparison.scores:
        objects = np.zeros(pixels.shape[:3], bool) if masks is None else masks == 1
        found |= score_program(comparison, mode)(model, pixels, classes, found["maps"], objects)
    try:
        measured = measure(comparison, found, masks)
    except FloatingPointError as error:
        raise FloatingPointError(f"methods: {error}, which are {', '.join(batch['id'])}") from None
    return {name: rows[batch["valid"]] for name, rows in measured.items()}


def _facts(model: Classifier) -> dict[str, Any]:
    """The settings of the model."""
    facts = {
        "mean": model.preprocess.mean,
        "std": model.preprocess.std,
        "image_size": model.preprocess.size,
        "num_classes": model.num_classes,
        "dtype": str(model.dtype),
    }
    if not isinstance(model, VisionTransformer):
        return facts
    return facts | {
        "num_heads": model.blocks[0].attn.heads,
        "assumed": model.assumed,
        "norm_eps": model.blocks[0].norm1.epsilon,
        "final_norm_eps": model.final_norm_eps,
    }


def _devices() -> str:
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def _check_options(config: Any) -> None:
    Comparison.from_config(config.methods)


def _check(run: Run) -> None:
    """Reads all images that are to be compared; a run of some of them meets bad ones soon enough."""
    source = compared_source(run)
    if not run.config.methods.images:
        run.sources.require_readable(source.split)


def _scores(run: Run) -> dict[str, Any]:
    methods, config = read_scores(run, "methods"), run.config
    if not config.report.published:
        return {"methods": methods}
    headers, rows = beside_published(methods)
    figures = [dict(zip(headers, row, strict=True)) for row in rows]
    return {
        "methods": methods,
        "published": {"differing": departures(config), "figures": figures},
    }


def _tables(results: Mapping[str, Any]) -> Iterator[str | Table]:
    methods = results["methods"]
    yield _table(f"Explanation methods, {methods['images']} images, %", *methods_table(methods))
    if "scores" in methods:
        yield _table("Scores of maps, %", *methods_table(methods, measures=("scores",)))
    if "perturbation" in methods and len(results["stages"]) == 1:  # otherwise only the page has it
        yield _table("Accuracy as pixels are removed, %", *accuracies_table(methods))
    if published := results.get("published"):
        if published["differing"]:
            yield f"Not as published: {', '.join(published['differing'])}."
        rows = [list(row.values()) for row in published["figures"]]
        yield _table("Beside the published figures, %", list(published["figures"][0]), rows)


def _table(title: str, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title)
    for number, header in enumerate(headers):
        table.add_column(header, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _section(run: Run, results: dict[str, Any]) -> list[Section]:
    differing = departures(run.config) if run.config.report.published else None
    return [methods_section(results["methods"], differing=differing, pictures=pictures(run))]


STAGE = Stage(
    "methods",
    compare_methods,
    needs=["classifier"],
    keys=["methods"],
    options={"methods.images": whole(0)},
    check_options=_check_options,
    check=_check,
    scores=_scores,
    tables=_tables,
    section=_section,
)
