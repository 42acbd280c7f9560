"""The comparison of methods for readers: tables, the papers' figures beside ours, curves."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vitx.evaluation.comparison import Comparison
from vitx.evaluation.published import PUBLISHED
from vitx.evaluation.scores import SCORES
from vitx.relevance.methods import TABLE_METHODS
from vitx.relevance.registry import REGISTRY, STABLE, method_of
from vitx.report.charts import Chart, line_chart
from vitx.report.page import Section
from vitx.report.parts import DASH, Fold, Table, percent
from vitx.weights.metadata import guessed_heads


def value_cell(figure: dict[str, Any]) -> str:
    """A figure in percent."""
    return percent(_value(figure))


def interval_cell(figure: dict[str, Any]) -> str:
    """Its interval, in percent."""
    return _interval(figure.get("interval"))


def difference_cell(figure: dict[str, Any]) -> str:
    """Its difference to the reference method's with the interval, in percentage points."""
    if (difference := figure.get("difference")) is None:
        return DASH
    return f"{100 * difference:+.1f} {_interval(figure['difference_interval'])}"


def _interval(ends: Sequence[float | None] | None) -> str:
    return f"[{', '.join(map(percent, ends))}]" if ends else DASH


_PERTURBED = {
    "negative_predicted": "negative, predicted",
    "negative_target": "negative, target",
    "positive_predicted": "positive, predicted",
    "positive_target": "positive, target",
}
_SEGMENTED = {"pixel_accuracy": "pixel accuracy", "map": "mAP", "miou": "mIoU", "mf1": "mF1"}
_MEASURES = {"perturbation": _PERTURBED, "segmentation": _SEGMENTED}
_CAPTIONS = {"perturbation": "Perturbation AUC", "segmentation": "Segmentation"}
_PUBLISHED_FINAL_NORM_EPS = 1e-5
_BETTER = {"positive": "lower is better", "negative": "higher is better"}


def title(method: str) -> str:
    """A method's name on the page: "LRP, stable" for "lrp/stable"."""
    name = method_of(method).title
    return f"{name}, stable" if method.endswith(STABLE) else name


def methods_table(
    methods: dict[str, Any],
    cell: Callable[[dict[str, Any]], str] = value_cell,
    measures: Sequence[str] = ("perturbation", "segmentation"),
) -> tuple[list[str], list[list[str]]]:
    """Headers and rows (one a method) of the comparison in percent: values, or what `cell` makes of a figure.

    A method with maps without contrast on more than a tenth of the images has dashes.
    """
    shown = {
        (measure, key): header
        for measure in measures
        for key, header in (_MEASURES.get(measure) or _score_headers(methods)).items()
        if any(key in figures for figures in methods.get(measure, {}).values())
    }
    rows = []
    for method in _names(methods):
        figures = [methods[measure][method].get(key, {}) for measure, key in shown]
        constant = _is_constant(methods, method)
        cells = [DASH if constant else cell(figure) for figure in figures]
        if "cost" in methods and cell is value_cell:
            cells.append(f"{methods['cost'][method]:.1f}")
        rows.append([title(method) + (" (constant)" if constant else ""), *cells])
    cost = ["cost, forwards"] if "cost" in methods and cell is value_cell else []
    return ["method", *shown.values(), *cost], rows


def _score_headers(methods: dict[str, Any]) -> dict[str, str]:
    """Headers of the scores by key, those of one class explained together: "energy inside +, target"."""
    keys = dict.fromkeys(key for figures in methods.get("scores", {}).values() for key in figures)
    parts = {key: key.rsplit("_", 1) for key in keys}
    several = len({explained for _, explained in parts.values()}) > 1
    headers = {}
    for key in sorted(keys, key=lambda key: parts[key][1]):
        name, explained = parts[key]
        sign = "+" if SCORES[name].higher else "-"
        headers[key] = f"{SCORES[name].title} {sign}" + (f", {explained}" if several else "")
    return headers


def _is_constant(methods: dict[str, Any], method: str) -> bool:
    """Whether a method's maps have no contrast on more than a tenth of the images, so that its figures rank ties."""
    counts = [n for name, n in methods["constant_maps"].items() if name.split(", ")[0] == method]
    return max(counts, default=0) > methods["images"] / 10


