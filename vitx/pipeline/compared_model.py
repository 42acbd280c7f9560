"""The model that a comparison explains, and its images as the model reads them."""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np

from vitx import weights
from vitx.data import loader
from vitx.data.source import evenly_spaced
from vitx.images.evaluation_crop import difference
from vitx.models.design import Preprocess
from vitx.models.variants import Classifier
from vitx.relevance.registry import method_of
from vitx.runtime.experiment import Run


def classifier(run: Run) -> Classifier:
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
    overrides = {} if trained else {name: config.model[name] for name in names}
    model = weights.load_classifier(path, **overrides, dtype=config.model.get("dtype"))
    read = Preprocess().interpolation  # of `pixel_batches`
    if not trained and (remark := difference(model.preprocess, "squash", read)):
        print(f"{path}: {remark.partition(' (aspect')[0]}", file=sys.stderr)
    for name in config.methods.compared:
        try:
            method_of(name).require(model)
        except ValueError as error:
            raise ValueError(f"methods.compared: {error}") from None
    blocks = len(model.blocks)
    for name, layer in config.methods.start_layer.items():
        if blocks and not 0 <= layer < blocks:
            raise ValueError(
                f"methods.start_layer.{name} is {layer}, but the model has {blocks} blocks"
            )
    return model


def compared_source(run: Run) -> loader.Source:
    """The images that methods are compared on: `methods.split`, or `data.val_split` where that is empty."""
    return run.source(run.config.methods.split or run.config.data.val_split)


def precision(config: Any) -> AbstractContextManager[Any]:
    """What a model of `config.dtype` needs around it: float64 is off in JAX by default."""
    double = config.get("dtype", "float32") == "float64"
    return jax.enable_x64(True) if double else nullcontext()


def fits(model: Classifier, source: loader.Source) -> bool:
    """Whether the model's outputs can be the dataset's classes."""
    return model.num_classes == len(source.classes) - 1


def require_classes(model: Classifier, source: loader.Source) -> None:
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
    return places[evenly_spaced(len(places), limit or len(places))].tolist()


def pixel_batches(
    source: loader.Source, chosen: Sequence[int], model: Classifier, batch_size: int
) -> loader.EvaluationBatches:
    """The chosen images at the model's size, in [0, 1]: see `loader.EvaluationBatches`."""
    pixels = Preprocess((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), model.preprocess.size)
    return loader.evaluation_batches(source, pixels, batch_size, chosen)


def targets(batch: dict[str, Any]) -> np.ndarray:
    """The first class that each image of a batch shows, int32 (B,)."""
    return batch["labels"].argmax(-1).astype(np.int32)
