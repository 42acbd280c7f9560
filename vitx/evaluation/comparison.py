"""The comparison of explanation methods: measurements on batches, and the figures of a whole set."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from numpy.typing import ArrayLike

from vitx import parallel
from vitx.data.transforms import resize_maps
from vitx.evaluation.bootstrap import bootstrap_interval
from vitx.evaluation.metrics import SegmentationCounts
from vitx.evaluation.perturbation import (
    DIRECTIONS,
    FRACTIONS,
    area_under_curve,
    explain_and_perturb,
    explain_pixels,
)
from vitx.evaluation.ranking import are_increasing
from vitx.evaluation.segmentation import method_scores
from vitx.explainable import Explainable
from vitx.ops import Array
from vitx.relevance.explain import explain
from vitx.relevance.methods import TABLE_METHODS
from vitx.relevance.registry import REGISTRY, Method

MEASURES = ("perturbation", "segmentation")
EXPLAINED = ("predicted", "target")
STABLE = "/stable"


@dataclass(frozen=True)
class Comparison:
    """The methods compared and the measures. Called, it is the `explain` of `explain_and_perturb`.

    Attributes:
      methods: names of `vitx.METHODS`; "lrp/stable" has the stable rules instead of the published ones.
      explained: the classes explained, "predicted", "target" or both. Class-agnostic methods are explained once.
      measures: "perturbation", "segmentation" or both; segmentation scores the maps of the first of `explained`.
      directions: of perturbation, "positive", "negative" or both.
      fractions: of the pixels that are removed.
      fill: value of removed pixels, in [0, 1].
      threshold: a pixel is foreground where its map, in [0, 1], exceeds it; None: the mean of the map.
      start_layers: (method, first block of its product) pairs, 0 for a method that is not named.

    Raises:
      ValueError: for an unknown or repeated name, nothing to compare, or numbers out of range.
    """

    methods: tuple[str, ...] = TABLE_METHODS
    explained: tuple[str, ...] = EXPLAINED
    measures: tuple[str, ...] = MEASURES
    directions: tuple[str, ...] = DIRECTIONS
    fractions: tuple[float, ...] = FRACTIONS
    fill: float = 0.0
    threshold: float | None = None
    start_layers: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        stable = tuple(name + STABLE for name, method in REGISTRY.items() if method.rule_sets)
        _check("compared", self.methods, (*REGISTRY, *stable))
        _check("explained", self.explained, EXPLAINED)
        _check("measures", self.measures, MEASURES)
        _check("directions", self.directions, DIRECTIONS)
        products = [n for n, method in REGISTRY.items() if method.published_start_layer is not None]
        if unknown := [name for name, _ in self.start_layers if name not in products]:
            raise ValueError(
                f"methods.start_layer has {unknown[0]!r}; only {' and '.join(products)} start at a layer"
            )
        if not are_increasing(self.fractions):
            raise ValueError(f"methods.fractions {self.fractions} must increase within [0, 1]")
        for name, value in (("fill", self.fill), ("threshold", self.threshold or 0.0)):
            if not 0 <= value <= 1:
                raise ValueError(f"methods.{name} is {value:g}, but pixels and maps are in [0, 1]")

    @classmethod
    def from_config(cls, config: Any) -> Self:
        """The comparison of a config's `methods`; absent keys have the defaults above."""
        threshold = config.get("threshold", "mean")
        if threshold != "mean" and not isinstance(threshold, int | float):
            raise ValueError(f'methods.threshold is {threshold!r}: "mean", or a number in [0, 1]')
        names = ("explained", "measures", "directions", "fractions")
        return cls(
            methods=tuple(config.compared),
            **{name: tuple(config[name]) for name in names if name in config},
            fill=config.get("fill", 0.0),
            threshold=None if threshold == "mean" else float(threshold),
            start_layers=tuple(sorted(config.start_layer.to_dict().items())),
        )

    @property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """(method, class explained) of each map: all methods for the first class, then those of the other."""
        first, *further = self.explained
        columns = [(method, first) for method in self.methods]
        for which in further:
            columns += [(name, which) for name in self.methods if method_of(name).by_class]
        return tuple(columns)

    @property
    def needs_classes(self) -> bool:
        """Whether images need a true class among the model's outputs."""
        return "perturbation" in self.measures or "target" in self.explained

    def __call__(self, model: Explainable, images: Array, targets: Array) -> tuple[Array, Array]:
        """Normalised images (B, H, W, 3), targets (B,) -> logits (B, C), raw maps (B, M, h, w), M as `columns`.

        The maps are on the token grid, but all in pixels where one of them is ("lrp" without a stem).
        """
        logits, _ = explain(model, images, method="raw_attention")
        classes = {"predicted": logits.argmax(-1), "target": targets}
        wanted = jnp.stack([classes[name].astype(jnp.int32) for name in self.explained], 1)
        by_method = {method: self._maps(model, images, method, wanted) for method in self.methods}
        maps = [
            by_method[method][:, self.explained.index(explained)]
            for method, explained in self.columns
        ]
        if len({x.shape for x in maps}) > 1:
            maps = [resize_maps(x, (images.shape[1], images.shape[2])) for x in maps]
        return logits, jnp.stack(maps, 1)

    def _maps(self, model: Explainable, images: Array, method: str, classes: Array) -> Array:
        chosen, rules = method_of(method), "stable" if method.endswith(STABLE) else "published"
        wanted = classes if chosen.by_class else classes[:, :1]
        start = dict(self.start_layers).get(chosen.name, 0)
        return explain(model, images, wanted, chosen.name, start, rules)[1]


