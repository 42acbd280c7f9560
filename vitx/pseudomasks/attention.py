"""Affinities of patches from a model's own attention, without training, and what refines seed maps by them."""

import jax
import jax.numpy as jnp
from jax import lax

from vitx.models.variants import variant
from vitx.models.vit import VisionTransformer
from vitx.ops import Array
from vitx.relevance.rulesets import EXACT

KINDS = ("mctformer", "clip_es")

_LAST_BLOCKS = 8  # of CLIP-ES


def patch_attention(model: VisionTransformer, images: Array) -> list[Array]:
    """Attention between patches of each block, mean over heads, at full float32 precision.

    The last block, too, computes the attention of all patches here, which a prediction leaves out.

    Args:
      model: a `VisionTransformer`.
      images: normalised, (B, H, W, 3).

    Returns:
      (B, N, N) for each block, N the patches in row order: entry (i, j) is how much i attends to j.
    """
    whole, first = variant(model, queries=None), model.prefix_tokens
    with jax.default_matmul_precision("highest"):
        tokens = whole.embed(whole.features(images, EXACT), EXACT)
        _, attentions = whole.encode(tokens, EXACT)
    return [attention[:, :, first:, first:].mean(1) for attention in attentions]


def patch_affinity(model: VisionTransformer, images: Array, kind: str = "clip_es") -> Array:
    """Affinity (B, N, N) of an image's patches from `patch_attention`; `unit_diagonal` makes it one for a walk.

    Args:
      model: a `VisionTransformer`.
      images: normalised, (B, H, W, 3).
      kind: "mctformer", the sum over blocks (Xu et al., CVPR 2022), or "clip_es", the mean of the last eight blocks
        after `sinkhorn`, made symmetric, and squared (Lin et al., CVPR 2023).

    Raises:
      ValueError: for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    attentions = patch_attention(model, images)
    if kind == "mctformer":
        return sum(attentions[1:], start=attentions[0])
    last = attentions[-_LAST_BLOCKS:]
    balanced = sinkhorn(sum(last[1:], start=last[0]) / len(last))
    symmetric = (balanced + balanced.mT) / 2
    return jnp.matmul(symmetric, symmetric, precision="highest")


def sinkhorn(attention: Array, iterations: int = 3) -> Array:
    """Divides columns, then rows, of (..., N, N) by their sums, in turn (Sinkhorn and Knopp, 1967).

    Rows of the result sum to 1, columns nearly so. A row or column of zeros stays.
    """
    for _ in range(iterations):
        attention = _normalised(_normalised(attention, -2), -1)
    return attention


def _normalised(x: Array, axis: int) -> Array:
    sums = x.sum(axis, keepdims=True)
    return x / jnp.where(sums == 0, 1, sums)


def unit_diagonal(affinity: Array) -> Array:
    """Symmetric affinity in [0, 1] with ones on its diagonal, from one (..., N, N) that is not negative.

    The symmetric part, S_ij / sqrt(S_ii S_jj), at most 1. For "clip_es" this is the cosine between rows of the
    matrix that was squared, which never exceeds 1.
    """
    symmetric = (affinity + affinity.mT) / 2
    diagonal = jnp.diagonal(symmetric, axis1=-2, axis2=-1)
    scale = jnp.where(diagonal > 0, 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1)), 0)
    cosine = jnp.minimum(symmetric * (scale[..., :, None] * scale[..., None, :]), 1)
    return jnp.where(jnp.eye(affinity.shape[-1], dtype=bool), 1, cosine)


def spread(affinity: Array, maps: Array) -> Array:
    """Maps (B, K, h, w), each cell replaced by the sum over all cells weighted by its row of (B, h w, h w)."""
    flat = maps.reshape(*maps.shape[:2], -1)  # (B, K, N)
    return jnp.einsum("bij,bkj->bki", affinity, flat, precision="highest").reshape(maps.shape)


def box_mask(maps: Array, threshold: float = 0.4) -> Array:
    """Cells inside the bounding box of a region, bool (..., h, w); the boxes of CLIP-ES (Lin et al., CVPR 2023).

    A region is a set of cells above `threshold` times the maximum of their map that touch by a side or a corner.
    """
    height, width = maps.shape[-2:]
    above = maps > threshold * maps.max((-2, -1), keepdims=True)
    above = above.reshape(-1, height, width)  # (M, h, w)
    rows, columns = jnp.arange(height, dtype=maps.dtype), jnp.arange(width, dtype=maps.dtype)
    places = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"))  # (2, h, w)
    ends = jnp.concatenate([-places, places])[:, None]  # (4, 1, h, w): top, left, bottom, right

    def grow(state: tuple[Array, Array]) -> tuple[Array, Array]:
        """Each cell of a region takes the farthest ends that its neighbours know of."""
        before, _ = state
        after = lax.reduce_window(before, -jnp.inf, lax.max, (1, 1, 3, 3), (1, 1, 1, 1), "SAME")
        after = jnp.where(above, after, -jnp.inf)
        return after, (after != before).any()

    start = jnp.where(above, ends, -jnp.inf)  # (4, M, h, w)
    found, _ = lax.while_loop(lambda state: state[1], grow, (start, jnp.array(True)))
    top, left, bottom, right = found.reshape(
        4, len(above), -1, 1
    )  # (M, N, 1), of each cell's region
    rows, columns = rows[None, None], columns[None, None]
    in_rows = (rows >= -top) & (rows <= bottom)  # (M, N, h)
    in_columns = (columns >= -left) & (columns <= right)  # (M, N, w)
    inside = jnp.einsum("mnh,mnw->mhw", in_rows.astype(maps.dtype), in_columns.astype(maps.dtype))
    return (inside > 0).reshape(maps.shape)
