"""Command `explain`: the user's own images, each explained in pictures and in raw maps."""

import contextlib
import glob
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from ml_collections import ConfigDict

from vitx.data.palette import encode_png
from vitx.data.unreadable import REMEDY
from vitx.data.user_images import (
    RESULT,
    decode,
    find_images,
    printable,
    read_bytes,
    result_name,
)
from vitx.images.evaluation_crop import cropped, difference, resized, shown
from vitx.models.model import SCORES
from vitx.pipeline.explainer import (
    ASPECTS,
    Explainer,
    Explanation,
    Size,
    best_classes,
    input_size,
)
from vitx.relevance.checks import HIGH_NORM, RULES
from vitx.relevance.registry import REGISTRY
from vitx.report.figure import SLIDE, draw_figure, draw_overlay, load_font, panel
from vitx.report.overlay import Picture, nothing_in
from vitx.runtime.experiment import Run, Stage
from vitx.runtime.files import read_npz, write_bytes, write_npz
from vitx.runtime.options import among, number, whole
from vitx.runtime.progress import busy, progress
from vitx.runtime.workdir import StageFolder
from vitx.weights.class_names import ASSUMED, IMAGENET
from vitx.weights.pickled import WHICH

_LISTED: Final = 10  # files named in each list of the summary
STYLES: Final = ("transparency", "blend")


@dataclass(frozen=True)
class _Image:
    """An image that waits for its batch, without its own pixels: there may be many."""

    path: Path
    results: Path
    fingerprint: str
    size: Size
    slide: Picture
    input: Picture


def explain_images(run: Run, stage: StageFolder) -> None:
    """Writes for each image that `config.images` names a picture and its raw maps, and prints a summary.

    Images that have results of the same image, checkpoint and options are left alone.

    Raises:
        ValueError: for a wrong option, or where none of the images can be read.
        FileNotFoundError: if there is no checkpoint.
    """
    config = run.config
    paths = find_images(config.images)
    load_font(config.font, 1)  # raises for a wrong one before the work begins
    with busy("explain: loading the model"):
        explainer = Explainer(config)
    _remark(explainer, config)
    written, empty, broken, high = 0, list[str](), list[str](), list[str]()
    notes, drawn = set[str](), list[str]()
    with progress(len(paths), "explain", compiles=True) as bar:

        def unexplained() -> Iterator[_Image]:
            for path in paths:
                run.stop.check()
                try:
                    image = _prepared(path, explainer, config.aspect, stage.folder)
                except ValueError as error:
                    if config.on_bad_image == "stop":
                        raise ValueError(f"{error}; repair or remove it, or {REMEDY}") from error
                    broken.append(str(error))
                    image = None
                if image:
                    yield image
                else:
                    bar.advance()

        for batch in _batches(unexplained(), config.batch_size):
            run.stop.check()
            explanations = explainer([image.input for image in batch])
            for image, explanation in zip(batch, explanations, strict=True):
                empty += _write(image, explanation, explainer, config)
                notes.add(explainer.note(image.size))
                drawn.append(str(image.results.with_suffix(".png")))
                tokens = explanation.high_norm
                if tokens.any():
                    path = printable(image.path)
                    high.append(f"{path}: {np.count_nonzero(tokens)} of {tokens.size} tokens")
            written += len(batch)
            bar.advance(len(batch))
    if len(broken) == len(paths):
        shown = "; ".join(broken[:3]) + ("; ..." if len(broken) > 3 else "")
        raise ValueError(f"config.images: none of {len(paths)} files is an image: {shown}")
    for note in sorted(notes - {""}):
        print(f"note: {note}")
    _print_list("images with maps that show nothing", empty)
    _print_list("images with patch tokens of high norm", high)
    _print_list("files left out", broken)
    _print_list("pictures", drawn)
    unchanged = len(paths) - written - len(broken)
    print(
        f"explain: {written} written, {unchanged} done before, {len(broken)} broken; in {stage.folder}"
    )


def _remark(explainer: Explainer, config: ConfigDict) -> None:
    """Says in what the input differs from the weights' own evaluation, and which names are assumed."""
    if remark := difference(explainer.model.preprocess, config.aspect):
        print(f"explain: {remark}", file=sys.stderr)
    if explainer.model.class_names_source in (ASSUMED, IMAGENET) and not config.class_names:
        print(
            "explain: the names of the 1000 classes are assumed to be ImageNet's", file=sys.stderr
        )


