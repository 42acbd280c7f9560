"""The model that tensors with timm's names describe, still without weights."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vitx.models.affinitynet import AffinityNet
from vitx.models.layers import Linear
from vitx.models.resnet import ConvStem, ResNetV2
from vitx.models.vit import Preprocess, VisionTransformer
from vitx.weights.facts import Facts
from vitx.weights.files import Tensor
from vitx.weights.names import Named

_AFFINITY_SIZE: Final = (448, 448)
_AFFINITY_CELL: Final = 8
_HEAD_WIDTH: Final = 64
_STAGES: Final = 3
_HALF: Final = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Wish:
    """What the caller of `load` asked for, checked; None where the file is to decide."""

    num_heads: int | None
    image_size: tuple[int, int] | None
    num_classes: int | None
    norm_eps: float | None
    final_norm_eps: float | None


def vision_transformer(
    named: Named, facts: Facts, wish: Wish
) -> tuple[VisionTransformer, Mapping[str, Tensor]]:
    """An abstract model, and its tensors: the file's, but for a resampled embedding or new head.

    Raises:
      ValueError: where the tensors do not tell a size, or one does not fit another.
    """
    tensors = dict(named.tensors)
    width, _, patch, across = _shape(tensors, "patch_embed.proj.weight", 4)
    if patch != across:
        raise ValueError(f"its patches are {patch} x {across}; vitx has square ones only")
    hidden = _shape(tensors, "blocks.0.mlp.fc1.weight", 2)[0]
    stem, stride = _stem(tensors, "patch_embed.backbone", facts)
    size = _fit_positions(tensors, patch * stride, *_sizes(tensors, patch * stride, facts, wish))
    num_classes = _fit_head(tensors, width, wish.num_classes)
    norm_eps, final_norm_eps = _epsilons(named, facts, wish)
    model = nnx.eval_shape(
        lambda: VisionTransformer(
            width=width,
            depth=_count(tensors, r"blocks\.(\d+)\."),
            heads=wish.num_heads or facts.num_heads or _usual_heads(width),
            hidden=hidden,
            patch=patch,
            num_classes=num_classes,
            preprocess=_preprocess(facts, size),
            stem=stem(nnx.Rngs(0)) if stem else None,
            norm_eps=norm_eps,
            final_norm_eps=final_norm_eps,
            rngs=nnx.Rngs(0),
        )
    )
    return model, tensors


def affinity_net(named: Named, facts: Facts, wish: Wish) -> AffinityNet:
    """An abstract AffinityNet for the tensors.

    Raises:
      ValueError: where the tensors do not tell a size, or something was asked that it has not.
    """
    for name in ("num_heads", "num_classes", "norm_eps", "final_norm_eps"):
        if getattr(wish, name) is not None:
            raise ValueError(
                f"this is an AffinityNet, which has no {name}: leave that out, or give a classifier's"
                " weights"
            )
    hidden = _shape(named.tensors, "feat_conv.weight", 4)[0]
    features = _shape(named.tensors, "affinity_conv.weight", 4)[0]
    groups = facts.groups or 32
    if hidden % groups:
        raise ValueError(
            f"feat_conv.weight has {hidden} outputs, not a multiple of {groups} groups"
        )
    stem, _ = _stem(named.tensors, "resnet_backbone", facts)
    if stem is None:
        raise ValueError("its stem, resnet_backbone, is missing")
    own = facts.image_size or _AFFINITY_SIZE
    size = wish.image_size or own
    grid = facts.grid or (own[0] // _AFFINITY_CELL, own[1] // _AFFINITY_CELL)
    return nnx.eval_shape(
        lambda: AffinityNet(
            stem(nnx.Rngs(0)),
            (max(1, grid[0] * size[0] // own[0]), max(1, grid[1] * size[1] // own[1])),
            preprocess=_preprocess(facts, size),
            hidden=hidden,
            features=features,
            groups=groups,
            rngs=nnx.Rngs(0),
        )
    )


def _shape(tensors: Mapping[str, Tensor], name: str, axes: int) -> tuple[int, ...]:
    if name not in tensors:
        raise ValueError(f"- {name} is missing, without which the model's sizes are not known")
    shape = tensors[name].shape
    if len(shape) != axes or 0 in shape:
        raise ValueError(f"{name} has shape {shape}, where {axes} axes are expected")
    return shape


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers a name has; gaps in them show when names are compared."""
    return len({found[1] for name in tensors if (found := re.match(pattern, name))})


def _usual_heads(width: int) -> int:
    if width % _HEAD_WIDTH:
        raise ValueError(
            f"neither the file nor its width, {width}, tells the number of heads: give num_heads"
        )
    return width // _HEAD_WIDTH


def _epsilons(named: Named, facts: Facts, wish: Wish) -> tuple[float, float]:
    if wish.norm_eps is not None:
        return wish.norm_eps, wish.final_norm_eps or wish.norm_eps
    norm_eps = facts.norm_eps or 1e-6
    return norm_eps, wish.final_norm_eps or facts.final_norm_eps or norm_eps


def _preprocess(facts: Facts, size: tuple[int, int]) -> Preprocess:
    return Preprocess(facts.mean or _HALF, facts.std or _HALF, size)