def method_of(name: str) -> Method:
    """The method of a name in `Comparison.methods`: LRP for "lrp/stable"."""
    return REGISTRY[name.removesuffix(STABLE)]


def _check(option: str, names: Sequence[str], known: Sequence[str]) -> None:
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"methods.{option} has {unknown[0]!r}; there are {', '.join(known)}")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"methods.{option} is {', '.join(names) or 'empty'}: name each once")


@functools.cache
def program(
    comparison: Comparison, mode: str = "jit", over: Mesh | None = None
) -> Callable[[Explainable, ArrayLike, ArrayLike], dict[str, np.ndarray]]:
    """The computation on a batch, compiled for a mesh, see `parallel.per_example`.

    Returns:
      a function of a model, pixels (B, H, W, 3) in [0, 1] and true classes (B,), which may be arbitrary without
      perturbation and "target". It returns "maps" (B, M, h, w), M as `columns`; for perturbation also bool (B, M, F)
      for each direction, whether the model is right, and "clean" (B,) for the unperturbed images.
    """

    def run(model: Explainable, pixels: Array, targets: Array) -> dict[str, Array]:
        mean, std = model.preprocess.mean, model.preprocess.std
        if "perturbation" not in comparison.measures:
            return {"maps": explain_pixels(model, comparison, pixels, targets, mean, std)[1]}
        return explain_and_perturb(
            model,
            comparison,
            pixels,
            targets,
            comparison.fractions,
            mean,
            std,
            fill=comparison.fill,
            directions=comparison.directions,
        )

    return parallel.per_example(run, mode=mode, over=over)


