"""Stage `masks`: seed maps walk along AffinityNet's affinities and become masks, which are scored."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from vitx import parallel
from vitx.pipeline.artifacts import (
    SCORES,
    SPLITS,
    check_grid,
    missing_batches,
    read_scores,
    seeded,
    write_mask,
)
from vitx.pipeline.choice import choose, read_choice
from vitx.pipeline.mask_scores import FROM_TRUTH, score
from vitx.pipeline.masks_pictures import pictures_section
from vitx.pipeline.masks_section import KINDS, masks_section, scored_splits
from vitx.pipeline.refiner import Refiner, Walk, refined_masks
from vitx.pseudomasks import walk as walks
from vitx.report.page import Section, Tile
from vitx.report.parts import percent
from vitx.runtime.experiment import Run, Stage
from vitx.runtime.files import write_json
from vitx.runtime.options import POSITIVE, among, candidates, whole
from vitx.runtime.progress import progress
from vitx.runtime.workdir import StageFolder


def make_masks(run: Run, stage: StageFolder) -> None:
    """Chooses options on train, writes `<split>/<id>.png` masks at the images' sizes, and `scores.json`."""
    refine = Refiner(run)
    record = stage.folder / "chosen.json"
    if parallel.max_over_processes(not record.exists())[0]:
        # Each process has it: a shared file system may not show the others yet what the first wrote.
        chosen = choose(run, refine)
        if parallel.is_first_process():
            write_json(record, chosen | {"stamp": stage.stamp(record.name)})
    else:
        chosen = read_choice(stage, record)
    walk = Walk(chosen["beta"], chosen["log2_steps"])
    for split in SPLITS:
        batches = refine.batches(seeded(run, split))
        missing, images, done = missing_batches(stage, batches, ".png", split)
        with progress(images, f"masks {split}", start=done) as bar:
            alphas = (chosen["alpha"],)
            for items, affinity, maps in refine.prepared(batches, missing, split, alphas):
                for item, walked in zip(items, refine.walk(affinity, maps, walk), strict=True):
                    (mask,) = refined_masks(walked, item)
                    write_mask(stage, split, item.example.id, mask)
                bar.advance(len(items))
                run.stop.check()
    parallel.barrier()
    scores = {split: score(run, stage, split, chosen["background"]) for split in SPLITS}
    if parallel.is_first_process():
        write_json(stage.folder / SCORES, scores | {"chosen": chosen, "note": FROM_TRUTH})


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
    if scored := scored_splits(results):
        table = Table(title="Masks from image labels, mIoU %", caption=FROM_TRUTH)
        for column in ("", *KINDS.values(), "gain"):
            table.add_column(column, justify="right" if column else "left")
        for split, scores in scored.items():
            found = {kind: 100 * scores[kind]["miou"] for kind in KINDS}
            gain = found["masks"] - found["seeds"]
            table.add_row(split, *(f"{value:.1f}" for value in found.values()), f"{gain:+.1f}")
        yield table


def _tiles(results: dict[str, Any]) -> list[Tile]:
    if "masks" not in results:
        return []
    seeds, masks = results["seeds"]["miou"], results["masks"]["miou"]
    gain = f"{100 * (masks - seeds):+.1f} points over the seeds"
    return [
        Tile("Seeds' mIoU", f"{percent(seeds)} %"),
        Tile("Refined masks' mIoU", f"{percent(masks)} %", gain),
    ]


def _section(run: Run, results: dict[str, Any]) -> list[Section]:
    return [masks_section(results, run.config.report.published), pictures_section(run, results)]


STAGE = Stage(
    "masks",
    make_masks,
    needs=["affinity"],
    keys=["walk", "seeds.background"],
    facts=_facts,
    options={
        "walk.alpha": candidates(POSITIVE),
        "walk.beta": candidates(POSITIVE),
        "walk.log2_steps": candidates(whole(0, 30)),
        "walk.method": among(walks.METHODS),
    },
    check_options=check_grid,
    splits=["walk.split"],
    scores=_scores,
    tables=_tables,
    tiles=_tiles,
    section=_section,
)