def _stem(
    tensors: Mapping[str, Tensor], prefix: str, facts: Facts
) -> tuple[Callable[[nnx.Rngs], Any] | None, int]:
    """How to make the stem (None without one), and its stride."""
    if not any(name.startswith(f"{prefix}.") for name in tensors):
        return None, 1
    if f"{prefix}.convs.0.weight" in tensors:
        if facts.stem_stride is None:
            raise ValueError("the metadata does not have stem_stride, which this stem needs")
        count = _count(tensors, re.escape(prefix) + r"\.convs\.(\d+)\.")
        names = [f"{prefix}.convs.{index}.weight" for index in range(count)]
        channels = tuple(_shape(tensors, name, 4)[0] for name in names)
        return lambda rngs: ConvStem(channels, facts.stem_stride or 1, rngs=rngs), facts.stem_stride
    stages = re.escape(prefix) + r"\.stages\."
    if (
        f"{prefix}.stem.conv.weight" not in tensors
        or _count(tensors, stages + r"(\d+)\.") != _STAGES
    ):
        raise ValueError(
            f"its stem, {prefix}, is no ResNetV2 of three stages, vitx's only large stem"
        )
    layers = tuple(_count(tensors, stages + rf"{s}\.blocks\.(\d+)\.") for s in range(_STAGES))
    epsilon = facts.weight_standardisation_eps or 1e-8
    return lambda rngs: ResNetV2(layers, epsilon, rngs=rngs), ResNetV2.stride


def _fit_head(tensors: dict[str, Tensor], width: int, num_classes: int | None) -> int:
    """Puts a fresh head among the tensors where one is asked for; gives the number of classes."""
    hidden = [name for name in tensors if name.startswith("pre_logits.")]
    if num_classes is None and hidden:
        raise ValueError(
            f"its head has a hidden layer ({hidden[0]}), which vitx does not have: give num_classes"
            " for a fresh head"
        )
    if num_classes is None and "head.weight" not in tensors:
        raise ValueError("- head.weight is missing: give num_classes for a fresh head")
    if num_classes is None or (
        not hidden and "head.weight" in tensors and num_classes == tensors["head.weight"].shape[0]
    ):
        return _shape(tensors, "head.weight", 2)[0]
    for name in (*hidden, "head.weight", "head.bias"):
        tensors.pop(name, None)
    head = Linear(width, num_classes, rngs=nnx.Rngs(0))
    tensors["head.weight"] = Tensor((num_classes, width), lambda: np.asarray(head.kernel[...]).T)
    tensors["head.bias"] = Tensor((num_classes,), lambda: np.asarray(head.bias[...]))
    return num_classes


def _sizes(
    tensors: Mapping[str, Tensor], cell: int, facts: Facts, wish: Wish
) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """The image size that the position embedding is for, and the one that is wanted.

    timm keeps a position embedding whose length matches `img_size`, and resamples any other.
    """
    own, asked = facts.image_size, facts.img_size
    if own is None and asked is not None:
        cells = (asked[0] // cell) * (asked[1] // cell)
        if cells == _shape(tensors, "pos_embed", 3)[1] - 1:
            return asked, wish.image_size
        return None, wish.image_size or asked
    return own, wish.image_size


def _fit_positions(
    tensors: dict[str, Tensor],
    cell: int,
    own: tuple[int, int] | None,
    wanted: tuple[int, int] | None,
) -> tuple[int, int]:
    """Puts the position embedding of the wanted image size among the tensors; gives that size."""
    count = _shape(tensors, "pos_embed", 3)[1] - 1
    size = wanted or own
    if size and size[0] // cell * (size[1] // cell) == count and math.isqrt(count) ** 2 != count:
        return size  # not square: nothing but the image size can tell the grid
    old = (own[0] // cell, own[1] // cell) if own else (math.isqrt(count),) * 2
    if count < 1 or old[0] * old[1] != count:
        raise ValueError(
            f"pos_embed has {count + 1} entries, not one for the class token and one for each cell"
            f" of {'a square' if own is None else f'{old[0]} x {old[1]}'}"
        )
    size = wanted or own or (old[0] * cell, old[1] * cell)
    new = (size[0] // cell, size[1] // cell)
    if 0 in new or size != (new[0] * cell, new[1] * cell):
        raise ValueError(f"image_size {size} is not a multiple of the patch, {cell} pixels")
    if new != old:
        tensor = tensors["pos_embed"]
        shape = (1, 1 + new[0] * new[1], tensor.shape[2])
        tensors["pos_embed"] = Tensor(shape, partial(_resampled, tensor, old, new))
    return size


def _resampled(tensor: Tensor, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """Bicubic with antialias, in float32 as in timm, or float64; the class token's entry stays."""
    array = tensor.read()
    table = jnp.asarray(array if array.dtype == np.float64 else array.astype(np.float32))
    cls, cells = table[:, :1], table[:, 1:].reshape(1, *old, -1)
    cells = jax.image.resize(cells, (1, *new, cells.shape[-1]), "cubic", antialias=True)
    return np.asarray(jnp.concatenate([cls, cells.reshape(1, new[0] * new[1], -1)], axis=1))
