"""Convolutional networks whose linear head reads the mean of the last feature map (Zhou et al., CVPR 2016).

They take images of any size. The cells of the last feature map are their tokens, and they have no blocks, so that they
are explained as transformers are, see `vitx.explainable.Explainable`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from vitx.models.design import Preprocess
from vitx.models.layers import Linear
from vitx.models.model import Model
from vitx.ops import PLAIN, Array, Ops


class ConvNet(Model):
    """What such networks share; a network is a subclass with `level_channels`, `maps` and `keep`.

    Args:
      width: channels of the last feature map.
      num_classes: outputs of the head; 0 for none: then the output is the mean of the last feature map.
      preprocess: statistics, and the size of the images where nothing else gives it.
      head_bias: whether the head has a bias.
      rngs: source of the initial weights.
    """

    stride: int  # pixels of the image along a cell of the last feature map
    any_size = True
    prefix_tokens = 0
    queries: int | None = None
    blocks: Any = ()
    stem: Any = None

    def __init__(
        self,
        width: int,
        num_classes: int,
        preprocess: Preprocess,
        head_bias: bool,
        *,
        rngs: nnx.Rngs,
    ):
        self.width, self.num_classes, self.preprocess = width, num_classes, preprocess
        self.name_classes()
        self.assumed = ()
        self.head: Any = Linear(width, num_classes, head_bias, rngs=rngs) if num_classes else None

    @property
    def level_channels(self) -> Mapping[str, int]:
        """The channels of each feature map by its name, from the image upwards; the last is `features`."""
        raise NotImplementedError

    def maps(
        self, images: Array, ops: Ops = PLAIN, dropout: Array | None = None
    ) -> Iterator[tuple[str, Array]]:
        """Images (B, H, W, 3) -> each level's name and map (B, h, w, C), computed when it is asked for."""
        raise NotImplementedError

    def keep(self, level: str) -> None:
        """Drops what is above a level."""
        raise NotImplementedError

    @property
    def dtype(self) -> Any:
        """Type of the parameters."""
        return jax.tree.leaves(nnx.state(self, nnx.Param))[0].dtype

    @property
    def grid(self) -> tuple[int, int]:
        """Cells of the last feature map of images of `preprocess.size`."""
        height, width = self.preprocess.size
        return math.ceil(height / self.stride), math.ceil(width / self.stride)

    def at_size(self, size: tuple[int, int]) -> Self:
        """The model with the same weights and another `preprocess.size`."""
        other = nnx.merge(*nnx.split(self))
        other.preprocess = replace(self.preprocess, size=size)
        return other

    def attention_shapes(self) -> list[tuple[int, int, int]]:
        """There is no attention."""
        return []

    def features(self, images: Array, ops: Ops = PLAIN, dropout: Array | None = None) -> Array:
        """Images (B, H, W, 3) -> the last feature map (B, h, w, C)."""
        *_, (_, features) = self.maps(images.astype(self.dtype), ops, dropout)
        return features

    def embed(self, features: Array, ops: Ops = PLAIN) -> Array:
        """The last feature map (B, h, w, C) -> its cells in row order (B, N, C)."""
        return features.reshape(len(features), -1, self.width)

    def rotation(self) -> None:
        """There are no positions."""

    def encode(
        self,
        tokens: Array,
        ops: Ops = PLAIN,
        probes: Sequence[Array | None] | None = None,
        lean: bool = False,
    ) -> tuple[Array, list[Array]]:
        """The cells as they are, and no attention."""
        return tokens, []

    def below_last(self, tokens: Array, ops: Ops = PLAIN) -> Array:
        """The cells as they are."""
        return tokens

    def pooling_weights(self, tokens: Array) -> Array:
        """1 / N for each of N cells, (B, N)."""
        return jnp.full(tokens.shape[:2], 1 / tokens.shape[1], tokens.dtype)

    def pooled(self, tokens: Array, ops: Ops = PLAIN) -> Array:
        """Cells (B, N, C) -> their mean (B, C)."""
        return ops.mean_tokens(tokens)[:, 0]

    def classify(self, tokens: Array, ops: Ops = PLAIN) -> Array:
        """Cells (B, N, C) -> logits (B, classes), or `pooled` for a model without a head."""
        pooled = self.pooled(tokens, ops)
        return pooled if self.head is None else self.head(pooled, ops)

    @property
    def linear_head(self) -> bool:
        """Always; see `class_map`."""
        return True

    def class_map(self, tokens: Array, ops: Ops = PLAIN) -> Array:
        """Cells (B, N, C) -> each one's share of each output, (B, N, classes)."""
        return tokens if self.head is None else ops.linear(tokens, self.head.kernel[...])

    def without_head(self) -> Self:
        """The model with the same weights whose output is the pooled one."""
        other = nnx.merge(*nnx.split(self))
        other.num_classes = 0
        other.name_classes()
        other.drop("head")
        return other

    def drop(self, name: str) -> None:
        """Sets a part to None, so that the model equals one that was made without."""
        delattr(self, name)
        setattr(self, name, None)

    def __call__(self, images: Array, ops: Ops = PLAIN, dropout: Array | None = None) -> Array:
        """Normalised images (B, H, W, 3) -> the output (B, C), see `classify`.

        Args:
          images: of any size.
          ops: the operations.
          dropout: for training, a seed for each image, ints (B,), see `drop_channels`; None for no dropout.
        """
        return self.classify(self.embed(self.features(images, ops, dropout), ops), ops)


def drop_channels(x: Array, seeds: Array | None, layer: int) -> Array:
    """Sets each channel of a map (B, H, W, C) to 0 with probability 1/2, else doubles it (Tompson et al., CVPR 2015).

    Args:
      x: the map.
      seeds: ints (B,), so that what an image loses depends on its own seed alone; None for x as it is.
      layer: number of the layer: each draws other channels.
    """
    if seeds is None:
        return x

    def draw(seed: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(seed), layer)
        return jax.random.bernoulli(key, 0.5, (1, 1, x.shape[-1]))

    return x * (2 * jax.vmap(draw)(seeds).astype(x.dtype))
