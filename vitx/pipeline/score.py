"""Command `score`: the masks of a folder, of whatever origin, against the masks of a dataset."""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from vitx.data.class_names import composed
from vitx.data.formats.voc_layout import Tree
from vitx.data.palette import IGNORED, check_mask, decode_mask
from vitx.data.source import Source
from vitx.evaluation.mask_figures import mask_figures, region_counts
from vitx.evaluation.metrics import mean_of_present, region_iou
from vitx.pipeline.mask_scores import EXTREMES
from vitx.pipeline.report import gather, print_tables, write_results
from vitx.pipeline.score_section import score_sections, score_tables, score_tiles
from vitx.runtime.experiment import Run, Stage
from vitx.runtime.files import safe_name
from vitx.runtime.options import among
from vitx.runtime.progress import progress
from vitx.runtime.workdir import StageFolder
from vitx.runtime.workers import in_order
from vitx.weights.files import listed

_OTHERS: Final = ("stop", "skip")
_NAMED: Final = 10  # files of each kind in an error


class _Compared(NamedTuple):
    """An image's `region_counts`, None where it has no true mask, and its mask's digest; or what is wrong."""

    counts: np.ndarray | None = None
    digest: str = ""
    problem: str = ""


def score_masks(run: Run, stage: StageFolder) -> None:
    """Scores the masks of `config.masks` against those of `data.val_split`: `results.json` and `report.html`.

    Raises:
        ValueError: There is no true mask; or masks are missing, of another size, have labels of no class, or are of no
            image, with their names; or the workdir has results of a run.
        FileNotFoundError: There is no such folder.
    """
    if run.workdir.seconds():
        raise ValueError(
            f"{stage.folder} is the workdir of a run, whose results.json would be lost: give another --workdir"
        )
    if not run.config.masks.strip():
        raise ValueError(
            "config.masks is empty: give the folder of the masks to score, as in --config.masks=DIR"
        )
    source = run.source(run.config.data.val_split)
    folder = Path(run.config.masks).expanduser()
    files, others = find_masks(folder, source)
    counts, digest, problems = _compare(run, source, files)
    if others and run.config.others == "stop":
        problems.append(
            f"{len(others):,} of {len(files) + len(others):,} masks are of no image of {source.name} {source.split}: "
            f"{listed(others, _NAMED)} (leave them out with --config.others=skip, or give another "
            "--config.data.val_split)"
        )
    if problems:
        raise ValueError(f"config.masks={folder}: {'; '.join(problems)}")
    results = gather(run, []) | {
        **scores_of(source, counts),
        "folder": {"path": str(folder.absolute()), "digest": digest},
    }
    sections = score_sections(run, results, source, files)
    write_results(run, results, sections, score_tiles(results))
    print_tables(run, score_tables(results))


def find_masks(folder: Path, source: Source) -> tuple[dict[str, Path], list[str]]:
    """The PNGs of a folder by image id, and the names of those that are of no image of the split.

    Their names are ids as they are, or as vitx writes them (`safe_name`).

    Raises:
        FileNotFoundError: There is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"config.masks={folder}: there is no such folder")
    ids = map(source.identifier, range(len(source)))
    names = {composed(form): name for name in ids for form in (safe_name(name), name)}
    stored = Tree(folder).by_stem("", (".png",))
    found = {names[stem]: folder / file.path for stem, file in stored.items() if stem in names}
    return found, [file.path for stem, file in stored.items() if stem not in names]


def _compare(
    run: Run, source: Source, files: Mapping[str, Path]
) -> tuple[np.ndarray, str, list[str]]:
    """Counts (N, 3, C), zero for images without a true mask, a digest of the masks, and what is wrong with them."""
    rows, content = [], hashlib.sha256()
    missing, problems = list[str](), list[str]()
    nothing = np.zeros((3, len(source.classes)), np.int64)
    ahead = min(4, os.cpu_count() or 1)
    compared = in_order(
        ThreadPoolExecutor(ahead),
        lambda place: _compared(source, place, files),
        range(len(source)),
        ahead,
    )
    with progress(len(source), "score") as bar:
        for place, (counts, digest, problem) in enumerate(compared):
            name = source.identifier(place)
            if problem:
                problems.append(problem)
            elif counts is not None and not digest:
                missing.append(name)
            content.update(f"{name} {digest}\n".encode(errors="surrogateescape"))
            rows.append(nothing if counts is None else counts)
            bar.advance()
            run.stop.check()
    if (more := len(problems) - _NAMED) > 0:
        problems = [*problems[:_NAMED], f"and {more:,} more that cannot be compared"]
    if missing:
        of = f"{len(missing):,} of {len(source):,} images"
        problems.append(f"{of} have no <id>.png: {listed(missing, _NAMED)}")
    return np.stack(rows), content.hexdigest()[:16], problems


def _compared(source: Source, place: int, files: Mapping[str, Path]) -> _Compared:
    example, classes = source[place], len(source.classes)
    if example.mask is None:
        return _Compared()
    path = files.get(example.id)
    if path is None:
        return _Compared(np.zeros((3, classes), np.int64))
    try:
        data = path.read_bytes()
        mask = decode_mask(data, path.name)
        check_mask(mask, path.name, classes, example.size)
    except OSError as error:
        return _Compared(problem=f"cannot read {path.name}: {error.strerror}")
    except ValueError as error:
        return _Compared(problem=str(error))
    if ((mask == IGNORED) & (example.mask < classes)).any():
        wanted = f"where the truth has a class, wanted 0 to {classes - 1}"
        return _Compared(problem=f"the mask {path.name} has the label {IGNORED} {wanted}")
    counts = region_counts(mask, example.mask, classes)
    return _Compared(counts, hashlib.sha256(data).hexdigest())


def scores_of(source: Source, counts: np.ndarray) -> dict[str, Any]:
    """The scores of a split's masks, fractions.

    Returns:
        images (those with a pixel of the truth that counts), masks (see `mask_figures`), worst and best ([id, mIoU]).

    Raises:
        ValueError: No image has such a pixel.
    """
    counted = np.flatnonzero(counts[:, 1].any(-1))
    if not counted.size:
        raise ValueError(f"{source.name} {source.split} has no mask to compare with")
    by_image = mean_of_present(region_iou(counts[counted]))
    ranked = [
        [source.identifier(int(counted[row])), float(by_image[row])] for row in np.argsort(by_image)
    ]
    return {
        "images": len(counted),
        "masks": mask_figures(counts[counted], source.classes),
        "worst": ranked[:EXTREMES],
        "best": ranked[: -EXTREMES - 1 : -1],
    }


COMMAND = Stage(
    "score",
    score_masks,
    options={"others": among(_OTHERS)},
    command=True,
)
