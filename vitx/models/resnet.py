"""Convolutional stems of the hybrids: ResNetV2 as in BiT and timm's `vit_base_r50_s16`, and a light one."""

import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from vitx.models.layers import GroupNorm
from vitx.ops import PLAIN, Array, Ops


def _he_normal(rngs: nnx.Rngs, shape: tuple[int, ...]) -> Array:
    return jax.random.normal(rngs(), shape) * math.sqrt(2 / math.prod(shape[:-1]))


class StdConv(nnx.Module):
    """Convolution without bias whose kernel is standardised per output channel (Qiao et al., 2019)."""

    def __init__(
        self, side: int, inputs: int, outputs: int, stride: int, epsilon: float, *, rngs: nnx.Rngs
    ):
        self.kernel = nnx.Param(_he_normal(rngs, (side, side, inputs, outputs)))
        self.stride = stride
        self.epsilon = epsilon

    def __call__(self, x: Array, ops: Ops = PLAIN) -> Array:
        """X (B, H, W, in) -> (B, ceil(H / stride), ceil(W / stride), out)."""
        kernel = self.kernel[...]
        centred = kernel - kernel.mean((0, 1, 2), keepdims=True)
        variance = jnp.square(centred).mean((0, 1, 2), keepdims=True)
        return ops.conv(x, centred * lax.rsqrt(variance + self.epsilon), stride=self.stride)


class Bottleneck(nnx.Module):
    """1x1, 3x3 (strided), 1x1 with normalisation after each convolution: the non-pre-activation form."""

    def __init__(self, inputs: int, outputs: int, stride: int, epsilon: float, *, rngs: nnx.Rngs):
        middle = outputs // 4
        projects = stride != 1 or inputs != outputs
        self.shortcut = (
            StdConv(1, inputs, outputs, stride, epsilon, rngs=rngs) if projects else None
        )
        if projects:
            self.shortcut_norm = GroupNorm(outputs)
        self.conv1 = StdConv(1, inputs, middle, 1, epsilon, rngs=rngs)
        self.norm1 = GroupNorm(middle)
        self.conv2 = StdConv(3, middle, middle, stride, epsilon, rngs=rngs)
        self.norm2 = GroupNorm(middle)
        self.conv3 = StdConv(1, middle, outputs, 1, epsilon, rngs=rngs)
        self.norm3 = GroupNorm(outputs)

    def __call__(self, x: Array, ops: Ops = PLAIN) -> Array:
        """X (B, H, W, in) -> (B, H / stride, W / stride, out)."""
        skip = x if self.shortcut is None else self.shortcut_norm(self.shortcut(x, ops), ops)
        x = ops.relu(self.norm1(self.conv1(x, ops), ops))
        x = ops.relu(self.norm2(self.conv2(x, ops), ops))
        x = self.norm3(self.conv3(x, ops), ops)
        return ops.relu(ops.add(x, skip))


class Stem(nnx.Module):
    """From images to the features that a hybrid embeds, in stages that have a map each.

    Attributes:
      stride: pixels of the image along a cell of the features.
    """

    stride: int

    @property
    def stage_channels(self) -> Sequence[int]:
        """Channels of the stages' maps."""
        raise NotImplementedError

    @property
    def channels(self) -> int:
        """Channels of the features."""
        return self.stage_channels[-1]

    def keep(self, stages: int) -> None:
        """Drops all but the first stages."""
        raise NotImplementedError

    def maps(self, images: Array, ops: Ops = PLAIN) -> Iterator[Array]:
        """Images (B, H, W, 3) -> the stages' maps (B, h, w, C), each computed when it is asked for."""
        raise NotImplementedError

    def __call__(self, images: Array, ops: Ops = PLAIN) -> Array:
        """Images (B, H, W, 3) -> features (B, H / stride, W / stride, channels): the last stage's map."""
        *_, features = self.maps(images, ops)
        return features


class ResNetV2(Stem):
    """7x7/2 convolution, 3x3/2 max pool, three stages of bottlenecks: stride 16, 1024 channels.

    Args:
      layers: bottlenecks a stage.
      epsilon: of the weight standardisation: 1e-8 in timm's hybrids, 1e-6 in [Re].
      rngs: source of the initial weights.
    """

    stride = 16

    def __init__(
        self, layers: tuple[int, ...] = (3, 4, 9), epsilon: float = 1e-8, *, rngs: nnx.Rngs
    ):
        self.conv = StdConv(7, 3, 64, 2, epsilon, rngs=rngs)
        self.norm = GroupNorm(64)
        stages, inputs = [], 64
        for index, depth in enumerate(layers):
            outputs = 256 * 2**index
            stride = 1 if index == 0 else 2
            blocks = [Bottleneck(inputs, outputs, stride, epsilon, rngs=rngs)]
            blocks += [
                Bottleneck(outputs, outputs, 1, epsilon, rngs=rngs) for _ in range(depth - 1)
            ]
            stages.append(nnx.List(blocks))
            inputs = outputs
        self.stages = nnx.List(stages)

    @property
    def stage_channels(self) -> list[int]:
        """256, 512, 1024."""
        return [256 * 2**index for index in range(len(self.stages))]

    def keep(self, stages: int) -> None:
        """Drops all but the first stages."""
        self.stages = nnx.List(list(self.stages)[:stages])

    def maps(self, images: Array, ops: Ops = PLAIN) -> Iterator[Array]:
        """Images (B, H, W, 3) -> maps of strides 4, 8 and 16."""
        x = ops.relu(self.norm(self.conv(images, ops), ops))
        x = ops.max_pool(x)  # (B, H / 4, W / 4, 64)
        for stage in self.stages:
            for block in stage:
                x = block(x, ops)
            yield x


class ConvStem(Stem):
    """Standardised 3x3 convolutions with GroupNorm and ReLU, the light stem of the small hybrids.

    Few channels where the map is large. The first `unstrided` convolutions keep the image's size, and the
    `log2(stride)` after them halve it. Each convolution is a stage.
    """

    def __init__(
        self, channels: tuple[int, ...], stride: int, unstrided: int = 0, *, rngs: nnx.Rngs
    ):
        strided = range(unstrided, unstrided + int(math.log2(stride)))
        inputs = (3, *channels[:-1])
        self.convs = nnx.List(
            [
                StdConv(3, i, o, 2 if index in strided else 1, 1e-8, rngs=rngs)
                for index, (i, o) in enumerate(zip(inputs, channels, strict=True))
            ]
        )
        self.norms = nnx.List([GroupNorm(c, groups=8) for c in channels])
        self.stride = stride
        self.unstrided = unstrided

    @property
    def stage_channels(self) -> list[int]:
        """Channels of the convolutions."""
        return [conv.kernel.shape[-1] for conv in self.convs]

    def keep(self, stages: int) -> None:
        """Drops all but the first convolutions."""
        self.convs = nnx.List(list(self.convs)[:stages])
        self.norms = nnx.List(list(self.norms)[:stages])

    def maps(self, images: Array, ops: Ops = PLAIN) -> Iterator[Array]:
        """Images (B, H, W, 3) -> a map of each convolution."""
        x = images
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = ops.relu(norm(conv(x, ops), ops))
            yield x
