"""The report's tables and curves of the pipeline: seeds, refined masks, training."""

from typing import Any

from vitx.evaluation.published import PUBLISHED_MASKS
from vitx.pipeline.mask_scores import FROM_TRUTH
from vitx.report.charts import Chart, bar_chart, line_chart
from vitx.report.page import Section, Tile
from vitx.report.parts import DASH, Table, percent

KINDS = {
    "seeds": "seeds",
    "crf_low": "CRF, low alpha",
    "crf_high": "CRF, high alpha",
    "masks": "refined masks",
}


NETWORK = "network"


def summary(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The headers and rows of a table from seeds to masks to the network: whether labels are used, and mIoU in %."""
    scored, network = scored_splits(results), results.get("segmenter", {})
    rows = [
        [name, "yes", *(percent(scores[kind]["miou"]) for scores in scored.values())]
        for kind, name in KINDS.items()
    ]
    if "miou" in network:
        figures = [percent(network["miou"]) if split == "val" else DASH for split in scored]
        rows.append([NETWORK, "no", *figures])
    return ["masks", "image labels used", *scored], rows


def step_tiles(results: dict[str, Any]) -> list[Tile]:
    """The mIoU on val of every step that is scored, the highest marked, whichever it is."""
    if "masks" not in results:
        return []
    figures = {kind: results[kind]["miou"] for kind in KINDS}
    crf = max("crf_low", "crf_high", key=lambda kind: figures[kind])
    remarks = {"masks": ", ".join(_apart(figures, kind) for kind in ("seeds", crf))}
    names = KINDS
    if "miou" in (network := results.get("segmenter", {})):
        figures, names = figures | {NETWORK: network["miou"]}, KINDS | {NETWORK: NETWORK}
        remarks[NETWORK] = "without image labels"
    highest = max(figures.values())
    return [
        Tile(
            f"mIoU: {names[kind]}",
            f"{percent(miou)} %",
            remarks.get(kind, ""),
            "the highest on val" if miou == highest else "",
        )
        for kind, miou in figures.items()
    ]


def _apart(figures: dict[str, float], kind: str) -> str:
    gain = 100 * (figures["masks"] - figures[kind])
    return f"{abs(gain):.1f} points {'above' if gain >= 0 else 'below'} {KINDS[kind]}"


_SELECTED = " Labels of val chose the epoch of the classifier or of AffinityNet, as published."


def _selected_on_val(options: dict[str, Any]) -> bool:
    """Whether a stage before the network chose its checkpoint on val."""
    val = options["data"]["val_split"]
    chosen = (options[stage]["val_split"] for stage in ("classifier", "affinity"))
    return any(split.partition("[")[0] == val.partition("[")[0] for split in chosen)


def note(results: dict[str, Any]) -> str:
    """What the figures of masks measure."""
    if "miou" not in results.get("segmenter", {}):
        return FROM_TRUTH
    return (
        "Where image labels are used, the ground-truth label says which classes an image shows, on val too. The "
        "network, which learned from the refined masks of train, sees nothing but the image."
        + (_SELECTED if _selected_on_val(results["options"]) else "")
    )


def scored_splits(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The scores of val and train, where they have masks."""
    splits = {"val": results, **results["splits"]}
    return {split: scores for split, scores in splits.items() if "masks" in scores}


def masks_section(results: dict[str, Any], published: bool = False) -> Section:
    """The mIoU of seeds, CRF masks and refined masks, by class, and the chosen parameters.

    `published` adds the figures that [Re] prints for VOC.
    """
    scored, chosen = scored_splits(results), results["chosen"]
    remarks = [
        _chosen(chosen, results["options"]["walk"]["split"]),
        *_flat(results.get("cues", {})),
    ]
    if not scored:
        unscored = "No image has a mask to compare with: nothing is scored."
        return Section("From seeds to masks", [unscored, *remarks])
    first, scores = next(iter(scored.items()))
    columns = {
        f"{split}: {name}": scores[kind]
        for split, scores in scored.items()
        for kind, name in KINDS.items()
    }
    network = results.get("segmenter", {})
    if "iou" in network and "val" in scored:
        columns |= {f"val: {NETWORK}": network}
    rows = [["mean", *(percent(column["miou"]) for column in columns.values())]]
    for name in scores["masks"]["iou"]:
        rows.append([name, *(percent(column["iou"][name]) for column in columns.values())])
    images = ", ".join(f"{scores['images']} of {split}" for split, scores in scored.items())
    caption = f"Intersection over union, %, of the images that have masks ({images})"
    by_class = {KINDS[kind]: list(scores[kind]["iou"].values()) for kind in ("seeds", "masks")}
    own = results["options"]["report"].get("note", "")
    body = [
        note(results),
        *([own] if own else []),
        Table(*summary(results), "From seeds to masks to the network: mIoU, %", texts=2),
        Table(["class", *columns], rows, caption),
        *([_beside_published(results)] if published and "masks" in results else []),
        bar_chart(list(scores["masks"]["iou"]), by_class, "IoU", f"IoU by class on {first}"),
        *remarks,
        f"With the published background score 0.2 the seeds' mIoU on {first} is "
        f"{percent(scores['seeds']['miou_at_0.2'])} %.",
        _curves(scored, chosen),
    ]
    return Section("From seeds to masks", body)


def _flat(counts: dict[str, dict[str, int]]) -> list[str]:
    flat = ", ".join(
        f"{count['flat']} of {count['cues']} on {split}"
        for split, count in counts.items()
        if count["flat"]
    )
    return [f"Seed maps without contrast, which show nothing: {flat}."] if flat else []


def _beside_published(results: dict[str, Any]) -> Table:
    rows = []
    for kind, published in PUBLISHED_MASKS.items():
        ours = results[kind]["miou"]
        difference = f"{100 * (ours - published):+.2f}"
        rows.append([KINDS[kind], percent(ours), percent(published), difference])
    return Table(
        ["masks", "ours", "published", "difference"],
        rows,
        "mIoU on val beside [Re], Table 4, %, which has VOC 2012's own val and a pretrained hybrid",
    )


def _chosen(chosen: dict[str, Any], split: str) -> str:
    how = {
        "given": "as configured",
        "masks": f"chosen by the masks of {split}, never of val",
        "auto": f"chosen without masks, on the images of {split}",
    }
    return (
        f"The walk has beta {chosen['beta']:g}, 2^{chosen['log2_steps']} steps and a background of level "
        f"{chosen['level']:g}, {how[chosen['how']]}. The seeds' background score is {chosen['background']:g}, "
        f"{how[chosen['background_how']]}."
    )


def _curves(scored: dict[str, dict[str, Any]], chosen: dict[str, Any]) -> list[Chart]:
    backgrounds = [entry["background"] for entry in next(iter(scored.values()))["backgrounds"]]
    by_split = {
        split: [entry["miou"] for entry in scores["backgrounds"]]
        for split, scores in scored.items()
    }
    charts = [line_chart(by_split, backgrounds, ("background score", "mIoU"), "Seeds: threshold")]
    by_level = {
        entry["level"]: entry["score"]
        for entry in sorted(chosen.get("candidates", ()), key=lambda entry: entry["level"])
        if (entry["beta"], entry["log2_steps"]) == (chosen["beta"], chosen["log2_steps"])
    }
    if len(by_level) > 1:
        refined = {"refined masks": list(by_level.values())}
        what = "mIoU" if chosen["how"] == "masks" else "score without masks"
        labels = ("level", f"{what} on {chosen['split']}")
        charts.append(line_chart(refined, list(by_level), labels, "Walk: level of the background"))
    return charts
