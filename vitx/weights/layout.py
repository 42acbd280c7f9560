"""Which parameter has which name and which axes in a file with timm's names."""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from flax import nnx

from vitx.models.affinitynet import AffinityNet
from vitx.models.resnet import ResNetV2

Kind = Literal["same", "linear", "conv", "pointwise", "patches"]


class Entry(NamedTuple):
    """A parameter, its name in the file, and how the axes there relate to ours."""

    name: str
    parameter: nnx.Param
    kind: Kind
    patch: int = 1

    @property
    def file_shape(self) -> tuple[int, ...]:
        """The tensor's shape in the file."""
        shape = tuple(self.parameter.shape)
        match self.kind:
            case "linear":
                return shape[::-1]
            case "pointwise":
                return (*shape[::-1], 1, 1)
            case "conv":
                return (shape[3], shape[2], shape[0], shape[1])
            case "patches":
                return (shape[1], shape[0] // self.patch**2, self.patch, self.patch)
        return shape

    def from_file(self, array: np.ndarray) -> np.ndarray:
        """An array with the file's axes, in ours."""
        match self.kind:
            case "linear":
                return array.T
            case "pointwise":
                return array[:, :, 0, 0].T
            case "conv":
                return array.transpose(2, 3, 1, 0)
            case "patches":  # rows (row, column, channel) of a patch
                return array.transpose(2, 3, 1, 0).reshape(self.parameter.shape)
        return array

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """An array with our axes, in the file's."""
        match self.kind:
            case "linear":
                return array.T
            case "pointwise":
                return array.T[:, :, None, None]
            case "conv":
                return array.transpose(3, 2, 0, 1)
            case "patches":
                p = self.patch
                return array.reshape(p, p, -1, array.shape[1]).transpose(3, 2, 0, 1)
        return array


def entries(model: Any) -> Iterator[Entry]:
    """All parameters of a `VisionTransformer` or `AffinityNet`; their values may be abstract."""
    if isinstance(model, AffinityNet):
        yield from _stem("resnet_backbone", model.stem)
        yield Entry("feat_conv.weight", model.feat_conv, "pointwise")
        yield from _norm("gn", model.gn)
        yield Entry("affinity_conv.weight", model.affinity_conv, "pointwise")
        return
    yield Entry("cls_token", model.cls_token, "same")
    yield Entry("pos_embed", model.pos_embed, "same")
    if model.stem is not None:
        yield from _stem("patch_embed.backbone", model.stem)
    yield Entry("patch_embed.proj.weight", model.patch_embed.kernel, "patches", model.patch)
    yield Entry("patch_embed.proj.bias", model.patch_embed.bias, "same")
    for index, block in enumerate(model.blocks):
        prefix = f"blocks.{index}"
        yield from _norm(f"{prefix}.norm1", block.norm1)
        yield from _linear(f"{prefix}.attn.qkv", block.attn.qkv)
        yield from _linear(f"{prefix}.attn.proj", block.attn.proj)
        yield from _norm(f"{prefix}.norm2", block.norm2)
        yield from _linear(f"{prefix}.mlp.fc1", block.mlp.fc1)
        yield from _linear(f"{prefix}.mlp.fc2", block.mlp.fc2)
    yield from _norm("norm", model.norm)
    yield from _linear("head", model.head)


def _linear(name: str, layer: Any) -> Iterator[Entry]:
    yield Entry(f"{name}.weight", layer.kernel, "linear")
    yield Entry(f"{name}.bias", layer.bias, "same")


def _norm(name: str, layer: Any) -> Iterator[Entry]:
    yield Entry(f"{name}.weight", layer.scale, "same")
    yield Entry(f"{name}.bias", layer.bias, "same")


def _stem(name: str, stem: Any) -> Iterator[Entry]:
    if not isinstance(stem, ResNetV2):  # the light stem, which timm does not have
        for index, (conv, norm) in enumerate(zip(stem.convs, stem.norms, strict=True)):
            yield Entry(f"{name}.convs.{index}.weight", conv.kernel, "conv")
            yield from _norm(f"{name}.norms.{index}", norm)
        return
    yield Entry(f"{name}.stem.conv.weight", stem.conv.kernel, "conv")
    yield from _norm(f"{name}.stem.norm", stem.norm)
    for s, stage in enumerate(stem.stages):
        for b, block in enumerate(stage):
            prefix = f"{name}.stages.{s}.blocks.{b}"
            if block.shortcut is not None:
                yield Entry(f"{prefix}.downsample.conv.weight", block.shortcut.kernel, "conv")
                yield from _norm(f"{prefix}.downsample.norm", block.shortcut_norm)
            for index in (1, 2, 3):
                kernel = getattr(block, f"conv{index}").kernel
                yield Entry(f"{prefix}.conv{index}.weight", kernel, "conv")
                yield from _norm(f"{prefix}.norm{index}", getattr(block, f"norm{index}"))
