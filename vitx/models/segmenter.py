"""A segmentation network: a classifier's backbone, and a small head that reads several of its levels.

The head follows the all-MLP one of SegFormer (Xie et al., NeurIPS 2021), with GroupNorm and GELU. A 1x1 convolution
brings each level to the same channels, all are resized to the finest level's grid and joined, and a second 1x1
convolution gives the classes. Two layers, since a linear head (DINOv2, Oquab et al., TMLR 2024) only adds up what
each level says alone: it cannot say "this class, from a block, up to this edge, from the stem". No larger decoder, as
SETR's (Zheng et al., CVPR 2021): the blocks already see the whole image, and pseudo-masks are few.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from vitx.models.affinitynet import on_grid
from vitx.models.design import Preprocess
from vitx.models.layers import GroupNorm, Linear
from vitx.models.levels import Backbone, features_at, level_channels, part_below
from vitx.models.variants import at_size, cell, variant
from vitx.ops import Array


class Branch(nnx.Module):
    """One level's part of the joined features: 1x1 convolution without bias, GroupNorm."""

    def __init__(self, channels: int, hidden: int, groups: int, *, rngs: nnx.Rngs):
        self.linear = Linear(channels, hidden, bias=False, rngs=rngs)
        self.norm = GroupNorm(hidden, groups=groups)

    def __call__(self, x: Array) -> Array:
        """X (B, h, w, channels) -> (B, h, w, hidden)."""
        return self.norm(self.linear(x))


class Segmenter(nnx.Module):
    """Logits of each class at each pixel: a branch for each level, bilinear resize, sum, GELU, 1x1 convolution.

    It holds only the part of the backbone that its levels need. The sum over levels is one convolution of all of them
    side by side, as in SegFormer, with a norm for each, since a ViT's tokens and a stem's features differ in scale.

    Args:
      backbone: a Vision Transformer with a stem or without, or a CNN; stays as it is.
      levels: names of the backbone's levels, see `vitx.models.levels`.
      num_classes: outputs at each pixel, background included.
      hidden: channels of the head, a multiple of `groups`.
      groups: of the branches' GroupNorms.
      rngs: source of the initial weights.

    Raises:
      ValueError: for no levels, or one that the backbone does not have.
    """

    def __init__(
        self,
        backbone: Backbone,
        levels: Sequence[str],
        num_classes: int,
        *,
        hidden: int = 256,
        groups: int = 32,
        rngs: nnx.Rngs,
    ):
        self.backbone = part_below(backbone, levels)
        self.levels = tuple(levels)
        channels = level_channels(self.backbone)
        self.branches = nnx.List(
            [Branch(channels[level], hidden, groups, rngs=rngs) for level in self.levels]
        )
        self.head = Linear(hidden, num_classes, rngs=rngs)

    @property
    def preprocess(self) -> Preprocess:
        """The backbone's statistics and input size."""
        return self.backbone.preprocess

    @property
    def num_classes(self) -> int:
        """Outputs at each pixel, background included."""
        return self.head.kernel.shape[-1]

    def __call__(self, images: Array) -> Array:
        """Normalised images (B, H, W, 3) -> logits at their size, (B, H, W, classes)."""
        images = images.astype(self.head.kernel.dtype)
        maps = features_at(self.backbone, images, self.levels)
        _, height, width, _ = max((x.shape for x in maps), key=lambda shape: shape[1])
        pairs = zip(self.branches, maps, strict=True)
        resized = [on_grid(branch(x), (height, width)) for branch, x in pairs]
        joined = functools.reduce(jnp.add, resized)  # (B, h, w, hidden)
        logits = self.head(jax.nn.gelu(joined, approximate=False))
        return on_grid(logits, (images.shape[1], images.shape[2]))


def segment(
    model: Segmenter, images: ArrayLike, scales: Sequence[float] = (1.0,), flip: bool = False
) -> Array:
    """Log-probabilities of the classes at each pixel of some images; nothing but the images is used.

    `segment(model, images).argmax(-1)` are the labels, 0 for background. Runs under `jit`, and may be called inside
    another.

    Args:
      model: a `Segmenter`, such as `vitx.load` makes of the file that stage `segmenter` writes.
      images: normalised, (B, H, W, 3), at `model.preprocess.size`; or at another size, whose sides are multiples of
        a token's cell; for a CNN of any size.
      scales: factors of the size at which the model sees the images, each above 0; sides become multiples of the cell.
      flip: whether it sees them mirrored, too.

    Returns:
      (B, H, W, classes), float32 or wider: logits whose exponentials sum to 1 over the classes. They are the logarithm
      of the mean of the probabilities of all views: scales, and mirror images.

    Raises:
      ValueError: for a model of another kind, images of another shape or a size that does not fit, or scales that are
        none or not positive.
    """
    images = jnp.asarray(images)
    if not isinstance(model, Segmenter):
        raise ValueError(f"a {type(model).__name__} does not segment: give a Segmenter's weights")
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must be (B, H, W, 3), not {images.shape}")
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise ValueError(f"scales must be at least one number above 0, not {scales!r}")
    at_input_size(model, (images.shape[1], images.shape[2]))  # raises where the size does not fit
    return _segment(model, images, tuple(map(float, scales)), bool(flip))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _segment(model: Segmenter, images: Array, scales: tuple[float, ...], flip: bool) -> Array:
    height, width = images.shape[1:3]
    side = cell(model.backbone)
    views = []
    for scale in scales:
        size, scaled = (height, width), images
        if scale != 1:  # at 1 a CNN sees images of any size as they are
            size = (_multiple(height * scale, side), _multiple(width * scale, side))
            scaled = jax.image.resize(images, (len(images), *size, 3), "bilinear")
        sized = at_input_size(model, size)
        views.append(_log_probabilities(sized, scaled, (height, width)))
        if flip:
            mirrored = _log_probabilities(sized, scaled[:, :, ::-1], (height, width))
            views.append(mirrored[:, :, ::-1])
    return jax.nn.logsumexp(jnp.stack(views), axis=0) - math.log(len(views))


def _multiple(length: float, side: int) -> int:
    return max(1, round(length / side)) * side


def _log_probabilities(model: Segmenter, images: Array, size: tuple[int, int]) -> Array:
    logits = on_grid(model(images), size)
    half = jnp.finfo(logits.dtype).bits < 32
    return jax.nn.log_softmax(logits.astype(jnp.float32) if half else logits)


def at_input_size(model: Segmenter, size: tuple[int, int]) -> Segmenter:
    """The network for images of another size (H, W), see `vitx.models.variants.at_size`; weights are shared."""
    return variant(model, backbone=at_size(model.backbone, size))
