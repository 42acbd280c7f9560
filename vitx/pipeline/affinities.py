"""Where the affinities of the walk come from: AffinityNet, or a source that needs no training."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vitx import parallel, weights
from vitx.data.transforms import resize_mask
from vitx.models.affinitynet import AffinityNet, MultiLevelAffinityNet, on_grid
from vitx.models.levels import features_at, require_levels
from vitx.ops import Array
from vitx.pseudomasks import attention
from vitx.pseudomasks.affinity import affinities
from vitx.pseudomasks.similarity import all_affinities, cosine_affinities, near_pairs
from vitx.runtime.experiment import Run

LEARNED = "affinitynet"
AFFINITIES = (LEARNED, "features", "attention", "colour", "uniform")
ORACLE, NO_WALK = "oracle", "none"  # of the control arms
PAIRS = ("published", "near", "all")

_DIFFERENT = 100.0  # a distance at which an affinity vanishes
_COLOURS = 16.0  # a mean difference of 1 / 16 of the range of colours is an affinity of 1 / e


class AffinitySource(NamedTuple):
    """A source of affinities.

    Attributes:
      grid: rows and columns of the walk's pixels.
      preprocess: statistics and size of the images that it reads.
      compute: batch of `EvaluationBatches` -> affinities (B, P, h, w) of near pairs or (B, N, N) of all, NumPy.
    """

    grid: tuple[int, int]
    preprocess: Any
    compute: Callable[[Mapping[str, Any]], np.ndarray]


def check_levels(config: Any, model: Any) -> None:
    """Raises ValueError where a control arm wants affinities of features at a level that the model does not have."""
    if "features" in config.get("controls", {}).get("arms", ()):
        require_option("walk.levels", config.walk.levels, model)


def check_own_levels(config: Any, model: Any) -> None:
    """The same for the affinity of the refined masks."""
    if config.get("walk", {}).get("affinity") == "features":
        require_option("walk.levels", config.walk.levels, model)


def require_option(key: str, levels: Sequence[str], model: Any) -> None:
    """Raises ValueError that names the option at `key` where the model does not have one of its levels."""
    try:
        require_levels(model, levels)
    except ValueError as error:
        raise ValueError(f"config.{key}: {error}") from None


def affinity_source(run: Run, name: str) -> AffinitySource:
    """The source of one of AFFINITIES, or "oracle", which reads the true masks, or "none", where no walk follows."""
    config = run.config
    grid = (config.affinity.grid, config.affinity.grid)
    if name == LEARNED:
        model: Any = weights.load(run.finished("affinity").folder)
        if not isinstance(model, AffinityNet | MultiLevelAffinityNet):
            raise ValueError(
                f"{run.finished('affinity').folder} holds a classifier, where an AffinityNet is expected"
            )
    else:
        model = weights.load_classifier(run.finished("classifier").folder)
        grid = model.grid if name == "attention" else grid
    joined = _Pairs(grid, config.walk.pairs, config.affinity.radius)
    if name == NO_WALK:
        return AffinitySource(grid, model.preprocess, joined.none)
    if name == ORACLE:
        classes = len(run.source(config.data.val_split).classes)
        by_labels = parallel.per_example(
            lambda _, labels: joined.by_label(labels, classes), mode=config.parallel
        )
        return AffinitySource(
            grid,
            model.preprocess,
            lambda batch: by_labels(None, _true_labels(batch["examples"], grid)),
        )
    spread = parallel.replicate(model, parallel.local_mesh())
    by_images = parallel.per_example(
        lambda model, images: _of_images(name, joined, config.walk.levels, model, images),
        mode=config.parallel,
    )
    return AffinitySource(grid, model.preprocess, lambda batch: by_images(spread, batch["image"]))


class _Pairs(NamedTuple):
    """The pairs that the walk joins: on which grid, which of PAIRS, and the radius of near ones."""

    grid: tuple[int, int]
    kind: str
    radius: int

    def by_distance(self, features: Array) -> Array:
        """exp(-mean |f_i - f_j|) of features on the grid (B, h, w, C)."""
        if self.kind == "all":
            return all_affinities(features)
        return affinities(features, self.radius, everywhere=self.kind == "near")

    def by_label(self, labels: Array, classes: int) -> Array:
        """1 for pairs of one label, else 0, of labels on the grid (B, h, w); 255 is a label of its own."""
        return self.by_distance(_DIFFERENT * classes * jax.nn.one_hot(labels, classes))

    def of_all(self, affinity: Array) -> Array:
        """The pairs among all, (B, N, N)."""
        if self.kind == "all":
            return affinity
        return near_pairs(affinity, self.grid, self.radius, everywhere=self.kind == "near")

    def none(self, batch: Mapping[str, Any]) -> np.ndarray:
        """No pairs, (B, 0, h, w)."""
        return np.zeros((len(batch["image"]), 0, *self.grid), np.float32)


def _of_images(
    name: str, joined: _Pairs, levels: Sequence[str], model: Any, images: Array
) -> Array:
    """The affinities of images (B, H, W, 3) by a source that reads no masks."""
    match name:
        case "features":
            found = [_unit(x, joined.grid) for x in features_at(model, images, levels)]
            return joined.of_all(cosine_affinities(jnp.concatenate(found, -1)))
        case "attention":
            return joined.of_all(attention.unit_diagonal(attention.patch_affinity(model, images)))
        case "colour":
            std = jnp.asarray(model.preprocess.std, images.dtype).reshape(1, 1, 1, 3)
            return joined.by_distance(_COLOURS * on_grid(images * std, joined.grid))
        case "uniform":
            return joined.by_distance(jnp.zeros((len(images), *joined.grid, 1)))
    return joined.by_distance(model(images))


def _unit(features: Array, grid: tuple[int, int]) -> Array:
    """Features on a grid, less their mean over the image, at a mean square length of 1."""
    centred = on_grid(features - features.mean((1, 2), keepdims=True), grid)
    length = jnp.square(centred).sum(-1, keepdims=True).mean((1, 2), keepdims=True)
    return centred / jnp.sqrt(jnp.where(length > 0, length, 1))


def _true_labels(examples: list[Any], grid: tuple[int, int]) -> np.ndarray:
    """The true masks on the grid (B, h, w); all background where there is none."""
    masks = [np.zeros((1, 1), np.uint8) if item.mask is None else item.mask for item in examples]
    return np.stack([resize_mask(mask, grid) for mask in masks]).astype(np.int32)
