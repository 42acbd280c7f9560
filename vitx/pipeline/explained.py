"""The model that a comparison explains, and its images as the model reads them."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np

from vitx import weights
from vitx.data import loader
from vitx.data.transforms import resize_image, resize_mask, to_fractions
from vitx.evaluation.segmentation import foreground_masks
from vitx.models.vit import VisionTransformer
from vitx.runtime.experiment import Run


def classifier(run: Run) -> VisionTransformer:
    """The model that is explained: `config.model.checkpoint`, or the one that stage `classifier` trained.

    Raises:
      ValueError: where there is neither, or the checkpoint does not fit.
    """
    config = run.config
    trained = "classifier" in config
    path = run.finished("classifier").folder if trained else config.model.checkpoint
    if not path:
        raise ValueError(
            "this experiment explains a trained model: give its weights as --config.model.checkpoint=FILE "
            "(docs/checkpoints.md lists where they are had)"
        )
    names = ("num_heads", "image_size", "norm_eps", "final_norm_eps")
    told = {} if trained else {name: config.model[name] for name in names}
    model = weights.load_classifier(path, **told, dtype=config.model.get("dtype"))
    for name, layer in config.methods.start_layer.items():
        if not 0 <= layer < len(model.blocks):
            raise ValueError(
                f"methods.start_layer.{name} is {layer}, but the model has {len(model.blocks)} blocks"
            )
    return model


def precision(config: Any) -> AbstractContextManager[Any]:
    """What a model of `config.dtype` needs around it: float64 is off in JAX by default."""
    double = config.get("dtype", "float32") == "float64"
    return jax.enable_x64(True) if double else nullcontext()


def fits(model: VisionTransformer, source: loader.Source) -> bool:
    """Whether the model's outputs can be the dataset's classes."""
    return model.num_classes == len(source.classes) - 1


def require_classes(model: VisionTransformer, source: loader.Source) -> None:
    """Refuses a model whose outputs cannot be the dataset's classes."""
    if not fits(model, source):
        raise ValueError(
            f"the model has {model.num_classes} outputs, but {source.name} {len(source.classes) - 1} "
            "classes: perturbation and the target class need the model's own"
        )


def chosen_images(source: loader.Source, limit: int, *, one_class: bool) -> list[int]:
    """Places of `limit` images (0: of all), evenly over the split; with `one_class`, of those that show one alone.

    There, the model's best class is right or wrong.

    Raises:
      ValueError: where there is none, or for a negative limit.
    """
    if limit < 0:
        raise ValueError(f"the limit of images is {limit}, but 0 (all) or more is wanted")
    places = np.arange(len(source))
    if one_class and not source.one_class:
        alone = [source.labels(place).sum() == 1 for place in range(len(source))]
        places = np.flatnonzero(alone)
    if not len(places):
        raise ValueError(f"no image of split {source.split!r} shows one class alone")
    wanted = min(limit or len(places), len(places))
    return places[np.linspace(0, len(places) - 1, wanted).astype(int)].tolist()


class Batches(Sequence[dict[str, Any]]):
    """The chosen images as the model wants them, in batches of one size: the last one repeats its last image.

    Each has id (list of B); pixels (B, H, W, 3) in [0, 1], of the model's type; target int32 (B,), the first class
    of an image; valid bool (B,), False for repeats; and `with_masks` mask int16 (B, H, W): foreground 1, background
    0, -1 ignored.

    Raises:
      ValueError: for a batch size under 1, or masks that the dataset does not have.
    """

    def __init__(
        self,
        source: loader.Source,
        chosen: Sequence[int],
        model: VisionTransformer,
        batch_size: int,
        *,
        with_masks: bool,
    ):
        if batch_size < 1:
            raise ValueError(f"methods.batch_size is {batch_size}, but at least 1 is wanted")
        if with_masks and not source.has_masks:
            raise ValueError(f"methods.measures has segmentation, but {source.name} has no masks")
        self._source, self._chosen = source, chosen
        self._size, self._dtype = model.preprocess.size, model.head.bias.dtype
        self._batch_size, self._with_masks = batch_size, with_masks

    def __len__(self) -> int:
        return -(-len(self._chosen) // self._batch_size)

    def places(self, number: int) -> Sequence[int]:
        """Of the images in a batch, without repeats."""
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        return self._chosen[number * self._batch_size : (number + 1) * self._batch_size]

    def __getitem__(self, number: int) -> dict[str, Any]:  # type: ignore[override]
        places = self.places(number)
        rows = np.arange(self._batch_size)
        examples = [self._source[places[row]] for row in np.minimum(rows, len(places) - 1)]
        images = np.stack([resize_image(example.image, self._size) for example in examples])
        batch = {
            "id": [example.id for example in examples],
            "pixels": to_fractions(images).astype(self._dtype),
            "target": np.array([example.labels.argmax() for example in examples], np.int32),
            "valid": rows < len(places),
        }
        if self._with_masks:
            masks = np.stack([resize_mask(example.truth, self._size) for example in examples])
            batch["mask"] = foreground_masks(masks)
        return batch
