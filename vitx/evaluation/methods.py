"""Stage `methods`: the six explanation methods compared by perturbation and by segmentation."""

import itertools
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from vitx import checkpoints
from vitx.data import pipeline
from vitx.data.transforms import resize_image, resize_mask
from vitx.evaluation.bootstrap import bootstrap_interval
from vitx.evaluation.metrics import SegmentationCounts
from vitx.evaluation.perturbation import (
    DIRECTIONS,
    FRACTIONS,
    area_under_curve,
    explain_and_perturb,
)
from vitx.evaluation.segmentation import foreground_masks, method_scores
from vitx.ops import Array
from vitx.relevance.explain import CLASS_AGNOSTIC, METHODS, explain
from vitx.run import progress
from vitx.stages import Run
from vitx.workdir import Stage, read_npz, write_json, write_npz

BY_CLASS = tuple(method for method in METHODS if method not in CLASS_AGNOSTIC)
# The maps that are perturbed, in the order of `explanations`.
EXPLAINED = tuple(
    [(method, "predicted") for method in METHODS] + [(method, "target") for method in BY_CLASS]
)


def compare_methods(run: Run, stage: Stage) -> None:
    """Writes `scores.json`: for each method, perturbation accuracies and AUCs, and segmentation scores.

    Of the val split, the images that show one class: there, the classifier's best class is right or wrong. Each
    batch is a file of its own, so that a stopped run loses at most one.
    """
    config = run.config.methods
    model = checkpoints.load(run.finished("classifier").folder)
    source = run.source(run.config.data.val_split)
    chosen = one_class(source, config.images)
    perturbed = partial(
        explain_and_perturb,
        model,
        partial(explanations, start_layers=_start_layers(config), rules=config.rules),
        mean=model.preprocess.mean,
        std=model.preprocess.std,
    )
    files = []
    with progress(len(chosen), "methods") as bar:
        for number in range(0, len(chosen), config.batch_size):
            rows = chosen[number : number + config.batch_size]
            files.append(stage.folder / "batches" / f"{number:06}.npz")
            if not files[-1].exists():
                batch = _batch(source, rows, config.batch_size, model.preprocess.size)
                write_npz(files[-1], _measure(perturbed, batch, len(rows)))
            bar.advance(len(rows))
            run.stop.check()
    write_json(stage.folder / "scores.json", summary([read_npz(file) for file in files]))


def explanations(
    model: Any,
    images: Array,
    targets: Array,
    *,
    start_layers: tuple[tuple[str, int], ...],
    rules: str,
) -> tuple[Array, Array]:
    """All maps that are compared: logits (B, C), and maps (B, M, h, w) in the order of `EXPLAINED`.

    Class-agnostic methods are explained once.
    """
    start = dict(start_layers)
    logits, first = explain(model, images, method="rollout", start_layer=start.get("rollout", 0))
    best = logits.argmax(-1)
    classes = jnp.stack([best, targets.astype(best.dtype)], 1)
    by_class = {}
    for method in METHODS:
        if method == "rollout":
            by_class[method] = first[:, None]
        else:
            wanted = classes[:, :1] if method in CLASS_AGNOSTIC else classes
            by_class[method] = explain(
                model, images, wanted, method, start.get(method, 0), rules, wanted.shape[1]
            )[1]
    maps = [by_class[method][:, 0] for method in METHODS]
    maps += [by_class[method][:, 1] for method in BY_CLASS]
    return logits, jnp.stack(maps, 1)


def summary(batches: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """The figures of all images from those of the batches, by method, fractions.

    Each figure's "interval" is its 95 % bootstrap interval over the images.
    """
    joined = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    count = len(joined[DIRECTIONS[0]])
    perturbation: dict[str, Any] = {}
    for direction in DIRECTIONS:
        for index, (method, explained) in enumerate(EXPLAINED):
            right = joined[direction][:, index].astype(np.float64)  # (N, F)
            interval = bootstrap_interval(partial(_curve_of, right), count)["auc"]
            perturbation.setdefault(method, {})[f"{direction}_{explained}"] = {
                "accuracy": right.mean(0).tolist(),
                "auc": float(area_under_curve(right.mean(0))),
                "interval": interval.tolist(),
            }
    segmentation: dict[str, Any] = {}
    for index, method in enumerate(METHODS):
        counts = _counts(joined, index)
        intervals = bootstrap_interval(counts.scores, count)
        segmentation[method] = {
            name: {"value": float(value), "interval": intervals[name].tolist()}
            for name, value in counts.scores().items()
            if np.ndim(value) == 0
        }
    return {
        "images": count,
        "accuracy": float(joined[DIRECTIONS[0]][:, 0, 0].mean()),
        "fractions": list(FRACTIONS),
        "perturbation": perturbation,
        "segmentation": segmentation,
    }


def one_class(source: pipeline.Source, limit: int) -> list[int]:
    """Places of the first `limit` images (0: of all) that show one class alone.

    Raises:
      ValueError: where there is none.
    """
    alone = (index for index in range(len(source)) if source[index].labels.sum() == 1)
    chosen = list(itertools.islice(alone, limit or None))
    if not chosen:
        raise ValueError(f"no image of split {source.split!r} shows one class alone")
    return chosen


def _curve_of(right: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    return {"auc": area_under_curve(weights @ right / weights.sum(-1, keepdims=True))}


def _measure(perturbed: Any, batch: dict[str, np.ndarray], valid: int) -> dict[str, np.ndarray]:
    """Per image: right or wrong after each removal (B, M, F), and each method's segmentation counts."""
    found = perturbed(batch["image"].astype(np.float32) / np.float32(255), batch["target"])
    found = {name: np.asarray(values)[:valid] for name, values in found.items()}
    maps = found.pop("maps")
    if not np.isfinite(maps).all():
        broken = {EXPLAINED[m] for m in np.flatnonzero(~np.isfinite(maps).all((0, 2, 3)))}
        raise FloatingPointError(f"methods: maps are not finite: {sorted(broken)}")
    truth = foreground_masks(batch["mask"])[:valid]
    for index in range(len(METHODS)):
        for name, values in method_scores(maps[:, index], truth).arrays().items():
            found[f"{name}_{index}"] = values
    return found


def _counts(joined: dict[str, np.ndarray], index: int) -> SegmentationCounts:
    suffix = f"_{index}"
    return SegmentationCounts(
        **{
            name.removesuffix(suffix): values
            for name, values in joined.items()
            if name.endswith(suffix)
        }
    )


def _start_layers(config: Any) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(config.start_layer.to_dict().items()))


def _batch(
    source: pipeline.Source, rows: list[int], batch_size: int, size: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Images and masks at the model's size, and targets; filled up to the batch by repeating the last."""
    examples = [source[index] for index in [*rows, *rows[-1:] * (batch_size - len(rows))]]
    return {
        "image": np.stack([resize_image(example.image, size) for example in examples]),
        "mask": np.stack([resize_mask(example.truth, size) for example in examples]),
        "target": np.array([example.labels.argmax() for example in examples], np.int32),
    }
