"""ResNet of bottlenecks (He et al., CVPR 2016) for CAMs, with torchvision's weights: ResNet-50 and its deeper forms.

BatchNorm has constant statistics: a factor and a shift of each channel, into which a file's running mean and variance
are folded (`vitx.weights.conv_names`), and which are trained like other weights. A batch of CAM's training is too small
and too unlike ImageNet for statistics of its own, and a model without them has no other state than its weights.
"""

from collections.abc import Iterator, Sequence

from flax import nnx

from vitx.models.convnet import ConvNet
from vitx.models.design import Preprocess
from vitx.models.layers import ChannelAffine, Conv
from vitx.ops import PLAIN, Array, Ops


class Bottleneck(nnx.Module):
    """1x1, 3x3 (strided or dilated), 1x1, each with its norm, and a skip connection.

    Args:
      inputs, middle, outputs: channels before, within and after it.
      stride, dilation: of the 3x3 convolution.
      projects: whether the skip connection has a convolution.
      rngs: source of the initial weights.
    """

    def __init__(
        self,
        inputs: int,
        middle: int,
        outputs: int,
        *,
        stride: int,
        dilation: int,
        projects: bool,
        rngs: nnx.Rngs,
    ):
        self.conv1 = Conv(1, inputs, middle, bias=False, rngs=rngs)
        self.norm1 = ChannelAffine(middle)
        self.conv2 = Conv(
            3, middle, middle, stride=stride, dilation=dilation, bias=False, rngs=rngs
        )
        self.norm2 = ChannelAffine(middle)
        self.conv3 = Conv(1, middle, outputs, bias=False, rngs=rngs)
        self.norm3 = ChannelAffine(outputs)
        self.shortcut = (
            Conv(1, inputs, outputs, stride=stride, bias=False, rngs=rngs) if projects else None
        )
        if projects:
            self.shortcut_norm = ChannelAffine(outputs)

    def __call__(self, x: Array, ops: Ops = PLAIN) -> Array:
        """X (B, H, W, inputs) -> (B, ceil(H / stride), ceil(W / stride), outputs)."""
        skip = x if self.shortcut is None else self.shortcut_norm(self.shortcut(x, ops), ops)
        x = ops.relu(self.norm1(self.conv1(x, ops), ops))
        x = ops.relu(self.norm2(self.conv2(x, ops), ops))
        return ops.relu(ops.add(self.norm3(self.conv3(x, ops), ops), skip))


class ResNetV1(ConvNet):
    """7x7/2 convolution, 3x3/2 max pool, four stages of bottlenecks, and a linear head on the mean over space.

    The last stage keeps the size and dilates its 3x3 convolutions by 2 after the first block, as torchvision's
    `replace_stride_with_dilation=[False, False, True]`: stride 16. Its levels are "layer1" to "layer4".

    Args:
      num_classes: see `ConvNet`.
      preprocess: see `ConvNet`.
      depths: bottlenecks of a stage.
      width: channels of the first convolution, and of the 3x3 ones in the first stage.
      head_bias: whether the head has a bias.
      rngs: source of the initial weights.
    """

    stride = 16

    def __init__(
        self,
        num_classes: int,
        preprocess: Preprocess,
        *,
        depths: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        head_bias: bool = False,
        rngs: nnx.Rngs,
    ):
        self.conv = Conv(7, 3, width, stride=2, bias=False, rngs=rngs)
        self.norm = ChannelAffine(width)
        stages, inputs = [], width
        for number, depth in enumerate(depths):
            middle = width * 2**number
            blocks = []
            for index in range(depth):
                block = Bottleneck(
                    inputs,
                    middle,
                    4 * middle,
                    stride=2 if number in (1, 2) and index == 0 else 1,
                    dilation=2 if number == 3 and index > 0 else 1,
                    projects=index == 0,
                    rngs=rngs,
                )
                blocks.append(block)
                inputs = 4 * middle
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        super().__init__(inputs, num_classes, preprocess, head_bias, rngs=rngs)

    @property
    def level_channels(self) -> dict[str, int]:
        """The channels of layer1 to layer4, as far as the model has them."""
        return {
            f"layer{number}": stage[-1].norm3.scale.shape[0]
            for number, stage in enumerate(self.stages, 1)
        }

    def keep(self, level: str) -> None:
        """Drops the stages above a level."""
        self.stages = nnx.List(list(self.stages)[: int(level.removeprefix("layer"))])

    def maps(
        self, images: Array, ops: Ops = PLAIN, dropout: Array | None = None
    ) -> Iterator[tuple[str, Array]]:
        """Images (B, H, W, 3) -> maps of strides 4, 8, 16 and 16. There is no dropout."""
        x = ops.relu(self.norm(self.conv(images, ops), ops))
        x = ops.max_pool(x, padding=1)
        for number, stage in enumerate(self.stages, 1):
            for block in stage:
                x = block(x, ops)
            yield f"layer{number}", x
