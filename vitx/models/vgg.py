"""VGG-16 (Simonyan & Zisserman, ICLR 2015) as AffinityNet's authors have it: dilated, of stride 8, for CAMs.

Ahn & Kwak, CVPR 2018, after DeepLab's LargeFOV (Chen et al., ICLR 2015): the last pooling keeps the size, conv5 is
dilated instead, and two convolutions take the place of the fully connected layers.
"""

from collections.abc import Iterator, Sequence

from flax import nnx

from vitx.models.convnet import ConvNet, drop_channels
from vitx.models.design import Preprocess
from vitx.models.layers import Conv
from vitx.ops import PLAIN, Array, Ops

DEPTHS = (2, 2, 3, 3, 3)  # convolutions of a stage
WIDTHS = (64, 128, 256, 512, 512)
HIDDEN = 1024
AFFINITY_LEVELS = ("conv4", "conv5", "fc7")
AFFINITY_DILATION = 4  # of fc6


class VGG16(ConvNet):
    """Five stages of 3x3 convolutions, fc6 (3x3), fc7 (1x1), and a linear head on the mean over space.

    Its levels are "conv1" to "conv5", each before its pooling, "fc6" and "fc7".

    Args:
      num_classes: see `ConvNet`.
      preprocess: see `ConvNet`.
      depths: convolutions of the stages.
      widths: their channels.
      hidden: channels of fc6 and fc7.
      fc6_dilation: 1 in the classifier, 4 below AffinityNet.
      head_bias: whether the head has a bias; the published one has none.
      rngs: source of the initial weights.
    """

    stride = 8

    def __init__(
        self,
        num_classes: int,
        preprocess: Preprocess,
        *,
        depths: Sequence[int] = DEPTHS,
        widths: Sequence[int] = WIDTHS,
        hidden: int = HIDDEN,
        fc6_dilation: int = 1,
        head_bias: bool = False,
        rngs: nnx.Rngs,
    ):
        stages, inputs = [], 3
        for number, (depth, width) in enumerate(zip(depths, widths, strict=True), 1):
            dilation = 2 if number == 5 else 1
            convs = []
            for _ in range(depth):
                convs.append(Conv(3, inputs, width, dilation=dilation, rngs=rngs))
                inputs = width
            stages.append(nnx.List(convs))
        self.stages = nnx.List(stages)
        self.fc6: Conv | None = Conv(3, inputs, hidden, dilation=fc6_dilation, rngs=rngs)
        self.fc7: Conv | None = Conv(1, hidden, hidden, rngs=rngs)
        super().__init__(hidden, num_classes, preprocess, head_bias, rngs=rngs)

    @property
    def level_channels(self) -> dict[str, int]:
        """The channels of conv1 to conv5, fc6 and fc7, as far as the model has them."""
        channels = {
            f"conv{number}": stage[-1].kernel.shape[-1]
            for number, stage in enumerate(self.stages, 1)
        }
        fully = {"fc6": self.fc6, "fc7": self.fc7}
        return channels | {name: fc.kernel.shape[-1] for name, fc in fully.items() if fc}

    def dilated(self, fc6_dilation: int) -> "VGG16":
        """The model with the same weights and another dilation of fc6."""
        other = nnx.merge(*nnx.split(self))
        if other.fc6 is not None:
            other.fc6.dilation = fc6_dilation
        return other

    def keep(self, level: str) -> None:
        """Drops what is above a level."""
        if level != "fc7":
            self.drop("fc7")
        if level.startswith("conv"):
            self.drop("fc6")
            self.stages = nnx.List(list(self.stages)[: int(level.removeprefix("conv"))])

    def maps(
        self, images: Array, ops: Ops = PLAIN, dropout: Array | None = None
    ) -> Iterator[tuple[str, Array]]:
        """Images (B, H, W, 3) -> maps of strides 1, 2, 4 and, from conv4 on, 8; dropout follows fc6."""
        x = images
        for number, stage in enumerate(self.stages, 1):
            for conv in stage:
                x = ops.relu(conv(x, ops))
            yield f"conv{number}", x
            if number < 5:
                x = ops.max_pool(x, stride=2 if number < 4 else 1, padding=1)
        for number, fc in ((6, self.fc6), (7, self.fc7)):
            if fc is not None:
                x = ops.relu(fc(x, ops))
                yield f"fc{number}", x
                x = drop_channels(x, dropout, number)

    def features(self, images: Array, ops: Ops = PLAIN, dropout: Array | None = None) -> Array:
        """Images (B, H, W, 3) -> the last feature map (B, h, w, hidden), with dropout before the head."""
        return drop_channels(super().features(images, ops, dropout), dropout, 7)
