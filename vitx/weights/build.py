"""Builds the model that tensors with timm's or vitx's names describe, still without weights."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from flax import nnx

from vitx.models.affinitynet import AffinityNet, MultiLevelAffinityNet
from vitx.models.convnet import ConvNet
from vitx.models.design import Design, Preprocess
from vitx.models.levels import Backbone, StemAlone
from vitx.models.resnet import ConvStem, ResNetV2, Stem
from vitx.models.segmenter import Segmenter
from vitx.models.vit import VisionTransformer
from vitx.weights import conv_build
from vitx.weights.design_of import design_of
from vitx.weights.fit import Table, fit_head, shape_of
from vitx.weights.layout import BACKBONE, Model
from vitx.weights.metadata import Metadata, Overrides
from vitx.weights.tensor import Tensor

_HEAD_WIDTH: Final = 64  # of one attention head, where nothing else specifies the number of heads
# Widths that have been published with other heads, as in timm's vision_transformer.py; ViT-H is in `usual_heads`.
_OTHER_HEADS: Final = {
    1152: "16 in SO400M",
    1408: "16 in ViT-g/14",
    1536: "24 in DINOv2 g, 16 in SigLIP giant",
    1664: "16 in ViT-bigG/14",
    4096: "32 in DINOv3 7B",
}
_AFFINITY_SIZE: Final = (448, 448)
_AFFINITY_CELL: Final = 8
_STAGES: Final = 3


def build(tensors: dict[str, Tensor], metadata: Metadata, overrides: Overrides) -> Model:
    """An abstract model; in `tensors`, the position embedding is resampled and the head new where it has to be."""
    if "feat_conv.weight" in tensors:
        return _affinity_net(tensors, metadata, overrides)
    if "branches.0.feat_conv.weight" in tensors:
        return _multi_level_affinity_net(tensors, metadata, overrides)
    if "branches.0.linear.weight" in tensors:
        return _segmenter(tensors, metadata, overrides)
    if conv_build.is_cnn(tensors):
        return conv_build.conv_net(tensors, metadata, overrides)
    return _vision_transformer(tensors, metadata, overrides)


def _vision_transformer(
    tensors: dict[str, Tensor], metadata: Metadata, overrides: Overrides
) -> VisionTransformer:
    width, _, patch, across = shape_of(tensors, "patch_embed.proj.weight", 4)
    if patch != across:
        raise ValueError(f"its patches are {patch} x {across}; vitx has square ones only")
    hidden = shape_of(tensors, "blocks.0.mlp.fc1.weight", 2)[0]
    stem, stride = _stem(tensors, "patch_embed.backbone", metadata)
    table = Table.of(tensors, patch * stride, metadata, overrides.image_size)
    specified = metadata.design or {}
    if "projection" not in specified:
        _head_to_projection(tensors)
    design = design_of(tensors, specified, table.first_fit)
    size = table.fit(tensors, design)
    design, num_classes = fit_head(tensors, design, width, metadata, overrides)
    heads = overrides.num_heads or metadata.num_heads or usual_heads(width, design)
    if heads is None:
        known = f" ({_OTHER_HEADS[width]})" if width in _OTHER_HEADS else ""
        raise ValueError(
            f"neither the file nor its width, {width}{known}, specifies the number of heads: give num_heads"
        )
    # A norm_eps that the caller gives is meant for the last LayerNorm too.
    final_norm_eps = None if overrides.norm_eps else metadata.final_norm_eps
    model = nnx.eval_shape(
        lambda: VisionTransformer(
            width=width,
            depth=_count(tensors, r"blocks\.(\d+)\."),
            heads=heads,
            hidden=hidden // 2 if design.mlp == "gated" else hidden,
            patch=patch,
            num_classes=num_classes,
            preprocess=metadata.preprocess(size),
            stem=stem(nnx.Rngs(0)) if stem else None,
            norm_eps=overrides.norm_eps or metadata.norm_eps or 1e-6,
            final_norm_eps=overrides.final_norm_eps or final_norm_eps,
            design=design,
            rngs=nnx.Rngs(0),
        )
    )
    if not overrides.num_heads and (
        not metadata.num_heads or "num_heads" in (metadata.assumed or ())
    ):
        model.assumed = ("num_heads",)
    return model


def usual_heads(width: int, design: Design) -> int | None:
    """The number of heads of published models of a width; None where they differ, or there are none."""
    if width == 1280 and design.rotary == "none":
        return 16  # of ViT-H, also MAE's, DeiT-III's and CLIP's; DINOv3's H+ has 20
    dinov2 = width == 1536 and design.layer_scale
    if width % _HEAD_WIDTH or (width in _OTHER_HEADS and not dinov2):
        return None
    return width // _HEAD_WIDTH


def _head_to_projection(tensors: dict[str, Tensor]) -> None:
    """Renames the head of timm's CLIP, whose bias of zeros timm adds to the projection of OpenAI or open_clip.

    A head that was trained has another bias.
    """
    clip = {"norm_pre.weight", "head.weight", "head.bias"} <= tensors.keys()
    if clip and "projection.weight" not in tensors and not tensors["head.bias"].read().any():
        tensors["projection.weight"] = tensors.pop("head.weight")
        del tensors["head.bias"]


def _affinity_net(
    tensors: Mapping[str, Tensor], metadata: Metadata, overrides: Overrides
) -> AffinityNet:
    grid, preprocess = _affinity_grid(metadata, overrides)
    hidden, groups, features = _affinity_sizes(tensors, ["feat_conv.weight"], metadata)
    stem, _ = _stem(tensors, "resnet_backbone", metadata)
    if stem is None:
        raise ValueError("its stem, resnet_backbone, is missing")
    return nnx.eval_shape(
        lambda: AffinityNet(
            stem(nnx.Rngs(0)),
            grid,
            preprocess=preprocess,
            hidden=hidden[0],
            features=features,
            groups=groups[0],
            rngs=nnx.Rngs(0),
        )
    )


def _multi_level_affinity_net(
    tensors: dict[str, Tensor], metadata: Metadata, overrides: Overrides
) -> MultiLevelAffinityNet:
    levels = _levels(metadata)
    grid, preprocess = _affinity_grid(metadata, overrides)
    convs = [f"branches.{number}.feat_conv.weight" for number, _ in enumerate(levels)]
    hidden, groups, features = _affinity_sizes(tensors, convs, metadata)
    backbone = _backbone(tensors, metadata, overrides, preprocess)
    # On a CNN the grid may follow the image.
    own_grid = None if isinstance(backbone, ConvNet) and not metadata.grid else grid
    return nnx.eval_shape(
        lambda: MultiLevelAffinityNet(
            backbone,
            levels,
            own_grid,
            hidden=hidden,
            features=features,
            groups=groups,
            rngs=nnx.Rngs(0),
        )
    )


def _segmenter(tensors: dict[str, Tensor], metadata: Metadata, overrides: Overrides) -> Segmenter:
    levels = _levels(metadata)
    _refuse_a_classifiers(overrides, "a segmentation network")
    size = overrides.image_size or metadata.image_size
    if size is None:
        raise ValueError("the metadata does not have image_size, which this network needs")
    backbone = _backbone(tensors, metadata, overrides, metadata.preprocess(size))
    outputs, hidden = shape_of(tensors, "head.weight", 2)
    (groups,) = _groups({"head.weight": hidden}, metadata)
    return nnx.eval_shape(
        lambda: Segmenter(backbone, levels, outputs, hidden=hidden, groups=groups, rngs=nnx.Rngs(0))
    )


def _levels(metadata: Metadata) -> tuple[str, ...]:
    if metadata.levels is None:
        raise ValueError("the metadata does not have levels, which this network needs")
    return metadata.levels


def _backbone(
    tensors: dict[str, Tensor], metadata: Metadata, overrides: Overrides, preprocess: Preprocess
) -> Backbone:
    """The part of a classifier that a net on several levels reads; in `tensors`, its positions are resampled."""
    names = [name for name in tensors if name.startswith(BACKBONE)]
    parts = {name.removeprefix(BACKBONE): tensors[name] for name in names}
    if conv_build.is_cnn(parts):
        return conv_build.backbone(parts, metadata, overrides)
    if any(name.startswith("blocks.") for name in parts):
        vit = _vision_transformer(parts, metadata, replace(overrides, num_classes=1))
        if "pos_embed" in parts:
            tensors[f"{BACKBONE}pos_embed"] = parts["pos_embed"]  # resampled
        return vit
    stem, _ = _stem(parts, "patch_embed.backbone", metadata, fewest=1)
    if stem is None:
        raise ValueError("its backbone is missing")
    return nnx.eval_shape(lambda: StemAlone(stem(nnx.Rngs(0)), preprocess))


def _refuse_a_classifiers(overrides: Overrides, kind: str) -> None:
    for name in ("num_heads", "num_classes", "norm_eps", "final_norm_eps", "head"):
        if getattr(overrides, name) is not None:
            raise ValueError(
                f"it holds {kind}, which has no {name}: leave it out, or give a classifier's weights"
            )


def _affinity_grid(metadata: Metadata, overrides: Overrides) -> tuple[tuple[int, int], Preprocess]:
    """An AffinityNet's grid and preprocessing."""
    _refuse_a_classifiers(overrides, "an AffinityNet")
    own = metadata.image_size or _AFFINITY_SIZE
    size = overrides.image_size or own
    grid = metadata.grid or (own[0] // _AFFINITY_CELL, own[1] // _AFFINITY_CELL)
    scaled = max(1, grid[0] * size[0] // own[0]), max(1, grid[1] * size[1] // own[1])
    return scaled, metadata.preprocess(size)


def _affinity_sizes(
    tensors: Mapping[str, Tensor], convs: Sequence[str], metadata: Metadata
) -> tuple[list[int], list[int], int]:
    """Channels and groups of each branch of an AffinityNet, whose convolutions have the names, and its features."""
    hidden = {conv: shape_of(tensors, conv, 4)[0] for conv in convs}
    features = shape_of(tensors, "affinity_conv.weight", 4)[0]
    return [*hidden.values()], _groups(hidden, metadata), features


def _groups(channels: Mapping[str, int], metadata: Metadata) -> list[int]:
    """The groups of each GroupNorm, given the channels by the name of the tensor that shows them."""
    specified = metadata.groups or 32
    groups = [specified] * len(channels) if isinstance(specified, int) else list(specified)
    if len(groups) != len(channels):
        raise ValueError(f"the metadata has {len(groups)} groups for {len(channels)} branches")
    for (name, count), each in zip(channels.items(), groups, strict=True):
        if count % each:
            raise ValueError(f"{name} has {count} channels, not a multiple of {each} groups")
    return groups


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
        channels = [shape_of(tensors, f"{prefix}.convs.{n}.weight", 4)[0] for n in range(count)]
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
