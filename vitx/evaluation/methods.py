"""Stage `methods`: explanation methods compared by perturbation (Table 2) and by segmentation (Table 3)."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from vitx import checkpoints, parallel
from vitx.data import pipeline
from vitx.data.transforms import resize_image, resize_mask, to_fractions
from vitx.evaluation.comparison import Comparison, measure, summary
from vitx.evaluation.segmentation import foreground_masks
from vitx.run import progress
from vitx.stages import Run
from vitx.workdir import Stage, read_npz, write_json, write_npz


def compare_methods(run: Run, stage: Stage) -> None:
    """Writes `scores.json`: for each method, perturbation accuracies and AUCs, and segmentation scores.

    Each batch is a file of its own, so that a stopped run loses at most one. Batches are spread over all devices.
    """
    config = run.config.methods
    comparison = Comparison.from_config(config)
    model, source = classifier(run), run.source(run.config.data.val_split)
    by_class = "perturbation" in comparison.measures or "target" in comparison.explained
    if by_class:
        require_classes(model, source)
    chosen = chosen_images(source, config.images, one_class=by_class)
    batches = Batches(
        source,
        chosen,
        model.preprocess.size,
        -(-config.batch_size // jax.device_count()) * jax.device_count(),
        with_masks="segmentation" in comparison.measures,
    )
    files = [stage.folder / "batches" / f"{number:06}.npz" for number in range(len(batches))]
    missing = [number for number, file in enumerate(files) if not file.exists()]
    done = len(chosen) - sum(batches.count(number) for number in missing)
    with progress(len(chosen), "methods", start=done) as bar:
        for number, batch in zip(missing, pipeline.read_ahead(batches, missing), strict=True):
            pixels, targets = parallel.shard_batch((to_fractions(batch["image"]), batch["target"]))
            measured = measure(model, comparison, pixels, targets, batch.get("mask"))
            count = batches.count(number)
            write_npz(files[number], {name: rows[:count] for name, rows in measured.items()})
            bar.advance(count)
            run.stop.check()
    write_json(stage.folder / "scores.json", summary(comparison, [read_npz(f) for f in files]))


def classifier(run: Run) -> Any:
    """The model that is explained: `config.model.checkpoint`, or the one that stage `classifier` trained.

    Raises:
      ValueError: where there is neither, or the checkpoint does not fit.
    """
    config = run.config
    if "classifier" in config:
        return checkpoints.load(run.finished("classifier").folder)
    if not config.model.checkpoint:
        raise ValueError(
            "this experiment explains a trained model: give its weights as --config.model.checkpoint=FILE "
            "(docs/checkpoints.md lists where they are had)"
        )
    # 0 stands for what the file says.
    names = ("num_heads", "image_size", "norm_eps", "final_norm_eps")
    told = {name: config.model.get(name) or None for name in names}
    model = checkpoints.load(config.model.checkpoint, **told)
    if not hasattr(model, "blocks"):
        raise ValueError(f"{config.model.checkpoint} holds no classifier that could be explained")
    return model


def require_classes(model: Any, source: pipeline.Source) -> None:
    """Refuses a model whose outputs cannot be the dataset's classes."""
    names = source.classes[1:]
    if model.num_classes != len(names):
        raise ValueError(
            f"the model has {model.num_classes} outputs, but {source.name} {len(names)} classes"
        )


def chosen_images(source: pipeline.Source, limit: int, *, one_class: bool) -> list[int]:
    """Places of the first `limit` images (0: of all), with `one_class` of those that show one class alone.

    There, the model's best class is right or wrong.

    Raises:
      ValueError: where there is none.
    """
    if not one_class or source.one_class:
        return list(range(min(limit or len(source), len(source))))
    chosen: list[int] = []
    for index in range(len(source)):
        if source.labels(index).sum() == 1:
            chosen.append(index)
            if len(chosen) == limit:
                break
    if not chosen:
        raise ValueError(f"no image of split {source.split!r} shows one class alone")
    return chosen


class Batches(Sequence[dict[str, np.ndarray]]):
    """The chosen images in batches of one size: the last one repeats its last image.

    Each has image uint8 (B, H, W, 3) at `size`; target int32 (B,), the class of an image, 0 without one; and
    `with_masks` mask int16 (B, H, W): foreground 1, background 0, -1 ignored.
    """

    def __init__(
        self,
        source: pipeline.Source,
        chosen: Sequence[int],
        size: tuple[int, int],
        batch_size: int,
        *,
        with_masks: bool,
    ):
        if batch_size < 1:
            raise ValueError(f"methods.batch_size is {batch_size}, but at least 1 is wanted")
        self._source, self._chosen, self._size = source, chosen, size
        self._batch_size, self._with_masks = batch_size, with_masks

    def __len__(self) -> int:
        return -(-len(self._chosen) // self._batch_size)

    def count(self, number: int) -> int:
        """How many images of a batch are not repeats."""
        return min(self._batch_size, len(self._chosen) - number * self._batch_size)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:  # type: ignore[override]
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        start = number * self._batch_size
        last = len(self._chosen) - 1
        places = range(start, start + self._batch_size)
        examples = [self._source[self._chosen[min(place, last)]] for place in places]
        batch = {
            "image": np.stack([resize_image(example.image, self._size) for example in examples]),
            "target": np.array(
                [example.labels.argmax() if example.labels.size else 0 for example in examples],
                np.int32,
            ),
        }
        if self._with_masks:
            masks = np.stack([resize_mask(example.truth, self._size) for example in examples])
            batch["mask"] = foreground_masks(masks)
        return batch