def beside_published(methods: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows (one a figure that [Re] printed): ours with its interval, the paper's, the difference."""
    rows = []
    for measure, headers in _MEASURES.items():
        for method, figures in methods.get(measure, {}).items():
            for key, paper in PUBLISHED[measure].get(method, {}).items():
                if key not in figures:
                    continue
                ours = _value(figures[key])
                interval, difference = interval_cell(figures[key]), f"{100 * (ours - paper):+.2f}"
                row = [percent(ours, 2), interval, percent(paper, 2), difference]
                rows.append([title(method), headers[key], *row])
    return ["method", "figure", "ours", "95 % interval", "published", "difference"], rows


def departures(config: Any) -> list[str]:
    """Settings that differ from the published tables ([Re], Tables 2 and 3); data and weights are not compared."""
    ours, usual = Comparison.from_config(config.methods), Comparison()
    names = ("explained", "fractions", "fill", "compute", "threshold")
    found = [f"{n} {getattr(ours, n)}" for n in names if getattr(ours, n) != getattr(usual, n)]
    if ours.measures == ("segmentation",) and ours.explained[0] == "predicted":
        found = [text for text in found if not text.startswith("explained")]
    starts = dict(ours.start_layers)
    for name in TABLE_METHODS:
        if REGISTRY[name].published_start_layer not in (None, start := starts.get(name, 0)):
            found.append(f"start layer of {name} {start}")
    if (epsilon := config.model.get("final_norm_eps")) != _PUBLISHED_FINAL_NORM_EPS:
        found.append(f"epsilon of the final norm {epsilon or 'as in the file'}")
    if config.methods.split:
        found.append(f"split {config.methods.split}")
    if config.methods.images:
        found.append(f"{config.methods.images} images")
    return found


def methods_section(
    methods: dict[str, Any], *, differing: Sequence[str] | None, pictures: Sequence[object] = ()
) -> Section:
    """All figures and curves of the comparison; `pictures` come last.

    `differing` is what `departures` found, None where the published figures do not apply.
    """
    caption = " and ".join(name for measure, name in _CAPTIONS.items() if measure in methods)
    body: list[object] = [_explained(methods), *_tables(methods, caption)]
    if differing is not None:
        if differing:
            body.append(f"Not as published: {', '.join(differing)}.")
        body.append(Table(*beside_published(methods), "Beside the published figures, %", texts=2))
    if methods["constant_maps"]:
        counts = "; ".join(f"{column}: {n}" for column, n in methods["constant_maps"].items())
        body.append(
            f"Maps without any contrast, which show nothing: {counts}. A method with more than a tenth of such maps is "
            "marked as constant and has no figures in these tables: they would be those of a fixed order of the pixels."
        )
    body += [
        Fold(
            f"{figures['images']} images that the model gets {outcome}",
            tuple(_tables(figures, caption)),
        )
        for outcome, figures in methods.get("by_outcome", {}).items()
    ]
    body.append(_curves(methods))
    if "perturbation" in methods:
        accuracies = Table(*accuracies_table(methods), "Accuracy, %", texts=2)
        body.append(Fold("Accuracy at each fraction of pixels removed", accuracies))
    return Section("Explanation methods", [*body, *pictures])


def _tables(methods: dict[str, Any], caption: str) -> list[object]:
    """The figures with their intervals, and the differences to the reference method."""
    body: list[object] = []
    for measures, name in ((tuple(_MEASURES), caption), (("scores",), "Scores of maps")):
        if not any(measure in methods for measure in measures):
            continue
        body.append(Table(*methods_table(methods, measures=measures), f"{name}, %"))
        intervals = Table(*methods_table(methods, interval_cell, measures), f"{name}: intervals, %")
        body.append(Fold("95 % bootstrap intervals over the images", intervals))
        if methods.get("reference"):
            differences = Table(
                *methods_table(methods, difference_cell, measures), f"{name}: points"
            )
            text = f"Differences to {title(methods['reference'])}, with paired 95 % intervals"
            body.append(Fold(text, differences))
    return body


def accuracies_table(methods: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of the accuracy at each fraction of pixels removed."""
    fractions = [f"{100 * fraction:g} %" for fraction in methods["fractions"]]
    rows = [
        [title(method), _PERTURBED[key], *map(percent, figures[key]["accuracy"])]
        for method, figures in methods["perturbation"].items()
        for key in _PERTURBED
        if key in figures
    ]
    return ["method", "perturbation", *fractions], rows


def _names(methods: dict[str, Any]) -> list[str]:
    return list(methods.get("perturbation") or methods["segmentation"])


def _value(figure: dict[str, Any]) -> Any:
    return figure.get("auc", figure.get("value"))


def _explained(methods: dict[str, Any]) -> str:
    text = [f"{methods['images']} images."]
    if "perturbation" in methods:
        text.append(
            "Each shows one class. "
            f"Accuracy of the unperturbed model on them: {percent(methods['accuracy'], 2)} %. "
            "Perturbation: area under the accuracy as pixels are removed, most relevant first (positive, lower is "
            "better) or least relevant first (negative, higher is better)."
        )
    if "segmentation" in methods:
        text.append(
            f"Segmentation: the map of the {methods['segmented']} class, above its threshold, against the object."
        )
    if "scores" in methods:
        text.append("Scores: + is better where it is high, - where it is low (docs/methods.md).")
    if "num_heads" in (model := methods.get("model", {})).get("assumed", ()):
        text.append(guessed_heads("the explained model", model["num_heads"]))
    return " ".join(text)


def _curves(methods: dict[str, Any]) -> list[Chart]:
    names, charts = [title(method) for method in _names(methods)], []
    for key, header in _PERTURBED.items():
        series = {
            title(method): figures[key]["accuracy"]
            for method, figures in methods.get("perturbation", {}).items()
            if key in figures
        }
        if series:
            removed = [100 * fraction for fraction in methods["fractions"]]
            labels = ("% of pixels removed", "accuracy")
            caption = f"Perturbation: {header} class ({_BETTER[key.split('_')[0]]})"
            charts.append(line_chart(series, removed, labels, caption, among=names))
    if "segmentation" in methods:
        recalls = [place / 50 for place in range(51)]
        series = {
            title(method): _precision_at(figures["precision_recall"], recalls)
            for method, figures in methods["segmentation"].items()
        }
        labels = ("recall, %", "precision")
        caption = "Precision and recall of the foreground over all thresholds"
        charts.append(line_chart(series, [100 * x for x in recalls], labels, caption, among=names))
    return charts


def _precision_at(curve: dict[str, list[float]], recalls: Sequence[float]) -> list[float | None]:
    """Precision at the highest threshold that still reaches each recall."""
    recall, precision = np.array(curve["recall"]), curve["precision"]
    reached = [np.flatnonzero(recall >= wanted - 1e-12) for wanted in recalls]
    return [precision[places[-1]] if places.size else None for places in reached]
