"""Builds the CNN that tensors with vitx's names describe, still without weights."""

import re
from collections import Counter
from collections.abc import Mapping
from functools import partial

import numpy as np
from flax import nnx

from vitx.models.convnet import ConvNet
from vitx.models.layers import Conv, Linear
from vitx.models.resnet_v1 import ResNetV1
from vitx.models.vgg import DEPTHS, HIDDEN, VGG16, WIDTHS
from vitx.weights.fit import shape_of
from vitx.weights.layout import AXES
from vitx.weights.metadata import Metadata, Overrides
from vitx.weights.tensor import Tensor

_SIZE = (448, 448)


def is_cnn(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors have the names of a VGG-16 or ResNet."""
    return "stages.0.0.weight" in tensors or "stages.0.0.conv1.weight" in tensors


def conv_net(tensors: dict[str, Tensor], metadata: Metadata, overrides: Overrides) -> ConvNet:
    """An abstract CNN; `tensors` get a new head where the overrides need that.

    Raises:
      ValueError: for an override that a CNN does not have, or a missing head without `num_classes`.
    """
    for name in ("num_heads", "norm_eps", "final_norm_eps", "head"):
        if getattr(overrides, name) is not None:
            raise ValueError(f"it holds a CNN, which has no {name}: leave it out")
    if "stages.0.0.weight" in tensors:
        _add_fully_connected(tensors)
    own = shape_of(tensors, "head.weight", 2)[0] if "head.weight" in tensors else 0
    count = overrides.num_classes or own
    if not count and metadata.num_classes != 0:
        raise ValueError("- head.weight is missing: give num_classes for a new head")
    if count != own:
        tensors.pop("head.bias", None)
    model = backbone(tensors, metadata, overrides, count, head_bias="head.bias" in tensors)
    if count != own:
        head = Linear(model.width, count, bias=False, rngs=nnx.Rngs(0))
        tensors["head.weight"] = _drawn(head.kernel)
    return model


def backbone(
    tensors: Mapping[str, Tensor],
    metadata: Metadata,
    overrides: Overrides,
    num_classes: int = 0,
    head_bias: bool = False,
) -> ConvNet:
    """An abstract CNN; layers that have no tensors get the published sizes."""
    preprocess = metadata.preprocess(overrides.image_size or metadata.image_size or _SIZE)

    def outputs(name: str, default: int) -> int:
        return shape_of(tensors, name, 4)[0] if name in tensors else default

    if "stages.0.0.weight" in tensors:
        widths = [outputs(f"stages.{n}.0.weight", width) for n, width in enumerate(WIDTHS)]
        found = Counter(m[1] for n in tensors if (m := re.match(r"stages\.(\d+)\.\d+\.weight", n)))
        depths = [found[str(n)] or depth for n, depth in enumerate(DEPTHS)]
        hidden, dilation = outputs("fc6.weight", HIDDEN), metadata.fc6_dilation or 1
        return nnx.eval_shape(
            lambda: VGG16(
                num_classes,
                preprocess,
                depths=depths,
                widths=widths,
                hidden=hidden,
                fc6_dilation=dilation,
                head_bias=head_bias,
                rngs=nnx.Rngs(0),
            )
        )
    blocks = {m.groups() for n in tensors if (m := re.match(r"stages\.(\d+)\.(\d+)\.", n))}
    stages = sorted({int(stage) for stage, _ in blocks})
    depths = [sum(int(stage) == number for stage, _ in blocks) for number in stages]
    width = outputs("conv.weight", 64)
    return nnx.eval_shape(
        lambda: ResNetV1(
            num_classes,
            preprocess,
            depths=depths,
            width=width,
            head_bias=head_bias,
            rngs=nnx.Rngs(0),
        )
    )


def _add_fully_connected(tensors: dict[str, Tensor]) -> None:
    """Draws fc6 and fc7 where a VGG-16 has neither, as torchvision's features alone."""
    if any(name.startswith(("fc6.", "fc7.")) for name in tensors):
        return
    rngs, inputs = nnx.Rngs(0), shape_of(tensors, "stages.4.0.weight", 4)[0]
    for name, side, channels in (("fc6", 3, inputs), ("fc7", 1, HIDDEN)):
        conv = Conv(side, channels, HIDDEN, rngs=rngs)
        tensors[f"{name}.weight"] = _drawn(conv.kernel)
        tensors[f"{name}.bias"] = _drawn(conv.bias)


def _drawn(parameter: nnx.Param) -> Tensor:
    """A parameter's own numbers, with PyTorch's axes."""
    axes = AXES.get(parameter.ndim, (0,))
    shape = tuple(parameter.shape[axis] for axis in axes)
    return Tensor(shape, partial(_read, parameter, axes))


def _read(parameter: nnx.Param, axes: tuple[int, ...]) -> np.ndarray:
    return np.asarray(parameter[...]).transpose(axes)
