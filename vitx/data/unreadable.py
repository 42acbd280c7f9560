"""Examples that cannot be read: found by decoding a split once, before anything is computed from it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitx import parallel
from vitx.images.pictures import pixel_limit
from vitx.runtime.files import WorkdirError, parse_json, write_json
from vitx.runtime.progress import progress
from vitx.runtime.signals import StopRequest

if TYPE_CHECKING:  # its package TFDS is needed only where a dataset is read
    from vitx.data.source import Source

POLICIES = ("stop", "skip")  # of config.on_bad_image
REMEDY = "leave such images out with --config.on_bad_image=skip"


def find_unreadable(
    source: Source, folder: Path, stop: StopRequest, *, keep: bool
) -> dict[str, str]:
    """The examples whose image, mask or labels cannot be read: their ids, and why.

    Every process decodes its share. A file in `folder` lists what is found, and then nothing is decoded again;
    where some cannot be read, that file is written only with `keep`: these are left out from then on.

    Raises:
      Stopped: `stop` was requested.
      WorkdirError: a file that is there could not be read, for a reason that may pass.
    """
    record = _record(source, folder)
    (known,) = parallel.max_over_processes(parallel.is_first_process() and record.exists())
    if known:
        return recorded(source, folder)
    bad = parallel.sum_over_processes(_bad(source, stop))
    found = {
        source.identifier(place): _reason(source, place) for place in np.flatnonzero(bad).tolist()
    }
    if parallel.is_first_process() and (keep or not found):
        content = {"split": source.split, "images": len(source), "unreadable": found}
        write_json(record, content)
    parallel.barrier()
    return found


def recorded(source: Source, folder: Path) -> dict[str, str]:
    """What an earlier `find_unreadable` found; reads its file and no more.

    Raises:
      ValueError: the file is damaged.
    """
    record = _record(source, folder)
    if not record.exists():
        return {}
    try:
        content = parse_json(record.read_bytes())
        found = content.get("unreadable") if isinstance(content, dict) else None
        if not isinstance(found, dict) or not all(isinstance(why, str) for why in found.values()):
            raise ValueError("it does not list unreadable images with reasons")
        if strange := set(found).difference(map(source.identifier, range(len(source)))):
            raise ValueError(f"{source.split} has no image {min(strange)!r}")
    except ValueError as error:
        raise ValueError(
            f"{record} is damaged ({error}): delete it and start again; all images are read again"
        ) from error
    return found


def _record(source: Source, folder: Path) -> Path:
    # The name has all that decides what can be read.
    return folder / f"{source.fingerprint}-{source.mask_fingerprint}-{pixel_limit():g}.json"


def _bad(source: Source, stop: StopRequest) -> np.ndarray:
    """Which examples of this process's share cannot be read, bool (examples,) as uint8."""
    bad = np.zeros(len(source), np.uint8)
    mine = parallel.share(range(len(source)))
    workers = os.cpu_count() or 1
    with (
        ThreadPoolExecutor(workers) as pool,
        progress(len(mine), f"reading {source.split}") as bar,
    ):
        for start in range(0, len(mine), 8 * workers):
            places = mine[start : start + 8 * workers]
            bad[places] = [bool(why) for why in pool.map(lambda p: _reason(source, p), places)]
            bar.advance(len(places))
            stop.check()
    return bad


def _reason(source: Source, place: int) -> str:
    """Why an example cannot be read; "" where it can."""
    try:
        source[place]
    except ValueError as error:
        if getattr(error.__cause__, "errno", None) is not None:  # of the disk, and it may pass
            raise WorkdirError(
                f"{error}; nothing is left out for that: fix it and start again"
            ) from error
        return str(error)
    return ""


def refuse(found: dict[str, str], source: Source) -> None:
    """ValueError where there is something that cannot be read."""
    if found:
        shown = "; ".join(list(found.values())[:3])
        raise ValueError(
            f"{len(found)} of {len(source)} images of {source.split} cannot be read: {shown}"
            + ("; ..." if len(found) > 3 else "")
            + f". Repair or remove them, or {REMEDY}"
        )
