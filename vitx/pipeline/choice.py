"""The options of the walk and of the seed masks that a part of train chooses by its masks."""

import itertools
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitx import parallel
from vitx.data.source import Source
from vitx.evaluation.metrics import confusion_matrix, mean_iou
from vitx.pipeline.mask_scores import thresholds
from vitx.pseudomasks.seeds import seed_mask
from vitx.runtime.experiment import Run
from vitx.runtime.files import parse_json
from vitx.runtime.progress import progress
from vitx.runtime.workdir import StageFolder

if TYPE_CHECKING:
    from vitx.pipeline.masks import Refiner

# The options that are chosen, and their types.
_CHOSEN = {"beta": int | float, "log2_steps": int, "alpha": int | float, "background": int | float}


def read_choice(stage: StageFolder, path: Path) -> dict[str, Any]:
    """What `choose` returned in an earlier start of the stage.

    Raises:
      ValueError: where the file is damaged, or was made with other options.
    """
    try:
        chosen = parse_json(path.read_bytes())
        if not isinstance(chosen, dict):
            raise ValueError("it holds no JSON object")
        stamp = chosen.pop("stamp", None)
        for name, kind in _CHOSEN.items():
            value = chosen.get(name)
            if not isinstance(value, kind) or isinstance(value, bool) or not math.isfinite(value):
                raise ValueError(f"its {name} is {value!r}, not a number that was chosen")
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete it and start again; the options are chosen again"
        ) from error
    stage.require_stamp(path, stamp, path.name)
    return chosen


def choose(run: Run, refine: "Refiner") -> dict[str, Any]:
    """The candidates of `config.walk`, and of `config.seeds.background`, with the best mIoU on the walk's split.

    The split is a part of train, and its masks are used. Where there is one candidate of everything, or no mask,
    nothing is compared: the first ones are taken.

    Returns:
      beta, log2_steps and alpha of the refined masks, background of the seeds; where they were chosen also split, and
      all scores: walks (a list of beta, log2_steps, alpha, miou) and backgrounds (of background, miou).
    """
    config, levels = run.config.walk, candidates(run.config.seeds.background)
    alphas = candidates(config.alpha)
    walks = list(itertools.product(candidates(config.beta), candidates(config.log2_steps)))
    first = {"beta": walks[0][0], "log2_steps": walks[0][1], "alpha": alphas[0]}
    single = len(walks) == len(alphas) == len(levels) == 1
    source = run.source(config.split)
    if single or not source.any_masks:
        taken = first | {"background": levels[0]}
        if not single and parallel.is_first_process():
            shown = ", ".join(f"{name} {value:g}" for name, value in taken.items())
            print(
                f"masks: {source.split} has no masks to choose by, the first candidates are taken: {shown}",
                file=sys.stderr,
            )
        return taken
    tables, seeds = _confusions(run, refine, source, walks, alphas, levels)
    refined = [
        {"beta": beta, "log2_steps": steps, "alpha": alpha, "miou": float(mean_iou(table))}
        for (beta, steps), row in zip(walks, tables, strict=True)
        for alpha, table in zip(alphas, row, strict=True)
    ]
    backgrounds = [
        {"background": level, "miou": float(mean_iou(table))}
        for level, table in zip(levels, seeds, strict=True)
    ]
    best = max(refined, key=lambda entry: entry["miou"])
    return {
        **{key: best[key] for key in first},
        "background": max(backgrounds, key=lambda entry: entry["miou"])["background"],
        "split": source.split,
        "walks": refined,
        "backgrounds": backgrounds,
    }


def _confusions(
    run: Run,
    refine: "Refiner",
    source: Source,
    walks: Sequence[tuple[float, int]],
    alphas: Sequence[float],
    levels: Sequence[float],
) -> tuple[np.ndarray, np.ndarray]:
    """Confusion matrices of refined masks (walks, alphas, C, C) and of seed masks (levels, C, C)."""
    count = len(source.classes)
    tables = np.zeros((len(walks), len(alphas), count, count), np.int64)
    seeds = np.zeros((len(levels), count, count), np.int64)
    batches = refine.batches(source)
    mine = parallel.share(range(len(batches)))
    with progress(sum(len(batches.places(number)) for number in mine), "choice") as bar:
        for items, affinity, maps in refine.prepared(
            batches, mine, "train", alphas, keep_seed_maps=True
        ):
            masked = [item.example.mask is not None for item in items]
            for number, walk in enumerate(walks):
                walked = refine.walk(affinity, maps, *walk)
                for item, item_maps in itertools.compress(zip(items, walked, strict=True), masked):
                    for alpha, mask in enumerate(refine.masks(item_maps, item, len(alphas))):
                        tables[number, alpha] += confusion_matrix(mask, item.example.truth, count)
            for item in itertools.compress(items, masked):
                masks = seed_mask(item.seed_maps, item.classes, thresholds(levels))
                for table, mask in zip(seeds, masks, strict=True):
                    table += confusion_matrix(mask, item.example.truth, count)
            bar.advance(len(items))
            run.stop.check()
    return parallel.sum_over_processes((tables, seeds))


def candidates(option: Any) -> tuple[Any, ...]:
    """One value, or several of which the masks of a part of train choose."""
    return tuple(option) if isinstance(option, tuple | list) else (option,)
