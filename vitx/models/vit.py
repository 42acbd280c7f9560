"""The Vision Transformer (Dosovitskiy et al., ICLR 2021), written once over `Ops`: read it top to bottom.

Under `vitx.ops.PLAIN` it predicts and trains; under a rule set its `jax.vjp` is a relevance pass. Activations
may be arrays or pairs of them: only operations of `Ops`, reshapes, transposes and slices touch them.
"""

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
    """What a model's weights expect: input = (pixels in [0, 1] - mean) / std at `size`.

    Lists, arrays and numbers of NumPy or JAX become tuples of Python's numbers, so that equal
    values compare equal, hash, and can be saved.

    Args:
      mean: of each colour channel (red, green, blue), pixels being in [0, 1].
      std: standard deviation of each channel, above 0.
      size: (H, W) of the input in pixels, or one side for both.

    Raises:
      ValueError: for values of another number, type or range.
    """

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    size: tuple[int, int] = (224, 224)

    def __post_init__(self) -> None:
        checks = {"mean": three_numbers, "std": three_positive, "size": image_size}
        for name, check in checks.items():
            # The dataclass is frozen, and `__setattr__` refuses.
            object.__setattr__(self, name, checked(name, getattr(self, name), check))


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

        logits = ops.scale(
            ops.attention_scores(query, key), factor=(width // self.heads) ** -0.5
        )  # (B, heads, Q, N)
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
    """ViT, or a hybrid when `stem` turns images into a feature map that is embedded in patches of `patch`.

    Args:
      width, depth, heads, hidden: sizes of the transformer; hidden is the MLP's.
      patch: side of a patch, in pixels, or in the stem's feature cells.
      num_classes: outputs of the head.
      preprocess: statistics and input size, which fixes the token grid.
      stem: module with attributes `channels` and `stride`, from images to features, or None.
      norm_eps, final_norm_eps: LayerNorm's epsilon in the blocks and at the end (default: the same).

    Raises:
      ValueError: where the width is no multiple of the heads, or the image size none of the patch.
    """

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
        self.preprocess = preprocess
        self.patch = patch
        self.grid = (preprocess.size[0] // cell, preprocess.size[1] // cell)
        self.stem = stem
        self.patch_embed = Linear((stem.channels if stem else 3) * patch**2, width, rngs=rngs)
        self.cls_token = nnx.Param(0.02 * jax.random.normal(rngs(), (1, 1, width)))
        tokens = 1 + self.grid[0] * self.grid[1]
        self.pos_embed = nnx.Param(0.02 * jax.random.normal(rngs(), (1, tokens, width)))
        self.blocks = nnx.List(
            [Block(width, heads, hidden, norm_eps, rngs=rngs) for _ in range(depth)]
        )
        self.norm = LayerNorm(width, norm_eps if final_norm_eps is None else final_norm_eps)
        self.head = Linear(width, num_classes, rngs=rngs)

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return self.head.bias.shape[0]

    def features(self, images: Array, ops: Ops = PLAIN) -> Array:
        """What the patch embedding reads: images (B, H, W, 3) themselves, or the stem's map (B, h, w, C).

        Images take the parameters' type here.
        """
        images = images.astype(self.head.bias.dtype)
        return images if self.stem is None else self.stem(images, ops)

    def embed(self, features: Array, ops: Ops = PLAIN) -> Array:
        """Features (B, h, w, C) -> tokens (B, 1 + N, D): class token, patches in row order, positions added."""
        batch, p = len(features), self.patch
        patches = features.reshape(batch, self.grid[0], p, self.grid[1], p, -1)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(
            batch, self.grid[0] * self.grid[1], -1
        )
        product = ops.pixels if self.stem is None else ops.linear
        tokens = ops.bias(
            product(patches, self.patch_embed.kernel[...]), self.patch_embed.bias[...]
        )
        cls = jnp.broadcast_to(self.cls_token[...], (batch, 1, tokens.shape[-1])).astype(
            tokens.dtype
        )
        tokens = jnp.concatenate([cls, tokens], axis=1)  # (B, 1 + N, D)
        return ops.add(
            tokens, jnp.broadcast_to(self.pos_embed[...], tokens.shape).astype(tokens.dtype)
        )

    def encode(
        self, tokens: Array, ops: Ops = PLAIN, probes: Sequence[Array | None] | None = None
    ) -> tuple[Array, list[Array]]:
        """Tokens (B, N, D) -> the class token (B, 1, D) and each block's attention (B, heads, Q, N).

        Q is N, but 1 in the last block, of which only the class token is read. `probes` has one entry a block.
        """
        attentions = []
        last = len(self.blocks) - 1
        for index, block in enumerate(self.blocks):
            probe = None if probes is None else probes[index]
            tokens, attention = block(tokens, ops, probe, queries=1 if index == last else None)
            attentions.append(attention)
        return tokens, attentions

    def encode_lean(
        self, tokens: Array, ops: Ops = PLAIN, probes: Sequence[Array | None] | None = None
    ) -> Array:
        """The class token of `encode`, for a backward pass in little memory: only the blocks' inputs are kept.

        The rest is computed anew. The blocks but the last run in a scan over their stacked weights, since a compiler
        may compute unrolled ones anew too early. `probes` has one entry a block; those that are None come first.
        """
        *below, last = self.blocks
        probes = [None] * len(self.blocks) if probes is None else list(probes)
        seen = [probe for probe in probes[:-1] if probe is not None]
        start = len(below) - len(seen)
        graph, _ = nnx.split(last)

        @jax.checkpoint
        def step(x: Array, scanned: tuple[nnx.State, Array | None]) -> tuple[Array, None]:
            state, probe = scanned
            return nnx.merge(graph, state)(x, ops, probe)[0], None

        for part, part_probes in ((below[:start], None), (below[start:], seen)):
            if part:
                states = [nnx.split(block)[1] for block in part]
                stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
                over = (stacked, None if part_probes is None else jnp.stack(part_probes))
                tokens, _ = jax.lax.scan(step, tokens, over)
        return last(tokens, ops, probes[-1], queries=1)[0]

    def classify(self, tokens: Array, ops: Ops = PLAIN) -> Array:
        """Tokens (B, >= 1, D) -> logits (B, classes), from the class token alone."""
        return self.head(self.norm(tokens[:, :1], ops), ops)[:, 0]

    def __call__(
        self, images: Array, ops: Ops = PLAIN, probes: Sequence[Array | None] | None = None
    ) -> Array:
        """Normalised images (B, H, W, 3) -> logits (B, classes)."""
        tokens, _ = self.encode(self.embed(self.features(images, ops), ops), ops, probes)
        return self.classify(tokens, ops)
