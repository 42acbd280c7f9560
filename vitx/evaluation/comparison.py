"""The comparison of explanation methods: what is compared, and measurements on batches; `summary` has the figures."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from numpy.typing import ArrayLike

from vitx import parallel
from vitx.data.transforms import resize_maps
from vitx.evaluation.masked import COMPUTE
from vitx.evaluation.perturbation import (
    DIRECTIONS,
    FRACTIONS,
    explain_and_perturb,
    explain_pixels,
)
from vitx.evaluation.ranking import are_increasing
from vitx.evaluation.scores import SCORES, Judged, scores_of
from vitx.evaluation.segmentation import method_scores
from vitx.explainable import Explainable
from vitx.ops import Array
from vitx.relevance.explain import explain, explain_many
from vitx.relevance.methods import TABLE_METHODS
from vitx.relevance.registry import REGISTRY, method_names, method_of

MEASURES = ("perturbation", "segmentation")
EXPLAINED = ("predicted", "target")


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
      scores: names of `scores.SCORES`, for every map.
      reference: the method that all others are compared with, image by image; "": none.
      options: (method, its options as (name, value) pairs) pairs, see `registry.Method.options`.
      compute: type of the masked forwards' products, one of `masked.COMPUTE`.

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
    scores: tuple[str, ...] = ()
    reference: str = ""
    options: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = ()
    compute: str = "float32"

    def __post_init__(self) -> None:
        _check("compared", self.methods, method_names())
        _check("explained", self.explained, EXPLAINED)
        _check("measures", self.measures, MEASURES)
        _check("directions", self.directions, DIRECTIONS)
        _check("compute", (self.compute,), COMPUTE)
        if self.scores:
            _check("scores", self.scores, tuple(SCORES))
        if self.reference and self.reference not in self.methods:
            raise ValueError(f"methods.reference {self.reference!r} is not in methods.compared")
        for name, given in self.options:
            _check("options", (name,), tuple(REGISTRY))
            REGISTRY[name].checked(dict(given))
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
        names = ("explained", "measures", "directions", "fractions", "scores")
        return cls(
            methods=tuple(config.compared),
            **{name: tuple(config[name]) for name in names if name in config},
            fill=config.get("fill", 0.0),
            compute=config.get("compute", "float32"),
            reference=reference
            if (reference := config.get("reference", "")) in config.compared
            else "",
            options=tuple(
                (name, tuple(sorted(given.items())))
                for name, given in sorted(config.get("options", ConfigDict()).to_dict().items())
            ),
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
    def scored(self) -> tuple[tuple[str, str], ...]:
        """(method, class explained) of each scored map: all methods for each class."""
        return tuple((method, which) for which in self.explained for method in self.methods)

    @property
    def needs_classes(self) -> bool:
        """Whether images need a true class among the model's outputs."""
        return "perturbation" in self.measures or "target" in self.explained

    @property
    def needs_masks(self) -> bool:
        """Whether images need a mask of the object."""
        return "segmentation" in self.measures or any(SCORES[name].masks for name in self.scores)

    def __call__(self, model: Explainable, images: Array, targets: Array) -> tuple[Array, Array]:
        """Normalised images (B, H, W, 3), targets (B,) -> logits (B, C), raw maps (B, M, h, w), M as `columns`.

        The maps are on the token grid, but all in pixels where one of them is ("lrp" without a stem).
        """
        logits, classes = self.classes(model, images, targets)
        return logits, self.maps(model, images, classes)

    def classes(self, model: Explainable, images: Array, targets: Array) -> tuple[Array, Array]:
        """Logits (B, C), and the classes (B, E) that are explained, E as `explained`."""
        logits, _ = explain(model, images, method="centre")  # which no model lacks
        classes = {"predicted": logits.argmax(-1), "target": targets}
        return logits, jnp.stack([classes[name].astype(jnp.int32) for name in self.explained], 1)

    def maps(self, model: Explainable, images: Array, classes: Array) -> Array:
        """Raw maps (B, M, h, w) of the classes (B, E), see `classes`."""
        by_method = self._explained(self.methods, model, images, classes)
        maps = [
            by_method[method][:, self.explained.index(explained)]
            for method, explained in self.columns
        ]
        if len({x.shape for x in maps}) > 1:
            maps = [resize_maps(x, (images.shape[1], images.shape[2])) for x in maps]
        return jnp.stack(maps, 1)

    def maps_of(self, method: str, model: Explainable, images: Array, classes: Array) -> Array:
        """Raw maps (B, E, h, w) of one method, all E the same where they do not depend on the class."""
        return self._explained((method,), model, images, classes)[method]

    def _explained(
        self, methods: tuple[str, ...], model: Explainable, images: Array, classes: Array
    ) -> dict[str, Array]:
        names = {method_of(method).name for method in methods}
        start_layers = {name: first for name, first in self.start_layers if name in names}
        options = {name: dict(given) for name, given in self.options if name in names}
        return explain_many(model, images, classes, methods, start_layers, options=options)[1]


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
            compute=comparison.compute,
        )

    return parallel.per_example(run, mode=mode, over=over)


@functools.cache
def score_program(
    comparison: Comparison, mode: str = "jit", over: Mesh | None = None
) -> Callable[..., dict[str, np.ndarray]]:
    """The scores of a batch's maps, compiled as `program` is.

    Returns:
      a function of a model, pixels, true classes, the raw maps (B, M, h, w) of `program`, and masks of the object, bool
      (B, H, W), which may be arbitrary where no score reads them. It returns "score_<name>" (B, S), S as `scored`, and
      "clean" (B,), whether the model is right, where true classes are needed and `program` does not give it.
    """
    # Maps that do not depend on the class count for each class.
    first, columns = comparison.explained[0], comparison.columns
    maps = [columns.index(c if c in columns else (c[0], first)) for c in comparison.scored]
    explained = [comparison.explained.index(which) for _, which in comparison.scored]
    maps_at, classes_at = np.array(maps), np.array(explained)

    def run(
        model: Explainable, pixels: Array, targets: Array, raw: Array, masks: Array
    ) -> dict[str, Array]:
        def scored(model: Explainable, images: Array, targets: Array) -> dict[str, Array]:
            logits, classes = comparison.classes(model, images, targets)
            size = images.shape[1], images.shape[2]

            def explain_again(model: Explainable, images: Array) -> Array:
                return resize_maps(comparison.maps(model, images, classes), size)[:, maps_at]

            maps = resize_maps(raw, size)[:, maps_at]
            judged = Judged(model, images, maps, classes[:, classes_at], explain_again, masks)
            found = {f"score_{n}": x for n, x in scores_of(comparison.scores, judged).items()}
            right = logits.argmax(-1).astype(jnp.int32) == targets
            alone = comparison.needs_classes and "perturbation" not in comparison.measures
            return found | {"clean": right} if alone else found

        mean, std = model.preprocess.mean, model.preprocess.std
        return explain_pixels(model, scored, pixels, targets, mean, std)

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
