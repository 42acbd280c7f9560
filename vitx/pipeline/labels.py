"""Stage `labels`: a dense CRF turns seed maps into masks, and into confident labels for AffinityNet to learn from."""

import contextlib
import importlib.util
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from vitx import parallel
from vitx.data import loader
from vitx.data.transforms import resize_maps
from vitx.pipeline.artifacts import (
    ALPHAS,
    SPLITS,
    check_grid,
    crf_folder,
    items_done,
    pool_factor,
    read_seed_maps,
    seeded,
    write_mask,
)
from vitx.pseudomasks.crf import (
    BACKENDS,
    MISSING_BACKEND,
    CRFParameters,
    background_channels,
    confident_labels,
    dense_crf,
    pool_posteriors,
    require_size,
)
from vitx.pseudomasks.label_values import label_values
from vitx.runtime import workers
from vitx.runtime.experiment import Run, Stage
from vitx.runtime.options import POSITIVE, among, number, whole
from vitx.runtime.progress import progress
from vitx.runtime.workdir import StageFolder


class CRFOptions(NamedTuple):
    """What decides an image's labels."""

    parameters: CRFParameters
    alphas: tuple[float, float]  # of the background, low and high
    backend: str
    grid: int  # side of AffinityNet's grid
    pool: int  # pixels of the classifier's input along a cell of the grid


class Seeded(NamedTuple):
    """An image's id, the image uint8 (H, W, 3), its seed maps (K, h, w) and their classes (K,), -1 for padding.

    K is the image's own number with pydensecrf, and otherwise padded, since JAX compiles for each.
    """

    id: str
    image: np.ndarray
    seed_maps: np.ndarray
    classes: np.ndarray


class Labelled(NamedTuple):
    """An image's id, its masks uint8 (2, H, W) at low and at high alpha, and its labels uint8 (h, w), 255 neutral."""

    id: str
    masks: np.ndarray
    labels: np.ndarray


def make_labels(run: Run, stage: StageFolder) -> None:
    """Writes masks by the CRF, and labels, for each seeded image.

    `low/<split>/<id>.png` and `high/<split>/<id>.png` are masks at the image's size, with the background's low and high
    alpha; `<split>/<id>.png` labels on AffinityNet's grid, 255 neutral.
    """
    config, grid = run.config.labels, run.config.affinity.grid
    options = CRFOptions(
        CRFParameters(**config.crf),
        (config.alpha_low, config.alpha_high),
        config.backend,
        grid,
        pool_factor(run.config.model.image_size, grid),
    )
    label = partial(crf_labels, options)
    for split in SPLITS:
        source = seeded(run, split)
        mine = parallel.share(range(len(source)))
        ids = [source.identifier(place) for place in mine]
        folders = (split, *(crf_folder(name, split) for name in ALPHAS))
        done = set.intersection(*(items_done(stage, ".png", folder, ids) for folder in folders))
        missing = [place for place, name in zip(mine, ids, strict=True) if name not in done]
        apart = config.backend == "pydensecrf"
        seeded_image = _seeded(run, source, split, missing, None if apart else source.most_classes)
        results = (
            workers.in_processes(label, seeded_image, config.workers)
            if apart
            # Products of whole kernels keep all cores busy, and take gigabytes.
            else workers.on_devices(
                label, seeded_image, 1 if config.backend == "exact" else config.workers
            )
        )
        with (
            progress(
                len(mine), f"labels {split}", start=len(mine) - len(missing), compiles=not apart
            ) as bar,
            contextlib.closing(results),
        ):
            for found in results:
                for name, mask in zip(ALPHAS, found.masks, strict=True):
                    write_mask(stage, crf_folder(name, split), found.id, mask)
                write_mask(stage, split, found.id, found.labels)
                bar.advance()
                run.stop.check()


