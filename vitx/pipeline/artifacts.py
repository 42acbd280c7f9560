"""Per-image outputs of the pipeline: paths, reading and writing."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from vitx import parallel
from vitx.data import loader
from vitx.data.palette import decode_mask, encode_mask, mask_text
from vitx.data.transforms import resize_maps
from vitx.pseudomasks.affinity import require_pairs
from vitx.runtime.experiment import Run
from vitx.runtime.files import read_npz, write_bytes, write_npz
from vitx.runtime.workdir import StageFolder

SPLITS = ("train", "val")
SCORES = "scores.json"  # in the folder of a stage: its part of the results
ALPHAS = ("low", "high")  # of the background, under which the CRF's masks are kept
_SEED_MAPS = "cues"  # the array of an .npz file
_STAMP = "stamp"  # an array of each .npz file, see `StageFolder.stamp`


def seeded(run: Run, split: str) -> loader.Source:
    """The images of "train" or "val" that get seeds and masks."""
    config = run.config
    return run.source(config.seeds.train_split if split == "train" else config.data.val_split)


def identifiers(source: loader.Source) -> list[str]:
    """The ids of a source's images, in order."""
    return list(map(source.identifier, range(len(source))))


def read_scores(run: Run, name: str) -> Any:
    """The scores that a stage wrote, which has to be done."""
    return json.loads((run.finished(name).folder / SCORES).read_text())


def missing_batches(
    stage: StageFolder, batches: loader.EvaluationBatches, suffix: str, split: str
) -> tuple[list[int], int, int]:
    """This process's batches that lack the file of an image, the number of its images, and of those that are done.

    Batches are whole, so that an image's bits do not depend on when the run was stopped.
    """
    mine = parallel.share(range(len(batches)))
    ids = {number: batches.ids(number) for number in mine}
    finished = items_done(stage, suffix, split, [name for number in mine for name in ids[number]])
    missing, images, left = [], 0, 0
    for number in mine:
        images += len(ids[number])
        if not finished.issuperset(ids[number]):
            missing.append(number)
            left += len(ids[number])
    return missing, images, images - left


def items_done(
    stage: StageFolder, suffix: str, folder: str, identifiers: Sequence[str]
) -> set[str]:
    """The given ids whose file exists in a folder of the stage, each checked for its stamp."""
    there = stage.items_done(suffix, folder)
    found = [identifier for identifier in identifiers if identifier in there]

    def check(identifier: str) -> None:
        if suffix == ".npz":
            read_arrays(stage, folder, identifier, only=())
        else:
            _read_png(stage, folder, identifier)

    with ThreadPoolExecutor(8) as pool:  # most of the time is spent on waiting for the disk
        list(pool.map(check, found))
    return set(found)


def write_seed_maps(
    seeds: StageFolder, split: str, identifier: str, seed_maps: np.ndarray, classes: np.ndarray
) -> None:
    """Writes an image's seed maps (K, H, W) of the classes (K,) that are not padding, in half precision."""
    path = seeds.item(identifier, ".npz", split)
    if not np.isfinite(seed_maps).all():
        raise FloatingPointError(f"seeds: a seed map is not finite, {path} is not written")
    present = classes >= 0
    arrays = {_SEED_MAPS: seed_maps[present].astype(np.float16), "classes": classes[present]}
    write_arrays(seeds, split, identifier, arrays)


