"""The options of masks that are chosen from candidates, by the masks of a part of train or without any."""

import itertools
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vitx import parallel
from vitx.data import loader
from vitx.data.source import Source
from vitx.evaluation.metrics import confusion_matrix, mean_iou
from vitx.pipeline.affinities import NO_WALK
from vitx.pipeline.artifacts import read_seed_maps
from vitx.pipeline.feature_judge import FeatureJudge
from vitx.pipeline.mask_scores import thresholds
from vitx.pipeline.refiner import Item, Refiner
from vitx.pseudomasks.seeds import seed_mask
from vitx.runtime.experiment import Run
from vitx.runtime.files import parse_json
from vitx.runtime.progress import progress
from vitx.runtime.workdir import StageFolder

CHOICES = ("masks", "auto")

# The options that are chosen, and their types.
_CHOSEN = {"beta": int | float, "log2_steps": int, "level": int | float}


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


def choose(run: Run, refine: Refiner) -> dict[str, Any]:
    """The candidates of `config.walk` that make the best masks.

    With `walk.choose=masks` by the mIoU on `walk.split`, a part of train, of which the masks are used. With "auto", or
    where that split has no masks, by how well masks follow the classifier's features, see `FeatureJudge`. Where there
    is one candidate of everything, nothing is compared.

    Returns:
      beta, log2_steps, level, and how: "given", "masks" or "auto". Where they were chosen also split, and candidates (a
      list of beta, log2_steps, level and score); with a dense CRF after the walk also under_crf (a list of level and
      score), since the level is chosen once more under the CRF, for the walk that is best without.
    """
    walks, levels = candidates(run.config)
    walks = walks[:1] if refine.affinity == NO_WALK else walks
    if len(walks) == len(levels) == 1:
        ((beta, steps),) = walks
        return {"how": "given", "beta": beta, "log2_steps": steps, "level": levels[0]}
    source = run.source(run.config.walk.split)
    judge = _judge(run, source)
    found = _judged(run, refine, judge, walks, levels, crf=False)
    best = max(found, key=lambda entry: entry["score"])
    chosen = {
        "how": judge.name,
        **{name: best[name] for name in ("beta", "log2_steps", "level")},
        "split": source.split,
        "candidates": found,
    }
    if not refine.crf_follows:
        return chosen
    walk = (best["beta"], best["log2_steps"])
    again = _judged(run, refine, judge, [walk], levels, crf=True)
    level = max(again, key=lambda entry: entry["score"])["level"]
    return chosen | {"level": level, "under_crf": again}


def choose_background(run: Run) -> dict[str, Any]:
    """The background score of the seed masks, from the candidates of `seeds.background`, chosen as in `choose`.

    Returns:
      background, and background_how like how of `choose`; where it was chosen also backgrounds, a list of background
      and score.
    """
    levels, source = values_of(run.config.seeds.background), run.source(run.config.walk.split)
    if len(levels) == 1:
        return {"background": levels[0], "background_how": "given"}
    judge, seeds = _judge(run, source), run.finished("seeds")
    sums = judge.empty(len(levels))
    for example in loader.read_ahead(source, parallel.share(range(len(source)))):
        seed_maps, classes = read_seed_maps(seeds, "train", example.id, size=example.size)
        masks = seed_mask(seed_maps, classes, thresholds(levels))
        judge.look([example])
        judge.add(sums, masks, Item(example, classes))
        run.stop.check()
    (sums,) = parallel.sum_over_processes((sums,))
    scores = [
        {"background": level, "score": float(score)}
        for level, score in zip(levels, judge.score(sums), strict=True)
    ]
    best = max(scores, key=lambda entry: entry["score"])
    return {
        "background": best["background"],
        "background_how": judge.name,
        "backgrounds": scores,
    }


def _judge(run: Run, source: Source) -> "Judge":
    if run.config.walk.choose == "auto":
        return FeatureJudge(run, source)
    if source.any_masks:
        return MaskJudge(source)
    if parallel.is_first_process():
        print(
            f"masks: {source.split} has no masks to choose by: options are chosen without masks",
            file=sys.stderr,
        )
    return FeatureJudge(run, source)


def values_of(option: Any) -> tuple[Any, ...]:
    """One value, or several candidates of which one is chosen."""
    return tuple(option) if isinstance(option, tuple | list) else (option,)


def candidates(config: Any) -> tuple[list[tuple[float, int]], tuple[float, ...]]:
    """The candidates of the walk, (beta, log2_steps), and of the background's level."""
    walks = list(itertools.product(values_of(config.walk.beta), values_of(config.walk.log2_steps)))
    level = "threshold" if config.walk.background == "constant" else "alpha"
    return walks, values_of(config.walk[level])


class Judge(Protocol):
    """Scores candidates by their masks."""

    name: str

    def empty(self, *shape: int) -> np.ndarray:
        """Sums for candidates of a shape, before the first image of a pass: (*shape, ...)."""

    def look(self, examples: Sequence[loader.Example]) -> None:
        """Sees images once in each pass, before their masks are added."""

    def add(self, sums: np.ndarray, masks: np.ndarray, item: Item) -> None:
        """Adds an image's masks (A, H, W) to the sums of A candidates (A, ...)."""

    def score(self, sums: np.ndarray) -> np.ndarray:
        """Sums (..., of `empty`) -> scores (...), the larger the better."""


class MaskJudge:
    """The mIoU against the true masks of the images that have one."""

    name = "masks"

    def __init__(self, source: Source):
        self._count = len(source.classes)

    def empty(self, *shape: int) -> np.ndarray:
        """Confusion matrices (*shape, C, C)."""
        return np.zeros((*shape, self._count, self._count), np.int64)

    def look(self, examples: Sequence[loader.Example]) -> None:
        """See `Judge`; the images tell nothing."""

    def add(self, sums: np.ndarray, masks: np.ndarray, item: Item) -> None:
        """See `Judge`."""
        if item.example.mask is not None:
            for table, mask in zip(sums, masks, strict=True):
                table += confusion_matrix(mask, item.example.truth, self._count)

    def score(self, sums: np.ndarray) -> np.ndarray:
        """See `Judge`."""
        return mean_iou(sums)


def _judged(
    run: Run,
    refine: Refiner,
    judge: Judge,
    walks: Sequence[tuple[float, int]],
    levels: Sequence[float],
    crf: bool,
) -> list[dict[str, Any]]:
    """The score of each candidate."""
    batches = refine.batches(run.source(run.config.walk.split))
    mine = parallel.share(range(len(batches)))
    images = sum(len(batches.places(number)) for number in mine)
    sums = judge.empty(len(walks), len(levels))
    with progress(images, f"choice of {refine.affinity}", compiles=True) as bar:
        for items, affinity, maps in refine.prepared(batches, mine, "train", levels):
            judge.look([item.example for item in items])
            for row, walk in zip(sums, walks, strict=True):
                walked = refine.walk(affinity, maps, *walk)
                for item, item_maps in zip(items, walked, strict=True):
                    judge.add(row, refine.masks(item_maps, item, levels, crf), item)
                run.stop.check()
            bar.advance(len(items))
    (sums,) = parallel.sum_over_processes((sums,))
    return [
        {"beta": beta, "log2_steps": steps, "level": level, "score": float(score)}
        for (beta, steps), row in zip(walks, judge.score(sums), strict=True)
        for level, score in zip(levels, row, strict=True)
    ]