def _seeded(
    run: Run, source: loader.Source, split: str, places: list[int], width: int | None
) -> Iterator[Seeded]:
    seeds = run.finished("seeds")
    for example in loader.read_ahead(source, places):
        yield Seeded(example.id, example.image, *read_seed_maps(seeds, split, example.id, width))


def crf_labels(options: CRFOptions, item: Seeded) -> Labelled:
    """The masks and the labels of one image."""
    if not np.isfinite(item.seed_maps).all():
        raise FloatingPointError(f"labels: the seed maps of image {item.id} are not finite")
    height, width = item.image.shape[:2]
    with parallel.out_of_memory(
        f"labels: the CRF of image {item.id} ({height} x {width}, {1 + len(item.classes)} labels) does not fit in the "
        "device's memory: scale the image down, or take --config.labels.backend=pydensecrf. Finished work is kept"
    ):
        posteriors = crf_posteriors(options, item)
    if not np.isfinite(posteriors).all():
        raise FloatingPointError(f"labels: the CRF's posteriors of image {item.id} are not finite")
    pooled = pool_posteriors(posteriors, (options.grid, options.grid), options.pool)
    labels = confident_labels(pooled[:1], pooled[1:], item.classes[None])[0]
    return Labelled(item.id, label_values(item.classes)[posteriors.argmax(1)], labels)


def crf_probabilities(options: CRFOptions, item: Seeded) -> np.ndarray:
    """What the CRF starts from, (2, 1 + K, H, W): background and classes, at low and at high alpha."""
    foreground = resize_maps(item.seed_maps, item.image.shape[:2])  # (K, H, W)
    backgrounds = background_channels(foreground, options.alphas)
    foregrounds = np.broadcast_to(foreground, (2, *foreground.shape))
    return np.concatenate([backgrounds[:, None], foregrounds], 1)


def crf_posteriors(options: CRFOptions, item: Seeded) -> np.ndarray:
    """Posteriors (2, 1 + K, H, W) of background and classes, 0 for padding, at low and at high alpha."""
    return dense_crf(
        item.image[None],
        crf_probabilities(options, item)[None],
        parameters=options.parameters,
        present=np.concatenate([[True], item.classes >= 0])[None],
        backend=options.backend,
    )[0]


def _check_options(config: Any) -> None:
    labels = config.labels
    if labels.alpha_low > labels.alpha_high:
        raise ValueError(
            f"config.labels.alpha_low must be at most alpha_high, {labels.alpha_high:g}, not "
            f"{labels.alpha_low:g}"
        )
    check_grid(config)


def _check(run: Run) -> None:
    """Raises ImportError without the CRF's package, ValueError for an image too large for the CRF."""
    backend = run.config.labels.backend
    if backend == "pydensecrf":
        if importlib.util.find_spec("pydensecrf") is None:
            raise ImportError(MISSING_BACKEND)
        return
    require_crf_sizes(run, CRFParameters(**run.config.labels.crf))


def require_crf_sizes(run: Run, parameters: CRFParameters) -> None:
    """Raises ValueError for an image too large for a dense CRF of these parameters."""
    first: dict[tuple[int, int], str] = {}  # an image of each size
    for source in (seeded(run, split) for split in SPLITS):
        for index in range(len(source)):
            first.setdefault(source.size(index), source.identifier(index))
    for size, identifier in first.items():
        try:
            require_size(*size, run.config.labels.backend, parameters)
        except ValueError as error:
            raise ValueError(f"image {identifier}: {error}") from error


STAGE = Stage(
    "labels",
    make_labels,
    needs=["seeds"],
    keys=["labels", "affinity.grid"],
    ignores=["labels.workers"],
    options={
        "labels.backend": among(BACKENDS),
        "labels.crf.iterations": whole(0),
        "labels.crf.compat_*": number(0),
        "labels.crf.s*": POSITIVE,
        "labels.alpha_*": POSITIVE,
    },
    check_options=_check_options,
    check=_check,
)
