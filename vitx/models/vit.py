"""The Vision Transformer (Dosovitskiy et al., ICLR 2021), written once over `Ops`: read it top to bottom.

Under `vitx.ops.PLAIN` it predicts and trains; under a rule set its `jax.vjp` is a relevance pass. Activations
may be arrays or pairs of them: only operations of `Ops`, reshapes, transposes and slices touch them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vitx.models.checks import checked, image_size, three_numbers, three_positive
from vitx.models.layers import LayerNorm, Linear
from vitx.ops import PLAIN, Array, Ops


@dataclass(frozen=True)
class Preprocess:
    """Input statistics of a model's weights: input = (pixels in [0, 1] - mean) / std at `size`.

    Lists, arrays and numbers of NumPy or JAX become tuples of Python's numbers, so that equal
    values compare equal, hash, and can be saved.

    Args:
      mean: of each colour channel (red, green, blue).
      std: standard deviation of each channel, above 0.
      size: (H, W) of the input in pixels, or one side for both.

    Raises:
      ValueError: for a value of another shape, type or range.
    """

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    size: tuple[int, int] = (224, 224)

    def __post_init__(self) -> None:
        checks = {"mean": three_numbers, "std": three_positive, "size": image_size}
        for name, check in checks.items():
            value = checked(name, getattr(self, name), check)
            object.__setattr__(self, name, value)  # a frozen dataclass refuses to assign


class Mlp(nnx.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs):
        self.fc1 = Linear(width, hidden, rngs=rngs)
        self.fc2 = Linear(hidden, width, rngs=rngs)

    def __call__(self, x: Array, ops: Ops = PLAIN) -> Array:
        """X (B, N, D) -> (B, N, D)."""
        return self.fc2(ops.gelu(self.fc1(x, ops)), ops)


class Attention(nnx.Module):
    """Multi-head self-attention with one joint projection to queries, keys and values."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.qkv = Linear(width, 3 * width, rngs=rngs)
        self.proj = Linear(width, width, rngs=rngs)
        self.heads = heads

    def __call__(
        self, x: Array, ops: Ops = PLAIN, probe: Array | None = None, queries: int | None = None
    ) -> tuple[Array, Array]:
        """X (B, N, D) -> output (B, Q, D) of the first `queries` tokens, and attention (B, heads, Q, N)."""
        width = x.shape[-1]
        query = self._split(self.qkv(x[:, :queries], ops, slice(0, width)))  # (B, heads, Q, d)
        key = self._split(self.qkv(x, ops, slice(width, 2 * width)))  # (B, heads, N, d)
        value = self._split(self.qkv(x, ops, slice(2 * width, None)))  # (B, heads, N, d)

        scores = ops.attention_scores(query, key)  # (B, heads, Q, N)
        logits = ops.scale(scores, factor=(width // self.heads) ** -0.5)
        attention = ops.probe(ops.softmax(logits), probe)
        mixed = ops.apply_attention(attention, value).transpose(0, 2, 1, 3)  # (B, Q, heads, d)
        return self.proj(mixed.reshape(*mixed.shape[:2], width), ops), attention

    def _split(self, x: Array) -> Array:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(0, 2, 1, 3)


class Block(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, hidden: int, epsilon: float, *, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(width, epsilon)
        self.attn = Attention(width, heads, rngs=rngs)
        self.norm2 = LayerNorm(width, epsilon)
        self.mlp = Mlp(width, hidden, rngs=rngs)

    def __call__(
        self, x: Array, ops: Ops = PLAIN, probe: Array | None = None, queries: int | None = None
    ) -> tuple[Array, Array]:
        """X (B, N, D) -> the first `queries` tokens (B, Q, D), and attention (B, heads, Q, N).

        `probe`: zeros added to the attention matrix, see `vitx.ops.probe`; None adds nothing.
        """
        skip, branch = ops.clone(x)
        mixed, attention = self.attn(self.norm1(branch, ops), ops, probe, queries)
        x = ops.add(skip[:, :queries], mixed)
        skip, branch = ops.clone(x)
        return ops.add(skip, self.mlp(self.norm2(branch, ops), ops)), attention


class VisionTransformer(nnx.Module):
    """ViT with a class token; a hybrid where `stem` turns images into a feature map that is embedded in patches.

    Its tokens and parts: `vitx.ops.Explainable`.

    Args:
      width, depth, heads, hidden: sizes of the transformer; hidden is the MLP's.
      patch: side of a patch, in pixels, or in the stem's feature cells.
      num_classes: outputs of the head.
      preprocess: statistics and input size, which fixes the token grid.
      stem: module with attributes `channels` and `stride`, from images to features, or None.
      norm_eps, final_norm_eps: LayerNorm's epsilon in the blocks and at the end (default: the same).

    Raises:
      ValueError: where the width is no multiple of the heads, or the image size no multiple of the patch.
    """

    prefix_tokens = 1  # the class token
    queries: int | None = (
        1  # tokens that the last block computes, since the head reads no others; None: all
    )

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        patch: int,
        num_classes: int,
        preprocess: Preprocess,
        stem: Any = None,
        norm_eps: float = 1e-6,
        final_norm_eps: float | None = None,
        rngs: nnx.Rngs,
    ):
        cell = patch * (stem.stride if stem else 1)
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of the number of heads, {heads}")
        if any(side % cell or side < cell for side in preprocess.size):
            raise ValueError(
                f"image size {preprocess.size} is not a multiple of the patch, {cell} pixels"
            )
        self.preprocess, self.num_classes = preprocess, num_classes
        self.width, self.patch = width, patch
        self.grid = (preprocess.size[0] // cell, preprocess.size[1] // cell)
        self.stem = stem
        self.patch_embed = Linear((stem.channels if stem else 3) * patch**2, width, rngs=rngs)
        self.cls_token = nnx.Param(0.02 * jax.random.normal(rngs(), (1, 1, width)))
        tokens = self.prefix_tokens + math.prod(self.grid)
        self.pos_embed = nnx.Param(0.02 * jax.random.normal(rngs(), (1, tokens, width)))
        self.blocks = nnx.List(
            [Block(width, heads, hidden, norm_eps, rngs=rngs) for _ in range(depth)]
        )
        self.norm = LayerNorm(width, norm_eps if final_norm_eps is None else final_norm_eps)
        self.head = Linear(width, num_classes, rngs=rngs)

    def attention_shapes(self) -> list[tuple[int, int, int]]:
        """(heads, queries, tokens) of each block's attention."""
        tokens = self.prefix_tokens + math.prod(self.grid)
        shapes = [(block.attn.heads, tokens, tokens) for block in self.blocks]
        return [*shapes[:-1], (shapes[-1][0], self.queries or tokens, tokens)]

    def features(self, images: Array, ops: Ops = PLAIN) -> Array:
        """Images (B, H, W, 3), in the parameters' type, or the stem's map of them (B, h, w, C)."""
        images = images.astype(self.head.bias.dtype)
        return images if self.stem is None else self.stem(images, ops)

    def embed(self, features: Array, ops: Ops = PLAIN) -> Array:
        """Features (B, h, w, C) -> tokens (B, P + N, D): prefix tokens, patches in row order, positions added."""
        (rows, columns), batch, p = self.grid, len(features), self.patch
        patches = features.reshape(batch, rows, p, columns, p, -1).transpose(0, 1, 3, 2, 4, 5)
        patches = patches.reshape(batch, rows * columns, -1)  # (B, N, p p C)
        product = ops.pixels if self.stem is None else ops.linear
        tokens = product(patches, self.patch_embed.kernel[...])
        tokens = ops.bias(tokens, self.patch_embed.bias[...])  # (B, N, D)
        prefix = self.prefix().astype(tokens.dtype)
        prefix = jnp.broadcast_to(prefix, (batch, self.prefix_tokens, self.width))
        tokens = jnp.concatenate([prefix, tokens], axis=1)  # (B, P + N, D)
        positions = jnp.broadcast_to(self.pos_embed[...], tokens.shape).astype(tokens.dtype)
        return ops.add(tokens, positions)

    def prefix(self) -> Array:
        """Prefix tokens (1, P, D): the class token."""
        return self.cls_token[...]

    def encode(
        self,
        tokens: Array,
        ops: Ops = PLAIN,
        probes: Sequence[Array | None] | None = None,
        lean: bool = False,
    ) -> tuple[Array, list[Array]]:
        """Tokens (B, N, D) -> the tokens that `classify` reads (B, Q, D), and attention (B, heads, Q, N) of each block.

        Q is N, except in the last block, which computes the first `queries` tokens alone. `probes` has one entry a
        block. With `lean` a backward pass takes little memory, and the last block's attention alone is returned.
        """
        *below, last = self.blocks
        *probes_below, last_probe = [None] * len(self.blocks) if probes is None else probes
        attentions = []
        if lean:
            tokens = scan_blocks(below, tokens, ops, probes_below)
        else:
            for block, probe in zip(below, probes_below, strict=True):
                tokens, attention = block(tokens, ops, probe)
                attentions.append(attention)
        tokens, attention = last(tokens, ops, last_probe, self.queries)
        return tokens, [*attentions, attention]

    def pooled_row(self, attention: Array) -> Array:
        """The class token's row: (..., Q, N) -> (..., N)."""
        return attention[..., 0, :]

    def classify(self, tokens: Array, ops: Ops = PLAIN) -> Array:
        """Tokens (B, >= 1, D) -> logits (B, classes), from the class token."""
        return self.head(self.norm(tokens[:, :1], ops), ops)[:, 0]

    def __call__(
        self, images: Array, ops: Ops = PLAIN, probes: Sequence[Array | None] | None = None
    ) -> Array:
        """Normalised images (B, H, W, 3) -> logits (B, classes)."""
        tokens, _ = self.encode(self.embed(self.features(images, ops), ops), ops, probes)
        return self.classify(tokens, ops)


def scan_blocks(
    blocks: Sequence[nnx.Module], tokens: Array, ops: Ops, probes: Sequence[Array | None]
) -> Array:
    """The tokens (B, N, D) above blocks of one structure; a backward pass keeps the blocks' inputs alone.

    It computes the rest again. The blocks run in a scan over their stacked weights, because a compiler may recompute
    unrolled ones too early. `probes` has an entry per block; entries of None must come first.
    """
    if not blocks:
        return tokens
    graph, _ = nnx.split(blocks[0])

    @jax.checkpoint
    def step(x: Array, scanned: tuple[nnx.State, Array | None]) -> tuple[Array, None]:
        state, probe = scanned
        return nnx.merge(graph, state)(x, ops, probe)[0], None

    probed = [probe for probe in probes if probe is not None]
    start = len(blocks) - len(probed)
    if any(probe is None for probe in probes[start:]):
        raise ValueError(
            "lean blocks take probes of the last blocks only: put entries of None first"
        )
    for part, zeros in ((blocks[:start], None), (blocks[start:], probed)):
        if part:
            states = [nnx.split(block)[1] for block in part]
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
            scanned = (stacked, None if zeros is None else jnp.stack(zeros))
            tokens, _ = jax.lax.scan(step, tokens, scanned)
    return tokens
