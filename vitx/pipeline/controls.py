"""Stage `controls`: the same treatment with other affinities, so that each step's share of the masks shows."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vitx import parallel
from vitx.data import loader
from vitx.evaluation.bootstrap import bootstrap_interval
from vitx.evaluation.metrics import confusion_matrix, mean_iou
from vitx.pipeline.affinities import LEARNED, NO_WALK, ORACLE, check_levels
from vitx.pipeline.artifacts import SCORES, read_mask, read_scores, read_seed_maps, seeded
from vitx.pipeline.controls_section import controls_section
from vitx.pipeline.mask_scores import stored_masks
from vitx.pipeline.masks import chosen_options, write_masks
from vitx.pipeline.refiner import Refiner
from vitx.pseudomasks.seeds import seed_mask
from vitx.runtime.experiment import Run, Stage
from vitx.runtime.files import write_json, write_npz
from vitx.runtime.options import Wanted
from vitx.runtime.progress import progress
from vitx.runtime.workdir import StageFolder

CONFUSIONS = "confusions.npz"
STEPS = ("seeds", "crf_low", "crf_high")  # the masks of the stages before, compared too
REFINED = "masks"


class Arm(NamedTuple):
    """What a control arm changes: the walk's affinity (None: as configured), and whether a dense CRF may follow."""

    affinity: str | None
    crf: bool = True


ARMS: Mapping[str, Arm] = {
    "no_walk": Arm(NO_WALK),
    "no_crf": Arm(None, crf=False),
    "uniform": Arm("uniform"),
    "colour": Arm("colour"),
    "features": Arm("features"),
    "attention": Arm("attention"),
    "affinitynet": Arm(LEARNED),
    "oracle": Arm(ORACLE),
}


def compare_controls(run: Run, stage: StageFolder) -> None:
    """Makes the masks of val for each arm, with options chosen like the refined masks' own, and compares all of them.

    Writes `<arm>/<id>.png`, `confusions.npz` (see `confusions`) and `scores.json`; nothing where val has no masks.
    """
    source = seeded(run, "val")
    arms = wanted_arms(run) if source.any_masks else []
    chosen = {}
    for name in arms:
        arm = ARMS[name]
        refine = Refiner(run, arm.affinity or run.config.walk.affinity, crf=arm.crf)
        chosen[name] = chosen_options(run, stage, refine, f"{name}.json")
        write_masks(run, stage, refine, chosen[name], "val", name)
    parallel.barrier()
    if not source.any_masks:
        figures: dict[str, Any] = {}
    else:
        names = [*STEPS, *arms, REFINED]
        tables = confusions(run, stage, names)
        figures = differences(names, tables)
        if parallel.is_first_process():
            write_npz(stage.folder / CONFUSIONS, {"names": np.array(names), "counts": tables})
    if parallel.is_first_process():
        write_json(stage.folder / SCORES, {"figures": figures, "chosen": chosen})


def wanted_arms(run: Run) -> list[str]:
    """The arms that differ from the refined masks; no oracle without masks to choose its options by."""
    config, any_masks = run.config, run.source(run.config.walk.split).any_masks
    return [
        name
        for name in config.controls.arms
        if ARMS[name].affinity != config.walk.affinity
        and (name != "no_crf" or config.masks.crf.iterations)
        and (name != ORACLE or any_masks)
    ]


def confusions(run: Run, stage: StageFolder, names: Sequence[str]) -> np.ndarray:
    """Confusion matrices (N, len(names), C, C) of each val image, rows the truth; zero for an image without a mask."""
    source, seeds = seeded(run, "val"), run.finished("seeds")
    labels, refined = run.finished("labels"), run.finished("masks")
    background = read_scores(run, "masks")["chosen"]["background"]
    count = len(source.classes)
    mine = parallel.share(range(len(source)))
    tables = np.zeros((max(len(mine), 1), len(names), count, count), np.int64)
    with progress(len(mine), "scores of controls") as bar:
        for row, example in zip(tables, loader.read_ahead(source, mine), strict=False):
            if example.mask is not None:
                maps, classes = read_seed_maps(seeds, "val", example.id, size=example.size)
                found = stored_masks(labels, refined, "val", example.id)
                found["seeds"] = seed_mask(maps, classes, background)
                for table, name in zip(row, names, strict=True):
                    mask = found[name] if name in found else read_mask(stage, name, example.id)
                    table += confusion_matrix(mask, example.mask, count)
            bar.advance()
            run.stop.check()
    (tables,) = parallel.gather_shares([tables], len(source))
    return tables


def differences(names: Sequence[str], tables: np.ndarray) -> dict[str, Any]:
    """The mIoU of each kind of mask and by how much the refined masks, the last, are ahead of it, paired by image.

    Args:
      names: of the kinds.
      tables: (N, len(names), C, C), see `confusions`; zero for images that do not count.

    Returns:
      by name miou, interval, ahead and ahead_interval: fractions, 95 % bootstrap intervals over the images.
    """
    tables = tables[tables.any((1, 2, 3))]

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        miou = mean_iou(np.einsum("sn,nkij->skij", weights, tables))  # (S, K)
        return {"miou": miou, "ahead": miou[:, -1:] - miou}

    found = statistic(np.ones((1, len(tables))))
    intervals = bootstrap_interval(statistic, len(tables))
    return {
        name: {
            "miou": float(found["miou"][0, place]),
            "interval": intervals["miou"][:, place].tolist(),
            "ahead": float(found["ahead"][0, place]),
            "ahead_interval": intervals["ahead"][:, place].tolist(),
        }
        for place, name in enumerate(names)
    }


def _are_arms(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(name in ARMS for name in value)


def _scores(run: Run) -> dict[str, Any]:
    """Nothing where the stage is left out."""
    done = run.stage("controls").done
    return {"controls": read_scores(run, "controls")} if done else {}


STAGE = Stage(
    "controls",
    compare_controls,
    needs=lambda config: ["masks", *(["affinity"] if LEARNED in config.controls.arms else [])],
    keys=["controls"],
    options={
        "controls.arms": Wanted(_are_arms, f"a tuple, of which each is one of {', '.join(ARMS)}")
    },
    check_model=check_levels,
    scores=_scores,
    section=controls_section,
)
