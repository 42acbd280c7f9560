"""AffinityNet (Ahn & Kwak, CVPR 2018): a hybrid's stem, and a head whose features separate the objects' pixels."""

import math
from typing import Any

import jax
from flax import nnx

from vitx.models.layers import GroupNorm
from vitx.ops import Array, linear


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
        kaiming = math.sqrt(2 / stem.channels)
        self.feat_conv = nnx.Param(kaiming * jax.random.normal(rngs(), (stem.channels, hidden)))
        self.gn = GroupNorm(hidden, groups=groups)
        bound = 4 * math.sqrt(6 / (hidden + features))  # Xavier uniform with gain 4
        self.affinity_conv = nnx.Param(
            jax.random.uniform(rngs(), (hidden, features), minval=-bound, maxval=bound)
        )

    def head(self, features: Array) -> Array:
        """Stem features (B, h, w, C) -> pixel features on the grid, (B, h, w, features)."""
        shape = (len(features), *self.grid, features.shape[-1])
        x = jax.image.resize(features, shape, "bilinear", antialias=False)
        x = jax.nn.elu(self.gn(linear(x, self.feat_conv[...])))
        return jax.nn.elu(linear(x, self.affinity_conv[...]))

    def __call__(self, images: Array) -> Array:
        """Normalised images (B, H, W, 3) -> pixel features on the grid, (B, h, w, features)."""
        return self.head(self.stem(images.astype(self.feat_conv.dtype)))
