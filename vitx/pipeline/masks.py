"""Stage `masks`: seed maps walk along AffinityNet's affinities and become masks, which are scored."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from vitx import parallel
from vitx.pipeline.affinities import AFFINITIES, LEARNED, PAIRS, check_own_levels
from vitx.pipeline.artifacts import (
    SCORES,
    SPLITS,
    check_grid,
    missing_batches,
    read_scores,
    seeded,
    write_mask,
)
from vitx.pipeline.choice import CHOICES, choose, choose_background, read_choice
from vitx.pipeline.labels import require_crf_sizes
from vitx.pipeline.mask_scores import FROM_TRUTH, score
from vitx.pipeline.masks_pictures import pictures_section
from vitx.pipeline.masks_section import masks_section, note, scored_splits, step_tiles, summary
from vitx.pipeline.refiner import BACKGROUNDS, STARTS, Refiner
from vitx.pseudomasks.crf import CRFParameters
from vitx.pseudomasks.walk import METHODS
from vitx.report.page import Section
from vitx.runtime.experiment import Run, Stage
from vitx.runtime.files import write_json
from vitx.runtime.options import LEVELS, POSITIVE, among, candidates, number, whole
from vitx.runtime.progress import progress
from vitx.runtime.workdir import StageFolder


def make_masks(run: Run, stage: StageFolder) -> None:
    """Chooses options on train, writes `<split>/<id>.png` masks at the images' sizes, and `scores.json`."""
    refine = Refiner(run, run.config.walk.affinity)
    chosen = chosen_options(run, stage, refine, "chosen.json", seeds=True)
    for split in SPLITS:
        write_masks(run, stage, refine, chosen, split, split)
    parallel.barrier()
    scores = {split: score(run, stage, split, chosen["background"]) for split in SPLITS}
    if parallel.is_first_process():
        write_json(stage.folder / SCORES, scores | {"chosen": chosen, "note": FROM_TRUTH})


def chosen_options(
    run: Run, stage: StageFolder, refine: Refiner, name: str, seeds: bool = False
) -> dict[str, Any]:
    """See `choose`, and with `seeds` `choose_background`.

    The choice is kept in a file of the stage, so that a later start does not choose again.
    """
    record = stage.folder / name
    if not parallel.max_over_processes(not record.exists())[0]:
        return read_choice(stage, record)
    # Each process has it: a shared file system may not show the others yet what the first wrote.
    chosen = choose(run, refine) | (choose_background(run) if seeds else {})
    if parallel.is_first_process():
        write_json(record, chosen | {"stamp": stage.stamp(record.name)})
    return chosen


def write_masks(
    run: Run, stage: StageFolder, refine: Refiner, chosen: dict[str, Any], split: str, folder: str
) -> None:
    """Writes the masks of a split, those that are missing, into a folder of the stage."""
    batches = refine.batches(seeded(run, split))
    missing, images, done = missing_batches(stage, batches, ".png", folder)
    levels = (chosen["level"],)
    with progress(images, f"masks {folder}", start=done, compiles=True) as bar:
        for items, affinity, maps in refine.prepared(batches, missing, split, levels):
            walked = refine.walk(affinity, maps, chosen["beta"], chosen["log2_steps"])
            for item, item_maps in zip(items, walked, strict=True):
                (mask,) = refine.masks(item_maps, item, levels, refine.crf_follows)
                write_mask(stage, folder, item.example.id, mask)
            bar.advance(len(items))
            run.stop.check()


def _check(run: Run) -> None:
    """Raises ValueError for an image too large for the dense CRF after the walk."""
    crf = CRFParameters(**run.config.masks.crf)
    if crf.iterations and run.config.labels.backend != "pydensecrf":
        require_crf_sizes(run, crf)


def _facts(run: Run) -> dict[str, dict[str, Any]]:
    splits = dict.fromkeys((run.config.data.val_split, run.config.seeds.train_split))
    return {"data": {"mask_fingerprints": [run.source(split).mask_fingerprint for split in splits]}}


def _scores(run: Run) -> dict[str, Any]:
    masks = read_scores(run, "masks")
    return {
        **masks["val"],  # nothing where no image has a mask
        "splits": {"train": masks["train"]},
        "chosen": masks["chosen"],
        "note": FROM_TRUTH,
    }


def _tables(results: dict[str, Any]) -> Iterator[Table]:
    if scored_splits(results):
        own = results["options"]["report"].get("note", "")
        headers, rows = summary(results)
        table = Table(title="From image labels, mIoU %", caption=f"{note(results)} {own}")
        for place, column in enumerate(headers):
            table.add_column(column, justify="right" if place else "left")
        for row in rows:
            table.add_row(*row)
        yield table


def _section(run: Run, results: dict[str, Any]) -> list[Section]:
    return [masks_section(results, run.config.report.published), pictures_section(run, results)]


STAGE = Stage(
    "masks",
    make_masks,
    needs=lambda config: ["affinity" if config.walk.affinity == LEARNED else "labels"],
    keys=["walk", "masks", "affinity.grid", "affinity.radius", "seeds.background"],
    facts=_facts,
    options={
        "walk.affinity": among(AFFINITIES),
        "walk.pairs": among(PAIRS),
        "walk.levels": LEVELS,
        "walk.start": among(STARTS),
        "walk.background": among(BACKGROUNDS),
        "walk.choose": among(CHOICES),
        "walk.alpha": candidates(POSITIVE),
        "walk.threshold": candidates(number(0, 1)),
        "masks.crf.iterations": whole(0),
        "masks.crf.compat_*": number(0),
        "masks.crf.s*": POSITIVE,
        "walk.beta": candidates(POSITIVE),
        "walk.log2_steps": candidates(whole(0, 30)),
        "walk.method": among(METHODS),
    },
    check_options=check_grid,
    check_model=check_own_levels,
    check=_check,
    splits=["walk.split"],
    scores=_scores,
    tables=_tables,
    tiles=step_tiles,
    section=_section,
)
