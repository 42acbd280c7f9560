"""Feature maps at named levels of a backbone, and the part of it that they need.

"stem.1", "stem.2", ... are the stages of a hybrid's stem; "block.1", "block.2", ... are the patch tokens after each
block, on the token grid. A `ConvNet` names its own, such as "conv4" or "layer3".
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from flax import nnx

from vitx.models.convnet import ConvNet
from vitx.models.design import Preprocess
from vitx.models.resnet import Stem
from vitx.models.vit import VisionTransformer
from vitx.ops import Array


class StemAlone(nnx.Module):
    """The stem of a hybrid without the transformer above it."""

    def __init__(self, stem: Stem, preprocess: Preprocess):
        self.stem = stem
        self.preprocess = preprocess


Backbone = VisionTransformer | StemAlone | ConvNet
ABOVE_BLOCKS = (
    "norm",
    "attn_pool",
    "fc_norm",
    "projection",
    "head",
    "head_dist",
    "head_patches",
)


def level_channels(model: Backbone) -> dict[str, int]:
    """The channels of each level that a model has, from the image upwards."""
    if isinstance(model, ConvNet):
        return dict(model.level_channels)
    stages = model.stem.stage_channels if isinstance(model.stem, Stem) else ()
    channels = {f"stem.{number}": count for number, count in enumerate(stages, 1)}
    if isinstance(model, VisionTransformer):
        channels |= {f"block.{number}": model.width for number, _ in enumerate(model.blocks, 1)}
    return channels


def require_levels(model: Backbone, levels: Sequence[str]) -> None:
    """Raises ValueError for no levels, or for one that a model does not have."""
    known = level_channels(model)
    if not levels:
        raise ValueError(f"give at least one level; the model has {', '.join(known)}")
    for level in levels:
        if level not in known:
            raise ValueError(f"the model has no level {level!r}; it has {', '.join(known)}")


def features_at(
    model: Backbone, images: Array, levels: Sequence[str], dropout: Array | None = None
) -> list[Array]:
    """Maps (B, h, w, C) of some levels, in their order; nothing above the deepest of them is computed.

    Args:
      model: the backbone.
      images: normalised, (B, H, W, 3), of the parameters' type.
      levels: names, see `level_channels`.
      dropout: see `ConvNet`; others have none.

    Raises:
      ValueError: for no levels, or one that the model does not have.
    """
    require_levels(model, levels)
    deepest, maps = _deepest(model, levels), {}
    for name, features in _maps(model, images, dropout):
        maps[name] = features
        if name == deepest:
            break
    return [maps[level] for level in levels]


def part_below(model: Backbone, levels: Sequence[str]) -> Backbone:
    """A copy of what `features_at` computes of a model: it has no block or stage above the deepest level, and no head.

    Raises:
      ValueError: see `features_at`.
    """
    require_levels(model, levels)
    deepest = _deepest(model, levels)
    if isinstance(model, ConvNet):
        below = nnx.clone(model.without_head())
        below.keep(deepest)
        below.width = below.level_channels[deepest]
        return below
    kind, number = deepest.split(".")
    part = nnx.clone(model)
    if isinstance(part, VisionTransformer) and kind == "block":
        part.blocks = nnx.List(list(part.blocks)[: int(number)])
        part.num_classes = 0
        part.name_classes()
        part.design = replace(
            part.design,
            final_norm=False,
            pooling="mean",
            pooled_norm=False,
            projection=0,
            head="pooled",
        )
        part.queries = part.design.queries
        for name in ABOVE_BLOCKS:
            delattr(part, name)  # so that the part equals a model made without
            setattr(part, name, None)
        return part
    part.stem.keep(int(number))
    return StemAlone(part.stem, part.preprocess)


def _deepest(model: Backbone, levels: Sequence[str]) -> str:
    return max(levels, key=list(level_channels(model)).index)


def _maps(
    model: Backbone, images: Array, dropout: Array | None = None
) -> Iterator[tuple[str, Array]]:
    """All levels in their order, each computed when it is asked for."""
    if isinstance(model, ConvNet):
        yield from model.maps(images, dropout=dropout)
        return
    features = images
    if isinstance(model.stem, Stem):
        for number, features in enumerate(model.stem.maps(images), 1):
            yield f"stem.{number}", features
    elif model.stem is not None:  # one of your own, without stages
        features = model.stem(images)
    if isinstance(model, StemAlone):
        return
    tokens, rotate = model.embed(features), model.rotation()
    for number, block in enumerate(model.blocks, 1):
        tokens, _ = block(tokens, rotate=rotate)  # all tokens, in the last block too
        patches = tokens[:, model.prefix_tokens :]
        yield f"block.{number}", patches.reshape(len(patches), *model.grid, -1)
