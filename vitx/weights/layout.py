"""Relates a model's parameters to the tensors of a file: timm's names, PyTorch's axes."""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from flax import nnx

from vitx.models.affinitynet import AffinityNet, MultiLevelAffinityNet
from vitx.models.convnet import ConvNet
from vitx.models.levels import Backbone
from vitx.models.segmenter import Segmenter
from vitx.models.vit import VisionTransformer

Model = VisionTransformer | ConvNet | AffinityNet | MultiLevelAffinityNet | Segmenter
_ON_LEVELS = (MultiLevelAffinityNet, Segmenter)  # with a backbone in parts

# Substitutions in the path of a parameter, one after the other: the model's name of a part, timm's.
_NAMES: Final = (
    (r"^patch_embed\.", "patch_embed.proj."),
    (r"^stem\.(conv|norm)\.", r"stem.stem.\1."),
    (r"^stem\.stages\.(\d+)\.", r"stem.stages.\1.blocks."),
    (r"\.shortcut\.", ".downsample.conv."),
    (r"\.shortcut_norm\.", ".downsample.norm."),
    (r"(^|\.)(feat|affinity)_conv$", r"\1\2_conv.weight"),
    (r"\.(kernel|scale)$", ".weight"),
)
BACKBONE: Final = "backbone."  # in front of the names of the backbone of a model on levels
# PyTorch's axes of Flax's matrices and convolutions; others are the same.
AXES: Final[dict[int, tuple[int, ...]]] = {2: (1, 0), 4: (3, 2, 0, 1)}


class Entry(NamedTuple):
    """A parameter, its name in the file, and its shape there, with the axes in Flax's order."""

    name: str
    parameter: nnx.Param
    shape: tuple[int, ...]

    @property
    def _axes(self) -> tuple[int, ...]:
        return AXES.get(len(self.shape), tuple(range(len(self.shape))))

    @property
    def file_shape(self) -> tuple[int, ...]:
        """The tensor's shape in the file."""
        return tuple(self.shape[axis] for axis in self._axes)

    def from_file(self, array: np.ndarray) -> np.ndarray:
        """An array of the file with the parameter's axes."""
        return array.transpose(np.argsort(self._axes)).reshape(self.parameter.shape)

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """An array of the parameter with the file's axes."""
        return array.reshape(self.shape).transpose(self._axes)


def entries(model: Model | Backbone) -> Iterator[Entry]:
    """All parameters of a model; their values may be abstract."""
    if isinstance(model, _ON_LEVELS):
        for entry in entries(model.backbone):
            yield entry._replace(name=BACKBONE + entry.name)
    stem = "resnet_backbone." if isinstance(model, AffinityNet) else "patch_embed.backbone."
    for path, parameter in nnx.iter_graph(model):
        if not isinstance(parameter, nnx.Param):
            continue
        name, shape = ".".join(map(str, path)), tuple(parameter.shape)
        if isinstance(model, _ON_LEVELS) and name.startswith(BACKBONE):
            continue
        if isinstance(model, VisionTransformer) and name == "patch_embed.kernel":
            # Its rows are (row, column, channel) of a patch.
            shape = (model.patch, model.patch, shape[0] // model.patch**2, shape[1])
        elif name.endswith(("feat_conv", "affinity_conv")):
            shape = (1, 1, *shape)
        for pattern, new in (*_NAMES, (r"^stem\.", stem)):
            name = re.sub(pattern, new, name)
        yield Entry(name, parameter, shape)