def read_seed_maps(
    seeds: StageFolder,
    split: str,
    identifier: str,
    width: int | None = None,
    size: tuple[int, int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Seed maps float32 (K, H, W), resized to `size`, and classes (K,), padded to K = `width` with zeros and -1."""
    file = read_arrays(seeds, split, identifier)
    count, *stored = file[_SEED_MAPS].shape
    width = count if width is None else width
    seed_maps = np.zeros((width, *stored), np.float32)
    classes = np.full(width, -1, np.int32)
    seed_maps[:count], classes[:count] = file[_SEED_MAPS], file["classes"]
    return seed_maps if size is None else resize_maps(seed_maps, size), classes


def count_seed_maps(seeds: StageFolder, split: str, identifier: str) -> tuple[int, int]:
    """How many seed maps an image has, and how many of them are flat: zero everywhere, of no contrast."""
    seed_maps = read_arrays(seeds, split, identifier)[_SEED_MAPS]
    return len(seed_maps), int((~seed_maps.any((1, 2))).sum())


def write_arrays(
    stage: StageFolder, folder: str, identifier: str, arrays: Mapping[str, np.ndarray]
) -> None:
    """Writes an item's arrays as an .npz file in a folder of the stage, with the stage's stamp."""
    stamp = np.array(stage.stamp(identifier, folder))
    write_npz(stage.item(identifier, ".npz", folder), {**arrays, _STAMP: stamp})


def read_arrays(
    stage: StageFolder, folder: str, identifier: str, only: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """An item's arrays, all or the named ones; ValueError for a file that `write_arrays` did not write for it."""
    path = stage.item(identifier, ".npz", folder)
    with _reading(stage, path):
        arrays = read_npz(path, None if only is None else (*only, _STAMP))
    stamp = arrays.pop(_STAMP, None)
    stage.require_stamp(path, None if stamp is None else str(stamp), identifier, folder)
    return arrays


def crf_folder(alpha: str, split: str) -> str:
    """The folder of the masks by the CRF of "low" or "high" alpha, in the folder of stage `labels`."""
    return f"{alpha}/{split}"


def crf_folders(split: str) -> dict[str, str]:
    """The same folders by the kind of their masks: "crf_low", "crf_high"."""
    return {f"crf_{alpha}": crf_folder(alpha, split) for alpha in ALPHAS}


def write_mask(stage: StageFolder, folder: str, identifier: str, mask: np.ndarray) -> None:
    """Writes an image's mask or labels uint8 (H, W) as a palette PNG in a folder of the stage."""
    data = encode_mask(mask, stage.stamp(identifier, folder))
    write_bytes(stage.item(identifier, ".png", folder), data)


def read_mask(stage: StageFolder, folder: str, identifier: str) -> np.ndarray:
    """An image's mask or labels uint8 (H, W); ValueError for a file that `write_mask` did not write for it."""
    path, data = _read_png(stage, folder, identifier)
    with _reading(stage, path):
        return decode_mask(data, str(path))


def read_crf_masks(labels: StageFolder, split: str, identifier: str) -> tuple[np.ndarray, ...]:
    """An image's masks by the CRF, uint8 (H, W), in the order of ALPHAS."""
    return tuple(read_mask(labels, crf_folder(alpha, split), identifier) for alpha in ALPHAS)


def _read_png(stage: StageFolder, folder: str, identifier: str) -> tuple[Path, bytes]:
    path = stage.item(identifier, ".png", folder)
    with _reading(stage, path):
        data = path.read_bytes()
        stamp = mask_text(data, str(path))
    stage.require_stamp(path, stamp, identifier, folder)
    return path, data


@contextlib.contextmanager
def _reading(stage: StageFolder, path: Path) -> Iterator[None]:
    """Adds the remedy to errors about a missing or damaged file of a stage."""
    try:
        yield
    except FileNotFoundError:
        raise stage.missing(path) from None
    except ValueError as error:
        raise ValueError(f"{error}; {stage.remedy()}") from error


def pool_factor(image_size: int, grid: int) -> int:
    """Pixels of the model's input along a cell of AffinityNet's grid, 8 as published.

    Raises:
      ValueError: where the grid does not divide the input.
    """
    if grid < 1 or image_size % grid:
        raise ValueError(f"config.affinity.grid {grid} must divide model.image_size {image_size}")
    return image_size // grid


def check_grid(config: Any) -> None:
    """Raises ValueError where AffinityNet's grid does not fit the input, or has no pairs at its radius."""
    grid = config.affinity.grid
    pool_factor(config.model.image_size, grid)
    try:
        require_pairs((grid, grid), config.affinity.radius)
    except ValueError as error:
        raise ValueError(f"config.affinity.radius or grid: {error}") from None
