"""Patch tokens of high norm, in which a model keeps what belongs to no place (Darcet et al., ICLR 2024).

Large models without registers turn a few patches of plain background into such tokens. What reaches one comes from all
over the image, so that its value in a map says little about its patch.
"""

import jax
import jax.numpy as jnp

from vitx.explainable import Explainable
from vitx.ops import Array
from vitx.relevance.rulesets import EXACT

FACTOR = 10.0
_LEAST_SPREAD = 0.1  # of the median: where all norms are nearly one, none of them is high


@jax.jit
def patch_norms(model: Explainable, images: Array) -> Array:
    """Norms (B, h, w) of the patch tokens that enter a model's last block, of normalised images (B, H, W, 3).

    Above it, patches that the output does not read are not computed.
    """
    with jax.default_matmul_precision("highest"):
        tokens = model.embed(model.features(images, EXACT), EXACT)
        tokens = model.below_last(tokens, EXACT)[:, model.prefix_tokens :]
        return jnp.linalg.norm(tokens, axis=-1).reshape(-1, *model.grid)


def high_norm_tokens(norms: Array, factor: float = FACTOR) -> Array:
    """Which patch tokens are outliers among their image's own, bool (B, h, w).

    A norm is high above median + factor * max(MAD, median / 10), with the median absolute deviation MAD over the image.
    Outliers hardly move either median while they are few, and the rule does not depend on the scale of the norms, which
    differs between models and blocks: the paper's cut-off of 150 is for DINOv2-g alone. With 10, a norm is more
    than 6 standard deviations above the others where they are normally distributed, and at least twice the median.

    Args:
      norms: (B, h, w), as of `patch_norms`.
      factor: above 0; the smaller, the more tokens.
    """
    median = jnp.median(norms, (-2, -1), keepdims=True)
    spread = jnp.median(jnp.abs(norms - median), (-2, -1), keepdims=True)
    return norms > median + factor * jnp.maximum(spread, _LEAST_SPREAD * median)


@jax.jit
def neighbours_median(maps: Array, mask: Array) -> Array:
    """Maps in which each masked token has the median of its unmasked neighbours, 8 at most.

    Where all neighbours are masked, it has the median of all unmasked tokens; a map that is masked as a whole stays.

    Args:
      maps: (B, h, w) or (B, K, h, w).
      mask: bool, (B, h, w).
    """
    rows, columns = mask.shape[-2:]
    mask = jnp.broadcast_to(mask if maps.ndim == 3 else mask[:, None], maps.shape)
    seen = jnp.where(mask, jnp.nan, maps)
    sides = [(0, 0)] * (maps.ndim - 2) + [(1, 1), (1, 1)]
    padded = jnp.pad(seen, sides, constant_values=jnp.nan)
    shifted = [
        padded[..., r : r + rows, c : c + columns]
        for r in range(3)
        for c in range(3)
        if (r, c) != (1, 1)
    ]
    near = jnp.nanmedian(jnp.stack(shifted), 0)
    anywhere = jnp.nanmedian(seen, (-2, -1), keepdims=True)
    median = jnp.where(jnp.isnan(near), anywhere, near)
    return jnp.where(mask & ~jnp.isnan(median), median, maps)


def smoothed(model: Explainable, images: Array, maps: Array) -> Array:
    """Maps of images with `neighbours_median` at the tokens of high norm.

    Raises:
      ValueError: for maps of pixels.
    """
    if maps.shape[-2:] != tuple(model.grid):
        raise ValueError(
            f'high_norm="median" is for maps on the token grid, not of pixels {maps.shape[-2:]}'
        )
    return neighbours_median(maps, high_norm_tokens(patch_norms(model, images)))
