"""Loaders: batches of a source's examples.

`training_loader` shuffles and augments: its batches follow from the seed alone, at whatever step it starts
and however many workers it has. `EvaluationBatches` goes through a split once, in order.
"""

import dataclasses
import functools
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grain
import numpy as np
from absl import flags

from vitx.data import transforms
from vitx.data.palette import IGNORED
from vitx.data.source import Example, Source, open_source
from vitx.data.transforms import Augment, Preprocess
from vitx.data.views import View, random_crop, random_view
from vitx.runtime.files import WorkdirError
from vitx.runtime.workers import end_with, in_order

__all__ = [
    "Augment",
    "EvaluationBatches",
    "Example",
    "Source",
    "TrainingBatches",
    "evaluation_batches",
    "open_source",
    "read_ahead",
    "training_loader",
]

Batch = TypeVar("Batch")
Extra = Callable[[str, bool], Mapping[str, np.ndarray]]
Masks = Callable[[str], np.ndarray]


def training_loader(
    source: Source,
    *,
    preprocess: Preprocess,
    batch_size: int,
    epochs: int,
    seed: int,
    augment: Augment,
    extra: Extra | None = None,
    masks: Masks | None = None,
    workers: int = 0,
    start_step: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> "TrainingBatches":
    """Shuffled, augmented batches from step `start_step` to the last of `epochs` epochs.

    An iterator over dicts of image (B, H, W, 3) float32, normalised, at preprocess.size; labels
    (B, C) float32; whatever arrays `extra(id, flipped)` returns, which mirrors them itself; with
    `masks`, from an id to the labels of its pixels, mask (B, H, W) uint8, scaled, cut and mirrored as
    the image is, 255 beyond the picture; with `augment.patches` = (K, N) patches (B, K) int32,
    ascending places of N, of each image its own; and with `augment.dropout` dropout (B,) int32, seeds.

    The batch at a step follows from (seed, step) alone. `batch_size` counts all processes: with
    `shard` (i, n), process i of n gets every n-th example of each batch, B = batch_size / n. An
    epoch leaves out a random remainder of fewer than `batch_size` examples. `workers` other
    processes decode and augment; 0 leaves that to a thread. Raises ValueError where sizes do
    not fit.
    """
    index, count = shard
    steps_per_epoch = len(source) // max(batch_size, 1)
    steps = epochs * steps_per_epoch
    if batch_size < 1 or not steps_per_epoch:
        raise ValueError(
            f"batch_size {batch_size} does not fit the source's {len(source)} examples"
        )
    if not 0 <= index < count or batch_size % count:
        raise ValueError(f"shard {shard} does not divide a batch of {batch_size}")
    if not 0 <= start_step <= steps:
        raise ValueError(f"start_step {start_step} is not among the {steps} steps of training")
    if start_step == steps:
        return TrainingBatches(iter(()))
    dataset = (
        grain.MapDataset.source(source)
        .seed(seed)
        .shuffle()
        .slice(slice(0, steps_per_epoch * batch_size))
        .repeat(epochs)  # each in an order of its own
        .random_map(_Prepare(preprocess, augment, extra, masks))
        .slice(slice(start_step * batch_size + index, None, count))
        .batch(batch_size // count, drop_remainder=True)
    )
    if not workers:
        reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        return TrainingBatches(iter(dataset.to_iter_dataset(reading)))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain hands absl's flags on to its processes
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    reading = grain.ReadOptions(num_threads=0)
    begin = functools.partial(_begin, os.getpid())
    return TrainingBatches(iter(dataset.to_iter_dataset(reading).mp_prefetch(options, begin)))


def _begin(parent: int, worker: int, workers: int) -> None:
    """What each loader process does first."""
    del worker, workers
    end_with(parent)


class TrainingBatches(Iterator[dict[str, np.ndarray]]):
    """See `training_loader`. `close`, or dropping the iterator, ends its thread or processes.

    Raises WorkdirError where one of them died.
    """

    def __init__(self, batches: Iterator[dict[str, np.ndarray]]) -> None:
        self._batches = [batches]
        # Also run when Python exits, before the modules that grain needs for closing are gone.
        self.close = weakref.finalize(self, _close, self._batches)

    def __next__(self) -> dict[str, np.ndarray]:
        if not self._batches:
            raise StopIteration
        try:
            return next(self._batches[0])
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):  # grain's words
                raise
            raise WorkdirError(
                "a loader process died (out of memory, or killed); with a smaller --config.data.workers there is "
                "more memory for each. Start again with the same --workdir: finished work is kept"
            ) from error


def _close(batches: list[Iterator]) -> None:
    iterator = batches.pop()
    if isinstance(iterator, grain.DatasetIterator):
        iterator.close()


@dataclasses.dataclass(frozen=True)
class _Prepare:
    """From an example and a generator to what the model trains on; always draws the same numbers."""

    preprocess: Preprocess
    augment: Augment
    extra: Extra | None
    masks: Masks | None = None

    def __call__(self, example: Example, generator: np.random.Generator) -> dict[str, np.ndarray]:
        flipped = bool(generator.random() < 0.5) and self.augment.flip
        view = self._view(example.image.shape[:2], generator)
        image = transforms.resize_image(example.image, view.scaled)
        image = view.cut(image, np.round(255 * np.asarray(self.preprocess.mean)))
        pixels = transforms.to_fractions(transforms.mirror(image) if flipped else image)
        pixels = transforms.colour_jitter(pixels, self.augment, generator)
        return {
            "image": transforms.normalise_fractions(pixels, self.preprocess),
            "labels": example.labels,
            **(self.extra(example.id, flipped) if self.extra else {}),
            **self._mask(example.id, view, flipped),
            **self._patches(generator),
            **self._dropout(generator),
        }

    def _view(self, picture: tuple[int, int], generator: np.random.Generator) -> View:
        size, augment = self.preprocess.size, self.augment
        if augment.long_side is not None:
            return random_crop(size, picture, augment.long_side, generator)
        if augment.scale is not None:
            return random_view(size, augment.scale, generator)
        return View(size, size, (0, 0))

    def _mask(self, identifier: str, view: View, flipped: bool) -> dict[str, np.ndarray]:
        if self.masks is None:
            return {}
        mask = view.cut(transforms.resize_mask(self.masks(identifier), view.scaled), IGNORED)
        return {"mask": transforms.mirror(mask) if flipped else mask}

    def _patches(self, generator: np.random.Generator) -> dict[str, np.ndarray]:
        if self.augment.patches is None:
            return {}
        kept, count = self.augment.patches
        return {"patches": np.sort(generator.permutation(count)[:kept]).astype(np.int32)}

    def _dropout(self, generator: np.random.Generator) -> dict[str, np.ndarray]:
        if not self.augment.dropout:
            return {}
        return {"dropout": np.asarray(generator.integers(2**31 - 1), np.int32)}


@dataclasses.dataclass
class EvaluationBatches(Sequence[dict[str, Any]]):
    """The batches of a split, in order, all of one size: the last repeats its last example.

    A sequence of dicts of examples (B of them) and their id; image (B, H, W, 3) float32, normalised, at
    preprocess.size; labels (B, C) float32; valid (B,) bool, False for repeats. `chosen` has the places of
    the examples in the source, by default all of them.
    """

    source: Source
    preprocess: Preprocess
    batch_size: int
    chosen: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}, but at least 1 is wanted")

    def __len__(self) -> int:
        return -(-len(self._chosen) // self.batch_size)

    @property
    def _chosen(self) -> Sequence[int]:
        return range(len(self.source)) if self.chosen is None else self.chosen

    def places(self, index: int) -> Sequence[int]:
        """The places of a batch's examples in the source, without repeats."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        start = index * self.batch_size
        return self._chosen[start : start + self.batch_size]

    def ids(self, index: int) -> list[str]:
        """The ids of a batch's examples, without repeats; nothing is decoded."""
        return [self.source.identifier(place) for place in self.places(index)]

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]
        places = self.places(index)
        rows = np.arange(self.batch_size)
        examples = [self.source[places[row]] for row in np.minimum(rows, len(places) - 1)]
        size = self.preprocess.size
        images = np.stack([transforms.resize_image(example.image, size) for example in examples])
        return {
            "examples": examples,
            "id": [example.id for example in examples],
            "image": transforms.normalise(images, self.preprocess),
            "labels": np.stack([example.labels for example in examples]),
            "valid": rows < len(places),
        }


evaluation_batches = EvaluationBatches


def read_ahead(batches: Sequence[Batch], places: Sequence[int]) -> Iterator[Batch]:
    """`batches[place]` for each place in order, read by threads while the device computes.

    An error in reading is raised as it is, in the batch's turn. Then, or once the iterator is
    closed, no further batch is begun.
    """
    ahead = min(4, os.cpu_count() or 1)
    return in_order(ThreadPoolExecutor(ahead), batches.__getitem__, places, ahead)
