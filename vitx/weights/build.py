"""Builds the model that tensors with timm's names describe, still without weights."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Final

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vitx.models.affinitynet import AffinityNet, MultiLevelAffinityNet
from vitx.models.design import VIT, Preprocess
from vitx.models.layers import Linear
from vitx.models.levels import Backbone, StemAlone
from vitx.models.resnet import ConvStem, ResNetV2, Stem
from vitx.models.variants import resample_positions
from vitx.models.vit import VisionTransformer
from vitx.weights.files import Tensor
from vitx.weights.layout import BACKBONE, Model
from vitx.weights.metadata import Metadata, Overrides

HEAD_WIDTH: Final = 64  # of one attention head, where nothing else specifies the number of heads
_AFFINITY_SIZE: Final = (448, 448)
_AFFINITY_CELL: Final = 8
_STAGES: Final = 3
_HALF: Final = (0.5, 0.5, 0.5)


def build(tensors: dict[str, Tensor], metadata: Metadata, overrides: Overrides) -> Model:
    """An abstract model; in `tensors`, the position embedding is resampled and the head new where it has to be."""
    if "feat_conv.weight" in tensors:
        return _affinity_net(tensors, metadata, overrides)
    if "branches.0.feat_conv.weight" in tensors:
        return _multi_level_affinity_net(tensors, metadata, overrides)
    return _vision_transformer(tensors, metadata, overrides)


def _vision_transformer(
    tensors: dict[str, Tensor], metadata: Metadata, overrides: Overrides
) -> VisionTransformer:
    width, _, patch, across = _shape(tensors, "patch_embed.proj.weight", 4)
    if patch != across:
        raise ValueError(f"its patches are {patch} x {across}; vitx has square ones only")
    hidden = _shape(tensors, "blocks.0.mlp.fc1.weight", 2)[0]
    stem, stride = _stem(tensors, "patch_embed.backbone", metadata)
    size = _fit_positions(tensors, patch * stride, metadata, overrides.image_size)
    num_classes = _fit_head(tensors, width, overrides.num_classes)
    heads = overrides.num_heads or metadata.num_heads
    if heads is None and width % HEAD_WIDTH:
        raise ValueError(
            f"neither the file nor its width, {width}, tells the number of heads: give num_heads"
        )
    # A norm_eps that the caller gives is meant for the last LayerNorm too.
    final_norm_eps = None if overrides.norm_eps else metadata.final_norm_eps
    return nnx.eval_shape(
        lambda: VisionTransformer(
            width=width,
            depth=_count(tensors, r"blocks\.(\d+)\."),
            heads=heads or width // HEAD_WIDTH,
            hidden=hidden,
            patch=patch,
            num_classes=num_classes,
            preprocess=Preprocess(metadata.mean or _HALF, metadata.std or _HALF, size),
            stem=stem(nnx.Rngs(0)) if stem else None,
            norm_eps=overrides.norm_eps or metadata.norm_eps or 1e-6,
            final_norm_eps=overrides.final_norm_eps or final_norm_eps,
            rngs=nnx.Rngs(0),
        )
    )


def _affinity_net(
    tensors: Mapping[str, Tensor], metadata: Metadata, overrides: Overrides
) -> AffinityNet:
    grid, preprocess, sizes = _affinity_sizes(tensors, "feat_conv.weight", metadata, overrides)
    stem, _ = _stem(tensors, "resnet_backbone", metadata)
    if stem is None:
        raise ValueError("its stem, resnet_backbone, is missing")
    return nnx.eval_shape(
        lambda: AffinityNet(
            stem(nnx.Rngs(0)), grid, preprocess=preprocess, **sizes, rngs=nnx.Rngs(0)
        )
    )


def _multi_level_affinity_net(
    tensors: dict[str, Tensor], metadata: Metadata, overrides: Overrides
) -> MultiLevelAffinityNet:
    conv = "branches.0.feat_conv.weight"
    grid, preprocess, sizes = _affinity_sizes(tensors, conv, metadata, overrides)
    if metadata.levels is None:
        raise ValueError("the metadata does not have levels, which this AffinityNet needs")
    names = [name for name in tensors if name.startswith(BACKBONE)]
    parts = {name.removeprefix(BACKBONE): tensors[name] for name in names}
    if "pos_embed" in parts:
        backbone: Backbone = _vision_transformer(parts, metadata, replace(overrides, num_classes=1))
        tensors[f"{BACKBONE}pos_embed"] = parts["pos_embed"]  # resampled
    else:
        stem, _ = _stem(parts, "patch_embed.backbone", metadata, fewest=1)
        if stem is None:
            raise ValueError("its backbone is missing")
        backbone = nnx.eval_shape(lambda: StemAlone(stem(nnx.Rngs(0)), preprocess))
    levels = metadata.levels
    return nnx.eval_shape(
        lambda: MultiLevelAffinityNet(backbone, levels, grid, **sizes, rngs=nnx.Rngs(0))
    )


def _affinity_sizes(
    tensors: Mapping[str, Tensor], conv: str, metadata: Metadata, overrides: Overrides
) -> tuple[tuple[int, int], Preprocess, dict[str, int]]:
    """An AffinityNet's grid, preprocessing, and channels; `conv` names its first convolution."""
    for name in ("num_heads", "num_classes", "norm_eps", "final_norm_eps"):
        if getattr(overrides, name) is not None:
            raise ValueError(
                f"it holds an AffinityNet, which has no {name}: leave it out, or give a classifier's weights"
            )
    hidden, groups = _shape(tensors, conv, 4)[0], metadata.groups or 32
    if hidden % groups:
        raise ValueError(f"{conv} has {hidden} outputs, not a multiple of {groups} groups")
    own = metadata.image_size or _AFFINITY_SIZE
    size = overrides.image_size or own
    grid = metadata.grid or (own[0] // _AFFINITY_CELL, own[1] // _AFFINITY_CELL)
    scaled = max(1, grid[0] * size[0] // own[0]), max(1, grid[1] * size[1] // own[1])
    features = _shape(tensors, "affinity_conv.weight", 4)[0]
    preprocess = Preprocess(metadata.mean or _HALF, metadata.std or _HALF, size)
    return scaled, preprocess, {"hidden": hidden, "features": features, "groups": groups}


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


def _stem(
    tensors: Mapping[str, Tensor], prefix: str, metadata: Metadata, fewest: int = _STAGES
) -> tuple[Callable[[nnx.Rngs], Stem] | None, int]:
    """A function that creates the stem (None without one), and the stem's stride; `fewest` stages of a ResNetV2."""
    if not any(name.startswith(f"{prefix}.") for name in tensors):
        return None, 1
    if f"{prefix}.convs.0.weight" in tensors:
        if (stride := metadata.stem_stride) is None:
            raise ValueError("the metadata does not have stem_stride, which this stem needs")
        count = _count(tensors, rf"{re.escape(prefix)}\.convs\.(\d+)\.")
        channels = [_shape(tensors, f"{prefix}.convs.{n}.weight", 4)[0] for n in range(count)]
        unstrided = metadata.stem_unstrided or 0
        return lambda rngs: ConvStem(tuple(channels), stride, unstrided, rngs=rngs), stride
    stages = rf"{re.escape(prefix)}\.stages\."
    found = _count(tensors, rf"{stages}(\d+)\.")
    if f"{prefix}.stem.conv.weight" not in tensors or not fewest <= found <= _STAGES:
        raise ValueError(
            f"its stem, {prefix}, is no ResNetV2 of three stages, vitx's only large stem"
        )
    layers = tuple(_count(tensors, rf"{stages}{s}\.blocks\.(\d+)\.") for s in range(found))
    epsilon = metadata.weight_standardisation_eps or 1e-8
    return lambda rngs: ResNetV2(layers, epsilon, rngs=rngs), ResNetV2.stride


def _fit_head(tensors: dict[str, Tensor], width: int, num_classes: int | None) -> int:
    """Replaces the head by a new one where `num_classes` needs that; returns the number of classes."""
    hidden = [name for name in tensors if name.startswith("pre_logits.")]
    own = tensors["head.weight"].shape[:1] if "head.weight" in tensors else ()
    if num_classes is None and (hidden or not own):
        reason = "- head.weight is missing"
        if hidden:
            reason = f"its head has a hidden layer ({hidden[0]}), which vitx does not have"
        raise ValueError(f"{reason}: give num_classes for a new head")
    if num_classes is not None and (hidden or own != (num_classes,)):
        for name in hidden:
            del tensors[name]
        head = Linear(width, num_classes, rngs=nnx.Rngs(0))
        shape = (num_classes, width)
        tensors["head.weight"] = Tensor(shape, lambda: np.asarray(head.kernel[...]).T)
        tensors["head.bias"] = Tensor(shape[:1], lambda: np.asarray(head.bias[...]))
    return _shape(tensors, "head.weight", 2)[0]


def _fit_positions(
    tensors: dict[str, Tensor], cell: int, metadata: Metadata, wanted: tuple[int, int] | None
) -> tuple[int, int]:
    """Resamples the position embedding to the wanted image size; returns the size."""
    prefix = VIT.prefix_tokens
    count = _shape(tensors, "pos_embed", 3)[1] - prefix
    side = math.isqrt(count)

    def grid(size: tuple[int, int]) -> tuple[int, int]:
        return size[0] // cell, size[1] // cell

    def fits(size: tuple[int, int] | None) -> bool:
        return size is not None and math.prod(grid(size)) == count

    own = metadata.image_size
    if own is None:  # of timm's sizes, none is sure to be that of the embedding
        trained = metadata.img_size or metadata.input_size
        own, wanted = trained if fits(trained) else None, wanted or metadata.img_size
    if side**2 != count and fits(wanted) and not fits(own):
        own = wanted  # not square: nothing else specifies the grid
    old = grid(own) if own else (side, side)
    if count < 1 or math.prod(old) != count:
        raise ValueError(
            f"pos_embed has {count + prefix} entries, not one for the class token and one for each cell"
            f" of {'a square' if own is None else f'{old[0]} x {old[1]}'}"
        )
    size = wanted or own or (side * cell, side * cell)
    new = grid(size)
    if 0 in new or size != (new[0] * cell, new[1] * cell):
        raise ValueError(f"image_size {size} is not a multiple of the patch, {cell} pixels")
    if new != old:
        tensor = tensors["pos_embed"]
        shape = (1, prefix + math.prod(new), tensor.shape[2])
        tensors["pos_embed"] = Tensor(shape, partial(_resampled, tensor, prefix, old, new))
    return size


def _resampled(
    tensor: Tensor, prefix: int, old: tuple[int, int], new: tuple[int, int]
) -> np.ndarray:
    """`resample_positions` in float32 as in timm, or float64."""
    array = tensor.read()
    table = jnp.asarray(array if array.dtype == np.float64 else array.astype(np.float32))
    return np.asarray(resample_positions(table, prefix, old, new))
