"""Stage `methods`: the six explanation methods compared by perturbation and by segmentation."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitx import checkpoints
from vitx.data import pipeline
from vitx.data.transforms import normalise
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
    model = checkpoints.load(run.finished("classifier"))
    examples = _one_class(run.source(run.config.data.val_split), config.images)
    perturbed = partial(
        explain_and_perturb,
        model,
        partial(explanations, start_layers=_start_layers(config), rules=config.rules),
        mean=model.preprocess.mean,
        std=model.preprocess.std,
    )
    predicted = jax.jit(
        partial(
            explanations,
            start_layers=_start_layers(config),
            rules=config.rules,
            with_target=False,
        )
    )
    files = []
    with progress(len(examples), "methods") as bar:
        for number, (batch, valid) in enumerate(_batches(examples, config.batch_size)):
            files.append(stage.folder / "batches" / f"{number:05}.npz")
            if not files[-1].exists():
                write_npz(files[-1], _measure(model, perturbed, predicted, batch, valid))
            bar.advance(valid)
            run.stop.check()
    write_json(stage.folder / "scores.json", summary([read_npz(file) for file in files]))


def explanations(
    model: Any,
    images: Array,
    targets: Array,
    *,
    start_layers: tuple[tuple[str, int], ...],
    rules: str,
    with_target: bool = True,
) -> tuple[Array, Array]:
    """All maps that are compared: logits (B, C), and maps (B, M, h, w) in the order of `EXPLAINED`.

    Class-agnostic methods are explained once. Without the target class, the maps are those of `METHODS`.
    """
    start = dict(start_layers)
    logits, first = explain(model, images, method="rollout", start_layer=start.get("rollout", 0))
    best = logits.argmax(-1)
    classes = jnp.stack([best, targets.astype(best.dtype)], 1) if with_target else best[:, None]
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
    if with_target:
        maps += [by_class[method][:, 1] for method in BY_CLASS]
    return logits, jnp.stack(maps, 1)


def summary(batches: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """The figures of all images from those of the batches, by method; fractions."""
    joined = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    perturbation: dict[str, Any] = {}
    for direction in DIRECTIONS:
        accuracy = joined[direction].mean(0)  # (M, F)
        for (method, explained), curve in zip(EXPLAINED, accuracy, strict=True):
            entry = perturbation.setdefault(method, {}).setdefault(f"{direction}_{explained}", {})
            entry["accuracy"] = curve.tolist()
            entry["auc"] = float(area_under_curve(curve))
    segmentation = {
        method: {
            name: float(value)
            for name, value in _counts(joined, index).scores().items()
            if np.ndim(value) == 0
        }
        for index, method in enumerate(METHODS)
    }
    return {
        "images": len(joined[DIRECTIONS[0]]),
        "accuracy": float(joined[DIRECTIONS[0]][:, 0, 0].mean()),
        "fractions": list(FRACTIONS),
        "perturbation": perturbation,
        "segmentation": segmentation,
    }


def _measure(
    model: Any, perturbed: Any, predicted: Any, batch: dict[str, np.ndarray], valid: int
) -> dict[str, np.ndarray]:
    """Per image: right or wrong after each removal (B, M, F), and the segmentation counts of each method."""
    pixels = batch["image"].astype(np.float32) / np.float32(255)
    found = perturbed(pixels, batch["target"])
    _, maps = predicted(
        model, normalise(batch["image"], model.preprocess), jnp.asarray(batch["target"])
    )
    maps = np.asarray(maps)
    out = {name: np.asarray(values)[:valid] for name, values in found.items()}
    truth = foreground_masks(batch["mask"])[:valid]
    for index in range(len(METHODS)):
        counts = method_scores(maps[:valid, index], truth)
        for name, values in counts.arrays().items():
            out[f"{name}_{index}"] = values
    return out


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


def _one_class(source: pipeline.Source, limit: int) -> list[pipeline.Example]:
    chosen = [example for example in source if example.labels.sum() == 1]
    if not chosen:
        raise ValueError(f"no image of split {source.split!r} shows one class alone")
    return chosen[: limit or None]


def _batches(
    examples: list[pipeline.Example], batch_size: int
) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """Batches of one size, the last filled up by repeating, and how many rows of each count."""
    for start in range(0, len(examples), batch_size):
        some = examples[start : start + batch_size]
        filled = [*some, *[some[-1]] * (batch_size - len(some))]
        yield (
            {
                "image": np.stack([example.image for example in filled]),
                "mask": np.stack([example.truth for example in filled]),
                "target": np.array([example.labels.argmax() for example in filled], np.int32),
            },
            len(some),
        )