def _prepared(path: Path, explainer: Explainer, aspect: str, folder: Path) -> _Image | None:
    """An image at the size that the model sees; None where it has its results; ValueError where it is no image."""
    data = read_bytes(path)
    fingerprint = explainer.fingerprint(data)
    results = folder / f"{result_name(path)}.npz"
    with contextlib.suppress(FileNotFoundError, ValueError):  # missing or damaged
        written = str(read_npz(results).get("fingerprint")) == fingerprint
        if written and results.with_suffix(".png").is_file():
            return None
    pixels = decode(data, path)
    size, preprocess = pixels.shape[:2], explainer.model.preprocess
    if aspect == "crop":
        seen, pixels = cropped(pixels, preprocess), shown(pixels, preprocess)
        size = pixels.shape[:2]  # maps are of the part that is shown
    else:
        seen = resized(pixels, input_size(explainer.model, size, aspect), preprocess)
    return _Image(path, results, fingerprint, size, panel(pixels, SLIDE), seen)


def _batches(images: Iterable[_Image], most: int) -> Iterator[list[_Image]]:
    """Batches of images of one input size, of each size the largest first."""
    waiting: dict[Size, list[_Image]] = defaultdict(list)
    for image in images:
        size = image.input.shape[0], image.input.shape[1]
        waiting[size].append(image)
        if len(waiting[size]) == most:
            yield waiting.pop(size)
    yield from waiting.values()


def _write(
    image: _Image, explanation: Explanation, explainer: Explainer, config: ConfigDict
) -> list[str]:
    """Writes the picture and the maps; returns a line that names the maps that show nothing, if there are any."""
    names, (classes, logits, probabilities, maps, high_norm) = explainer.names, explanation
    rows = [
        (
            f"explained: {names[chosen]}, {100 * probabilities[chosen]:.1f} %",
            {REGISTRY[method].title: each[index] for method, each in maps.items()},
        )
        for index, chosen in enumerate(classes)
    ]
    top = [(names[c], float(probabilities[c])) for c in best_classes(logits, config.top)]
    # The folder distinguishes files of one name, and is the same for all ways to name a file.
    name = printable(f"{image.path.absolute().parent.name}/{image.path.name}")
    style = {"strength": config.strength, "transparent": config.overlay == STYLES[0]}
    drawing = {"font": config.font, "note": explainer.note(image.size), **style}
    picture = draw_figure(panel(image.slide), name, image.size, top, rows, **drawing)
    arrays: dict[str, Any] = {
        **maps,
        "classes": classes,
        "logits": logits,
        "probabilities": probabilities,
        "high_norm": high_norm,
        "class_names": np.array(names, np.str_),
        "image_size": image.size,
        "input_size": image.input.shape[:2],
        "source": printable(image.path.absolute()),
        "scores": explainer.scores,
        "fingerprint": image.fingerprint,
    }
    # The fingerprint is for both files, so that its file goes first and comes last.
    with contextlib.suppress(OSError):  # what cannot be removed cannot be written below either
        image.results.unlink(missing_ok=True)
    _write_overlays(image, explanation, names, drawing if config.overlays else None)
    write_bytes(image.results.with_suffix(".png"), picture)
    write_npz(image.results, arrays)
    empty = [
        f"{title} of {names[chosen]} is {remark}"
        for chosen, (_, row) in zip(classes, rows, strict=True)
        for title, heatmap in row.items()
        if (remark := nothing_in(heatmap))
    ]
    return [f"{printable(image.path)}: {', '.join(empty)}"] if empty else []


def _write_overlays(
    image: _Image, explanation: Explanation, names: Sequence[str], drawing: dict[str, Any] | None
) -> None:
    """Writes each map over the image as a file of its own, and removes those of other options."""
    name = image.results.name.removesuffix(f"{RESULT}.npz")
    with contextlib.suppress(OSError):
        for old in image.results.parent.glob(f"{glob.escape(name)}.*{RESULT}.png"):
            old.unlink()
    for method, maps in explanation.maps.items() if drawing is not None else ():
        for each, heatmap in zip(explanation.classes, maps, strict=True):
            probability = 100 * explanation.probabilities[each]
            title = f"{REGISTRY[method].title}: {names[each]}, {probability:.1f} %"
            file = image.results.with_name(f"{name}.{method}.{each}{RESULT}.png")
            write_bytes(
                file, encode_png(draw_overlay(image.slide, heatmap, title, **(drawing or {})))
            )


def _print_list(what: str, lines: list[str]) -> None:
    if lines:
        print(f"{what}: {len(lines)}", *lines[:_LISTED], sep="\n  ")
    if len(lines) > _LISTED:
        print(f"  and {len(lines) - _LISTED} more")


COMMAND = Stage(
    "explain",
    explain_images,
    options={
        "aspect": among(ASPECTS),
        "which": among(("", *WHICH)),
        "scores": among(("auto", *SCORES)),
        "rules": among(RULES),
        "high_norm": among(HIGH_NORM),
        "best": whole(1),
        "top": whole(1),
        "overlay": among(STYLES),
        "strength": number(0, 1),
    },
    command=True,
)