def measure(
    comparison: Comparison, found: Mapping[str, np.ndarray], masks: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Measurements of each image of a batch, from which `summary` computes the figures.

    Args:
      comparison: the measures.
      found: results of its `program`.
      masks: (B, H, W) foreground 1, background 0, -1 or 255 ignored, for segmentation.

    Returns:
      `found` without the maps; "constant" bool (B, M), maps without any contrast; and for segmentation
      "<field>_<m>", the `SegmentationCounts` of method m.

    Raises:
      FloatingPointError: where a map is not finite, naming methods and rows.
      ValueError: for segmentation without masks.
    """
    measured = dict(found)
    maps = measured.pop("maps")
    if not np.isfinite(maps).all():
        finite = np.isfinite(maps).all((2, 3))  # (B, M)
        names = ", ".join(
            "{} ({})".format(*comparison.columns[m]) for m in np.flatnonzero(~finite.all(0))
        )
        rows = ", ".join(map(str, np.flatnonzero(~finite.all(1))))
        raise FloatingPointError(f"maps are not finite: {names}, rows {rows} of the batch")
    measured["constant"] = maps.max((2, 3)) == maps.min((2, 3))
    if "segmentation" in comparison.measures:
        if masks is None:
            raise ValueError("methods.measures has segmentation, but the dataset has no masks")
        for index in range(len(comparison.methods)):
            counts = method_scores(maps[:, index], masks, threshold=comparison.threshold)
            measured |= {f"{name}_{index}": values for name, values in counts.arrays().items()}
    return measured


def summary(comparison: Comparison, batches: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """The figures of all images from the measurements of each batch; fractions, for JSON.

    Each figure's "interval" is its 95 % bootstrap interval over the images.
    """
    columns = [f"{title}, {explained}" for title, explained in comparison.columns]
    constant = sum(batch["constant"].sum(0) for batch in batches)
    results: dict[str, Any] = {
        "images": sum(len(batch["constant"]) for batch in batches),
        "constant_maps": {
            column: int(count) for column, count in zip(columns, constant, strict=True) if count
        },
    }
    if "perturbation" in comparison.measures:
        clean = np.concatenate([batch["clean"] for batch in batches])
        results["accuracy"] = float(clean.mean())
        results["fractions"] = list(comparison.fractions)
        results["perturbation"] = _perturbation(comparison, batches)
    if "segmentation" in comparison.measures:
        results["segmented"] = comparison.explained[0]
        results["segmentation"] = {
            method: _segmentation(
                SegmentationCounts.concatenate([_counts(batch, index) for batch in batches])
            )
            for index, method in enumerate(comparison.methods)
        }
    return results


def _perturbation(
    comparison: Comparison, batches: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, Any]:
    figures: dict[str, Any] = {method: {} for method in comparison.methods}
    for direction in comparison.directions:
        right = np.concatenate([batch[direction] for batch in batches]).astype(np.float64)

        def statistics(weights: np.ndarray, right: np.ndarray = right) -> dict[str, np.ndarray]:
            accuracy = np.tensordot(weights, right, 1) / weights.sum(-1)[:, None, None]
            return {  # (S, M, F), (S, M)
                "accuracy": accuracy,
                "auc": area_under_curve(accuracy, comparison.fractions),
            }

        found = statistics(np.ones((1, len(right))))
        intervals = bootstrap_interval(statistics, len(right))  # (2, M, F), (2, M)
        for index, (method, explained) in enumerate(comparison.columns):
            figures[method][f"{direction}_{explained}"] = {
                "accuracy": found["accuracy"][0, index].tolist(),
                "accuracy_interval": intervals["accuracy"][:, index].tolist(),
                "auc": float(found["auc"][0, index]),
                "interval": intervals["auc"][:, index].tolist(),
            }
    return figures


def _segmentation(counts: SegmentationCounts) -> dict[str, Any]:
    def statistics(weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
        scores = counts.scores(weights)
        iou = scores.pop("iou")
        return scores | {"iou_background": iou[..., 0], "iou_foreground": iou[..., 1]}

    intervals = bootstrap_interval(statistics, len(counts))
    figures: dict[str, Any] = {
        name: {"value": float(value), "interval": intervals[name].tolist()}
        for name, value in statistics().items()
    }
    curve = counts.precision_recall()
    return figures | {"precision_recall": {name: x.tolist() for name, x in curve.items()}}


def _counts(batch: Mapping[str, np.ndarray], index: int) -> SegmentationCounts:
    suffix = f"_{index}"
    return SegmentationCounts(
        **{k.removesuffix(suffix): v for k, v in batch.items() if k.endswith(suffix)}
    )
