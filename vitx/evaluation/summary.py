"""The figures of a comparison of methods over a whole set of images, with bootstrap intervals over the images."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vitx.evaluation.bootstrap import bootstrap_interval
from vitx.evaluation.comparison import Comparison
from vitx.evaluation.metrics import SegmentationCounts
from vitx.evaluation.perturbation import area_under_curve

Batches = Sequence[Mapping[str, np.ndarray]]
Statistic = Callable[[np.ndarray], dict[str, np.ndarray]]


def summary(comparison: Comparison, batches: Batches) -> dict[str, Any]:
    """The figures of all images from the measurements of each batch (`comparison.measure`); fractions, for JSON.

    Each figure's "interval" is its 95 % bootstrap interval over the images. With a reference method its "difference" is
    that to the reference for the same class, and "difference_interval" the interval of the paired differences.
    "by_outcome" has the same figures of the images that the model gets right, and of those it gets wrong, where both
    occur.
    """
    arrays = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    results = _figures(comparison, arrays)
    outcomes = {}
    if (right := arrays.get("clean")) is not None:
        outcomes = {"right": np.flatnonzero(right), "wrong": np.flatnonzero(~right)}
    if all(map(len, outcomes.values())) and outcomes:
        results["by_outcome"] = {
            outcome: _figures(comparison, {name: values[rows] for name, values in arrays.items()})
            for outcome, rows in outcomes.items()
        }
    return results


def _figures(comparison: Comparison, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    columns = [f"{method}, {explained}" for method, explained in comparison.columns]
    constant = arrays["constant"]
    results: dict[str, Any] = {
        "images": len(constant),
        "constant_maps": {
            column: int(count)
            for column, count in zip(columns, constant.sum(0), strict=True)
            if count
        },
    }
    if "clean" in arrays:
        results["accuracy"] = float(arrays["clean"].mean())
    if "perturbation" in comparison.measures:
        results["fractions"] = list(comparison.fractions)
        results["perturbation"] = _perturbation(comparison, arrays)
    if "segmentation" in comparison.measures:
        results["segmented"] = comparison.explained[0]
        results["segmentation"] = _segmentation(comparison, arrays)
    if comparison.reference:
        results["reference"] = comparison.reference
    if comparison.scores:
        results["scores"] = _scores(comparison, arrays)
    return results


def _perturbation(comparison: Comparison, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    found: dict[str, Any] = {method: {} for method in comparison.methods}
    for direction in comparison.directions:
        right = arrays[direction].astype(np.float64)  # (N, M, F)

        def statistic(weights: np.ndarray, right: np.ndarray = right) -> dict[str, np.ndarray]:
            accuracy = np.tensordot(weights, right, 1) / weights.sum(-1)[:, None, None]
            return {  # (S, M, F), (S, M)
                "accuracy": accuracy,
                "auc": area_under_curve(accuracy, comparison.fractions),
            }

        values, intervals = _with_intervals(
            statistic, len(right), _references(comparison, comparison.columns)
        )
        for index, (method, explained) in enumerate(comparison.columns):
            figure = _figure("auc", index, values, intervals)
            found[method][f"{direction}_{explained}"] = {
                "accuracy": values["accuracy"][index].tolist(),
                "accuracy_interval": intervals["accuracy"][:, index].tolist(),
                "auc": figure.pop("value"),
                **figure,
            }
    return found


def _segmentation(comparison: Comparison, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    counts = [_counts(arrays, index) for index in range(len(comparison.methods))]

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        scores = [one.scores(weights) for one in counts]
        found = {
            name: np.stack([s[name] for s in scores], -1) for name in scores[0] if name != "iou"
        }
        ious = np.stack([s["iou"] for s in scores], -2)  # (S, M, 2)
        return found | {"iou_background": ious[..., 0], "iou_foreground": ious[..., 1]}

    # Methods are the first columns.
    references = _references(comparison, comparison.columns)[: len(counts)]
    values, intervals = _with_intervals(statistic, len(counts[0]), references)
    return {
        method: {
            **{name: _figure(name, index, values, intervals) for name in values if "-" not in name},
            "precision_recall": {
                name: x.tolist() for name, x in counts[index].precision_recall().items()
            },
        }
        for index, method in enumerate(comparison.methods)
    }


def _scores(comparison: Comparison, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Means over the images where a score has a meaning; differences over those where both methods' have."""
    columns = comparison.scored
    references = _references(comparison, columns)

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        found = {}
        for name in comparison.scores:
            figures = arrays[f"score_{name}"].astype(np.float64)  # (N, S)
            found[name] = _mean(weights, figures)
            if references:
                found[f"-{name}"] = _mean(weights, figures - _of_references(figures, references))
        return found

    count = len(arrays["constant"])
    values = {name: x[0] for name, x in statistic(np.ones((1, count))).items()}
    intervals = bootstrap_interval(statistic, count)
    found: dict[str, Any] = {method: {} for method in comparison.methods}
    for index, (method, explained) in enumerate(columns):
        for name in comparison.scores:
            found[method][f"{name}_{explained}"] = _figure(name, index, values, intervals)
    return found


def _mean(weights: np.ndarray, figures: np.ndarray) -> np.ndarray:
    """The mean (S, M) of the figures (N, M) that are known, with weights (S, N); NaN where none is."""
    known = np.isfinite(figures)
    counted, total = weights @ known, weights @ np.where(known, figures, 0)
    return np.divide(total, counted, out=np.full_like(total, np.nan), where=counted > 0)


def _of_references(figures: np.ndarray, references: Sequence[int | None]) -> np.ndarray:
    """Each column's reference, (N, M, ...); NaN where it has none."""
    nothing = np.full_like(figures[:, 0], np.nan)
    return np.stack([nothing if r is None else figures[:, r] for r in references], 1)


def _references(comparison: Comparison, columns: Sequence[tuple[str, str]]) -> list[int | None]:
    """The column of the reference method for the class that each column explains; none without a reference."""
    if not comparison.reference:
        return []
    places = {column: place for place, column in enumerate(columns)}
    return [places.get((comparison.reference, explained)) for _, explained in columns]


def _with_intervals(
    statistic: Statistic, count: int, references: Sequence[int | None]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Values (M, ...) and intervals (2, M, ...) of figures (S, M, ...); "-<name>" is that to the reference's."""

    def with_differences(weights: np.ndarray) -> dict[str, np.ndarray]:
        found = statistic(weights)
        if references:
            found |= {f"-{name}": x - _of_references(x, references) for name, x in found.items()}
        return found

    values = {name: x[0] for name, x in with_differences(np.ones((1, count))).items()}
    return values, bootstrap_interval(with_differences, count)


def _figure(
    name: str, index: int, values: Mapping[str, np.ndarray], intervals: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    keys = {"value": name, "difference": f"-{name}"}
    figure: dict[str, Any] = {k: _number(values[n][index]) for k, n in keys.items() if n in values}
    figure["interval"] = [_number(x) for x in intervals[name][:, index]]
    if "difference" in figure:
        figure["difference_interval"] = [_number(x) for x in intervals[f"-{name}"][:, index]]
    return figure


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if np.isfinite(value) else None


def _counts(arrays: Mapping[str, np.ndarray], index: int) -> SegmentationCounts:
    suffix = f"_{index}"
    return SegmentationCounts(
        **{k.removesuffix(suffix): v for k, v in arrays.items() if k.endswith(suffix)}
    )
