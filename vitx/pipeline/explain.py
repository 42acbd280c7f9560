"""Command `explain`: the user's own images, each explained in a picture and in raw maps."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from vitx.data.transforms import resize_image
from vitx.data.unreadable import REMEDY
from vitx.data.user_images import find_images, printable, read_user_image, result_name
from vitx.pipeline.explainer import ASPECTS, SCORES, Explainer, Explanation, Size, best_classes
from vitx.relevance.explain import RULES
from vitx.relevance.methods import REGISTRY
from vitx.report.figure import Picture, Row, draw_figure, load_font, panel
from vitx.runtime.experiment import Run, Stage
from vitx.runtime.files import read_npz, write_bytes, write_error, write_npz
from vitx.runtime.options import among, whole
from vitx.runtime.paths import as_path
from vitx.runtime.progress import progress
from vitx.runtime.workdir import StageFolder

_FORMAT: Final = 1  # of the results: another number has all of them made anew
_LISTED: Final = 10  # files named in the summary of what went wrong


@dataclass(frozen=True)
class _Pending:
    """An image that waits for its batch: all that is needed of it, however large it is itself."""

    source: Path
    name: str
    fingerprint: str
    size: Size
    shown: Picture
    input: Picture


@dataclass
class _Tally:
    written: int = 0
    unchanged: int = 0
    broken: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)


def explain_images(run: Run, stage: StageFolder) -> None:
    """Writes for each image that `config.images` names a picture and its raw maps, and prints a summary.

    An image whose results are there, made of the same image, checkpoint and options, is left alone.

    Raises:
      ValueError: for an option that cannot be, or where none of the images can be read.
      FileNotFoundError: if there is no checkpoint.
    """
    config = run.config
    paths = find_images(config.images)
    load_font(config.font, 1)  # a wrong one is noticed before the work
    explainer = Explainer(config)
    options = explainer.options | {"format": _FORMAT, "top": config.top, "font": config.font}
    tally = _Tally()
    waiting: dict[Size, list[_Pending]] = defaultdict(list)
    with progress(len(paths), "explain") as bar:

        def finish(size: Size) -> None:
            batch = waiting.pop(size)
            explanations = explainer([pending.input for pending in batch])
            for pending, explanation in zip(batch, explanations, strict=True):
                tally.odd += _write(stage.folder, pending, explanation, explainer, config)
            tally.written += len(batch)
            bar.advance(len(batch))

        for path in paths:
            run.stop.check()
            try:
                pending = _prepared(path, options, explainer, stage.folder)
            except ValueError as error:
                if config.on_bad_image == "stop":
                    raise ValueError(f"{error}; mend or remove it, or {REMEDY}") from error
                tally.broken.append(str(error))
                bar.advance()
                continue
            if pending is None:
                tally.unchanged += 1
                bar.advance()
                continue
            size = _size(pending.input)
            waiting[size].append(pending)
            if len(waiting[size]) == config.batch_size:
                finish(size)
        for size in list(waiting):
            run.stop.check()
            finish(size)
    if not tally.written + tally.unchanged:
        shown = "; ".join(tally.broken[:3]) + ("; ..." if len(tally.broken) > 3 else "")
        raise ValueError(f"config.images: none of {len(paths)} files is an image: {shown}")
    _print_summary(tally, stage.folder)


def _size(pixels: np.ndarray) -> Size:
    return pixels.shape[0], pixels.shape[1]


def _prepared(
    path: Path, options: Mapping[str, Any], explainer: Explainer, folder: Path
) -> _Pending | None:
    """An image at the size that the model sees; None where its results are there.

    Raises:
      ValueError: it cannot be read.
    """
    image = read_user_image(path)
    made_of = json.dumps([options, image.digest])
    fingerprint = hashlib.sha256(made_of.encode()).hexdigest()
    if _is_written(folder / result_name(path), fingerprint):
        return None
    pixels = image.pixels
    # The folder tells apart files of one name, and is the same however the file was named.
    name = printable(f"{path.absolute().parent.name}/{path.name}")
    resized = resize_image(pixels, explainer.input_size(_size(pixels)))
    return _Pending(path, name, fingerprint, _size(pixels), panel(pixels), resized)


def _is_written(stem: Path, fingerprint: str) -> bool:
    if not as_path(f"{stem}.png").is_file():
        return False
    try:
        return str(read_npz(f"{stem}.npz").get("fingerprint")) == fingerprint
    except (FileNotFoundError, ValueError):
        return False


def _write(
    folder: Path, pending: _Pending, explanation: Explanation, explainer: Explainer, config: Any
) -> list[str]:
    """Writes both files; returns what is odd about the maps, a line for the image or none."""
    stem = folder / result_name(pending.source)
    arrays: dict[str, Any] = {
        **explanation.maps,
        "classes": explanation.classes,
        "logits": explanation.logits,
        "probabilities": explanation.probabilities,
        "class_names": np.array(explainer.names, np.str_),
        "image_size": pending.size,
        "input_size": pending.input.shape[:2],
        "source": printable(pending.source.absolute()),
        "scores": explainer.scores,
        "fingerprint": pending.fingerprint,
    }
    rows, odd = _rows(explanation, explainer.names)
    top = best_classes(explanation.logits, config.top)
    scores = [(explainer.names[c], float(explanation.probabilities[c])) for c in top]
    picture = draw_figure(pending.shown, pending.name, pending.size, scores, rows, config.font)
    vouching = as_path(f"{stem}.npz")  # for both: it goes first and comes last
    try:
        vouching.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(vouching, error) from error
    write_bytes(f"{stem}.png", picture)
    write_npz(vouching, arrays)
    return [f"{printable(pending.source)}: {', '.join(odd)}"] if odd else []


def _rows(explanation: Explanation, names: tuple[str, ...]) -> tuple[list[Row], list[str]]:
    """The figure's rows, and the maps that show nothing."""
    rows, odd = [], []
    for index, number in enumerate(explanation.classes):
        maps: dict[str, Any] = {}
        for method, values in explanation.maps.items():
            title = REGISTRY[method].title
            maps[title] = values[index]
            if remark := _remark(values[index]):
                maps[title] = f"map is {remark}"
                odd.append(f"{title} of {names[number]} is {remark}")
        percent = f"{100 * explanation.probabilities[number]:.1f} %"
        rows.append(Row(f"explained: {names[number]}, {percent}", maps))
    return rows, odd


def _remark(heatmap: np.ndarray) -> str:
    if not np.isfinite(heatmap).all():
        return "not finite"
    return "constant" if heatmap.min() == heatmap.max() else ""


def _print_summary(tally: _Tally, folder: Path) -> None:
    for lines, what in (
        (tally.odd, "images with maps that show nothing"),
        (tally.broken, "files left out"),
    ):
        if lines:
            print(f"{what}: {len(lines)}")
            print("\n".join(f"  {line}" for line in lines[:_LISTED]))
            if len(lines) > _LISTED:
                print(f"  and {len(lines) - _LISTED} more")
    print(
        f"explain: {tally.written} written, {tally.unchanged} done before, {len(tally.broken)} broken; "
        f"in {folder}"
    )


COMMAND = Stage(
    "explain",
    explain_images,
    options={
        "aspect": among(ASPECTS),
        "scores": among(SCORES),
        "rules": among(RULES),
        "best": whole(1),
        "top": whole(1),
    },
    command=True,
)
