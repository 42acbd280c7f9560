"""Fine-tuning a pretrained backbone: its layers by number, their learning rates, and logits from some of the patches.

Layer 0 is the embedding: stem, patch embedding, prefix tokens, positions, and a norm before the blocks. Layer N is
block N, from 1 as in `vitx.models.levels`. The layer after the last block has all that is above: norms, pooling, heads.
A CNN's layers are its levels in their order.
"""

from collections.abc import Collection, Sequence
from typing import Any

import jax.numpy as jnp

from vitx.models.levels import ABOVE_BLOCKS
from vitx.models.vit import VisionTransformer
from vitx.ops import Array


def layer_of(path: Sequence[Any], depth: int, levels: Sequence[str] = ()) -> int:
    """The layer of a parameter, by its path in a model of `depth` blocks, or in a CNN of these `levels`, its depth."""
    if path[0] == ("stages" if levels else "blocks"):
        return int(path[1]) + 1
    if path[0] in levels:
        return levels.index(path[0]) + 1
    return depth + 1 if path[0] in (("head",) if levels else ABOVE_BLOCKS) else 0


def first_trained(trainable: str, depth: int, levels: Sequence[str] = ()) -> int:
    """The lowest layer that is trained: "all", "block.N" and all above it, or "head", all above the last block.

    Of a CNN also the name of one of its `levels`.
    """
    if trainable.startswith("block."):
        return int(trainable.removeprefix("block."))
    if trainable in levels:
        return levels.index(trainable) + 1
    return {"all": 0, "head": depth + 1}[trainable]


def group_factor(
    path: Sequence[Any], new: Collection[str], new_rate: float, bias_rate: float
) -> float:
    """The factor of a parameter's learning rate by its group, as Caffe's models have it.

    `new_rate` for parameters with one of the names `new` in their path, `bias_rate` for biases, their product for both.
    """
    factor = new_rate if any(name in new for name in path) else 1.0
    return factor * bias_rate if path[-1] == "bias" else factor


def rate_factor(
    path: Sequence[Any], depth: int, first: int, decay: float, levels: Sequence[str] = ()
) -> float:
    """The factor of a parameter's learning rate: decay^(depth + 1 - layer), and 0 in layers below `first`.

    That is 1 above the blocks, `decay` in the last block, decay^depth in the first, and decay^(depth + 1) in the
    embedding, as in BEiT (Bao et al., ICLR 2022), after ELECTRA (Clark et al., ICLR 2020).
    """
    layer = layer_of(path, depth, levels)
    return decay ** (depth + 1 - layer) if layer >= first else 0.0


def kept_count(patches: int, dropout: float) -> int:
    """How many of an image's patches token dropout keeps, at least one."""
    return max(1, round(patches * (1 - dropout)))


def logits_from_patches(model: VisionTransformer, images: Array, patches: Array) -> Array:
    """Logits (B, C) of a model that sees only some patches of each image, and all of its prefix tokens.

    Each patch keeps its position. The blocks' cost falls with the number of tokens: PatchDropout (Liu et al., WACV
    2023), and FLIP (Li et al., CVPR 2023).

    Args:
      model: a `VisionTransformer`.
      images: normalised, (B, H, W, 3).
      patches: ints (B, K), the places in row order of the K patches that each image keeps.
    """
    tokens, prefix = model.embed(model.features(images)), model.prefix_tokens  # (B, P + N, D)
    first = jnp.broadcast_to(jnp.arange(prefix, dtype=patches.dtype), (len(patches), prefix))
    places = jnp.concatenate([first, patches + prefix], axis=1)  # (B, P + K)
    tokens = jnp.take_along_axis(tokens, places[..., None], axis=1)
    tokens, _ = model.encode(tokens, places=places)
    return model.classify(tokens)
