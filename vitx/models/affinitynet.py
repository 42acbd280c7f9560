"""AffinityNet (Ahn & Kwak, CVPR 2018): a hybrid's stem, and a head whose features separate the objects' pixels.

`MultiLevelAffinityNet` reads several levels of a backbone, as the original does, and a plain ViT's too.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vitx.models.design import Preprocess
from vitx.models.layers import GroupNorm
from vitx.models.levels import Backbone, features_at, level_channels, part_below
from vitx.models.vgg import AFFINITY_DILATION, AFFINITY_LEVELS, VGG16
from vitx.ops import Array, linear

PSA_FEATURES = 448
PSA_STEP = 56  # so that each branch of `vgg16_affinity_net` has whole groups


def _kaiming_normal(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(math.sqrt(2 / inputs) * jax.random.normal(rngs(), (inputs, outputs)))


def _xavier_uniform(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Param:
    bound = 4 * math.sqrt(6 / (inputs + outputs))  # gain 4
    return nnx.Param(jax.random.uniform(rngs(), (inputs, outputs), minval=-bound, maxval=bound))


def on_grid(x: Array, grid: tuple[int, int]) -> Array:
    """X (B, H, W, C) -> (B, h, w, C) on the grid, bilinear without antialiasing."""
    shape = (len(x), *grid, x.shape[-1])
    return jax.image.resize(x, shape, "bilinear", antialias=False)


class AffinityNet(nnx.Module):
    """Pixel features on a grid: stem, bilinear resize, 1x1 conv, GroupNorm, ELU, 1x1 conv, ELU (docs/protocol.md).

    Args:
      stem: module from images to features, with attribute `channels`.
      grid: (h, w) of the pixel features; the input size over 8 as published.
      hidden, features: channels of the two 1x1 convolutions, multiples of `groups`.
      preprocess: statistics and input size, those of the classifier that the stem is from.
      rngs: source of the initial weights.
    """

    def __init__(
        self,
        stem: Any,
        grid: tuple[int, int],
        *,
        preprocess: Any,
        hidden: int = 512,
        features: int = 512,
        groups: int = 32,
        rngs: nnx.Rngs,
    ):
        self.stem = stem
        self.grid = grid
        self.preprocess = preprocess
        self.feat_conv = _kaiming_normal(stem.channels, hidden, rngs)
        self.gn = GroupNorm(hidden, groups=groups)
        self.affinity_conv = _xavier_uniform(hidden, features, rngs)

    def head(self, features: Array) -> Array:
        """Stem features (B, h, w, C) -> pixel features on the grid, (B, h, w, features)."""
        x = on_grid(features, self.grid)
        x = jax.nn.elu(self.gn(linear(x, self.feat_conv[...])))
        return jax.nn.elu(linear(x, self.affinity_conv[...]))

    def __call__(self, images: Array) -> Array:
        """Normalised images (B, H, W, 3) -> pixel features on the grid, (B, h, w, features)."""
        return self.head(self.stem(images.astype(self.feat_conv.dtype)))


class Branch(nnx.Module):
    """From one level's map to its part of the pixel features: 1x1 conv without bias, GroupNorm, ELU."""

    def __init__(self, channels: int, hidden: int, groups: int, *, rngs: nnx.Rngs):
        self.feat_conv = _kaiming_normal(channels, hidden, rngs)
        self.gn = GroupNorm(hidden, groups=groups)

    def __call__(self, x: Array) -> Array:
        """X (B, H, W, channels) -> (B, H, W, hidden)."""
        return jax.nn.elu(self.gn(linear(x, self.feat_conv[...])))


class MultiLevelAffinityNet(nnx.Module):
    """Pixel features on a grid: a branch for each level, bilinear resize, joined over channels, 1x1 conv, ELU.

    It holds only the part of the backbone that its levels need.

    Args:
      backbone: a Vision Transformer with a stem or without, or a CNN; stays as it is.
      levels: names of the backbone's levels, see `vitx.models.levels`.
      grid: (h, w) of the pixel features; None for that of the finest level, which follows from the image's size.
      hidden: channels of each branch, multiples of its `groups`; one number for all branches, or one for each.
      features: channels of the pixel features.
      groups: of the branches' GroupNorms, likewise.
      rngs: source of the initial weights.

    Raises:
      ValueError: for no levels, one that the backbone does not have, or other numbers than one for each level.
    """

    def __init__(
        self,
        backbone: Backbone,
        levels: Sequence[str],
        grid: tuple[int, int] | None,
        *,
        hidden: int | Sequence[int] = 512,
        features: int = 512,
        groups: int | Sequence[int] = 32,
        rngs: nnx.Rngs,
    ):
        self.backbone = part_below(backbone, levels)
        self.levels = tuple(levels)
        self.grid = grid
        hidden, groups = (
            [x] * len(self.levels) if isinstance(x, int) else x for x in (hidden, groups)
        )
        channels = level_channels(self.backbone)
        sizes = zip(self.levels, hidden, groups, strict=True)
        self.branches = nnx.List([Branch(channels[name], h, g, rngs=rngs) for name, h, g in sizes])
        self.affinity_conv = _xavier_uniform(sum(hidden), features, rngs)

    @property
    def preprocess(self) -> Preprocess:
        """The backbone's statistics and input size."""
        return self.backbone.preprocess

    def __call__(self, images: Array, dropout: Array | None = None) -> Array:
        """Normalised images (B, H, W, 3) -> pixel features on the grid, (B, h, w, features).

        `dropout`: for training on a CNN, see `vitx.models.convnet.ConvNet`.
        """
        images = images.astype(self.affinity_conv.dtype)
        maps = features_at(self.backbone, images, self.levels, dropout)
        grid = self.grid or max((x.shape[1], x.shape[2]) for x in maps)
        pairs = zip(self.branches, maps, strict=True)
        x = jnp.concatenate([on_grid(branch(x), grid) for branch, x in pairs], axis=-1)
        return jax.nn.elu(linear(x, self.affinity_conv[...]))


def vgg16_affinity_net(
    backbone: VGG16,
    grid: tuple[int, int] | None = None,
    *,
    features: int = PSA_FEATURES,
    rngs: nnx.Rngs,
) -> MultiLevelAffinityNet:
    """AffinityNet on VGG-16 as its authors have it: conv4, conv5 and fc7, whose fc6 is dilated by 4, 448 channels.

    Args:
      backbone: the classifier; stays as it is.
      grid: see `MultiLevelAffinityNet`.
      features: channels of the pixel features, a multiple of 56; fewer than published for a smaller backbone.
      rngs: source of the head's initial weights.
    """
    part = features // 7
    return MultiLevelAffinityNet(
        backbone.dilated(AFFINITY_DILATION),
        AFFINITY_LEVELS,
        grid,
        hidden=(part, 2 * part, 4 * part),
        features=features,
        groups=(8, 16, 32),
        rngs=rngs,
    )
