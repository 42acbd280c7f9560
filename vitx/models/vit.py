"""The Vision Transformer (Dosovitskiy et al., ICLR 2021), written once over `Ops`: read it top to bottom.

Under `vitx.ops.PLAIN` it predicts and trains; under a rule set its `jax.vjp` is a relevance pass. Activations
may be arrays or pairs of them: only operations of `Ops`, reshapes, transposes and slices touch them.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vitx.models.blocks import Block
from vitx.models.design import VIT, Design, Preprocess
from vitx.models.layers import LayerNorm, Linear
from vitx.models.model import Model
from vitx.models.pooling import AttentionPool, pooling_weights
from vitx.models.rotary import Rotation, rotation
from vitx.models.scan import scan_blocks
from vitx.ops import PLAIN, Array, Ops


class VisionTransformer(Model):
    """A Vision Transformer; a hybrid where `stem` turns images into a feature map that is embedded in patches.

    Its tokens and parts: `vitx.explainable.Explainable`.

    Args:
      width, depth, heads, hidden: sizes of the transformer; hidden is the MLP's.
      patch: side of a patch, in pixels, or in the stem's feature cells.
      num_classes: outputs of the head; 0 for none: then the output is what a head would read.
      preprocess: statistics and input size, which fixes the token grid.
      stem: module with attributes `channels` and `stride`, from images to features, or None.
      norm_eps, final_norm_eps: LayerNorm's epsilon in the blocks and at the end (default: the same).
      design: the parts of the model; default: the ViT of 2021.

    Raises:
      ValueError: where the width is no multiple of the heads, or the image size no multiple of the patch; for rotary
        positions in heads whose channels are no multiple of 4, or more best patches than patches.
    """

    any_size = False

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
        design: Design = VIT,
        rngs: nnx.Rngs,
    ):
        cell = patch * (stem.stride if stem else 1)
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of the number of heads, {heads}")
        if any(side % cell or side < cell for side in preprocess.size):
            raise ValueError(
                f"image size {preprocess.size} is not a multiple of the patch, {cell} pixels"
            )
        if not num_classes:
            design = replace(design, head="pooled")
        self.preprocess, self.num_classes = preprocess, num_classes
        self.name_classes()
        self.assumed = ()
        self.design, self.prefix_tokens, self.queries = (
            design,
            design.prefix_tokens,
            design.queries,  # tokens that the last block computes; None: all
        )
        self.width, self.patch = width, patch
        self.grid = (preprocess.size[0] // cell, preprocess.size[1] // cell)
        design.require_fit(width // heads, math.prod(self.grid))
        self.stem = stem
        channels = stem.channels if stem else 3
        self.patch_embed = Linear(channels * patch**2, width, design.patch_bias, rngs=rngs)
        self._add_tokens(design, rngs)
        norm_last = norm_eps if final_norm_eps is None else final_norm_eps
        self.norm_pre = LayerNorm(width, norm_eps) if design.pre_norm else None
        self.blocks = nnx.List(
            [Block(width, heads, hidden, norm_eps, design, rngs=rngs) for _ in range(depth)]
        )
        self.norm = LayerNorm(width, norm_last) if design.final_norm else None
        self.attn_pool = (
            AttentionPool(width, heads, hidden, norm_last, design.activation, rngs=rngs)
            if design.pooling == "attention"
            else None
        )
        self.fc_norm = LayerNorm(width, norm_last) if design.pooled_norm else None
        self.projection = (
            Linear(width, design.projection, bias=False, rngs=rngs) if design.projection else None
        )
        self._add_heads(design, num_classes, rngs)

    def _add_tokens(self, design: Design, rngs: nnx.Rngs) -> None:
        def table(entries: int) -> Any:
            """Learned vectors (1, entries, D), or None without entries."""
            shape = (1, entries, self.width)
            return nnx.Param(0.02 * jax.random.normal(rngs(), shape)) if entries else None

        patches = 0 if design.positions == "none" else math.prod(self.grid)
        self.cls_token = table(int(design.class_token))
        self.dist_token = table(int(design.distillation_token))
        self.reg_token = table(design.registers)
        self.pos_embed = table(patches and design.position_prefix + patches)

    def _add_heads(self, design: Design, num_classes: int, rngs: nnx.Rngs) -> None:
        read = design.heads(self.width) if num_classes else {}

        def head(name: str) -> Any:
            return Linear(read[name], num_classes, rngs=rngs) if name in read else None

        self.head, self.head_dist = head("head"), head("head_dist")
        self.head_patches = head("head_patches")

    @property
    def dtype(self) -> Any:
        """Type of the parameters."""
        return self.patch_embed.kernel.dtype

    @property
    def final_norm_eps(self) -> float:
        """Epsilon of the LayerNorms after the last block."""
        norms = (self.norm, self.fc_norm, self.attn_pool and self.attn_pool.norm)
        return next((norm.epsilon for norm in norms if norm), self.blocks[0].norm1.epsilon)

    def attention_shapes(self) -> list[tuple[int, int, int]]:
        """(heads, queries, tokens) of each block's attention."""
        tokens = self.prefix_tokens + math.prod(self.grid)
        shapes = [(block.attn.heads, tokens, tokens) for block in self.blocks]
        return [*shapes[:-1], (shapes[-1][0], self.queries or tokens, tokens)]

    def features(self, images: Array, ops: Ops = PLAIN) -> Array:
        """Images (B, H, W, 3), in the parameters' type, or the stem's map of them (B, h, w, C)."""
        images = images.astype(self.dtype)
        return images if self.stem is None else self.stem(images, ops)

    def embed(self, features: Array, ops: Ops = PLAIN) -> Array:
        """Features (B, h, w, C) -> tokens (B, P + N, D): prefix tokens, patches in row order, positions added."""
        (rows, columns), batch, p = self.grid, len(features), self.patch
        patches = features.reshape(batch, rows, p, columns, p, -1).transpose(0, 1, 3, 2, 4, 5)
        patches = patches.reshape(batch, rows * columns, -1)  # (B, N, p p C)
        b = None if self.patch_embed.bias is None else self.patch_embed.bias[...]
        kernel, pixels = self.patch_embed.kernel[...], self.stem is None
        tokens = ops.affine(patches, kernel, b, pixels=pixels)  # (B, N, D)
        prefix = self.prefix().astype(tokens.dtype)
        prefix = jnp.broadcast_to(prefix, (batch, *prefix.shape[1:]))
        tokens = jnp.concatenate([prefix, tokens], axis=1)  # (B, P + N, D)
        if self.pos_embed is not None:
            positions = jnp.broadcast_to(self.positions(), tokens.shape).astype(tokens.dtype)
            tokens = ops.add(tokens, positions)
        return tokens if self.norm_pre is None else self.norm_pre(tokens, ops)

    def prefix(self) -> Array:
        """Prefix tokens (1, P, D): class token, distillation token, registers, as far as there are any."""
        tokens = [
            t[...] for t in (self.cls_token, self.dist_token, self.reg_token) if t is not None
        ]
        empty = jnp.zeros((1, 0, self.width), self.dtype)
        return jnp.concatenate(tokens or [empty], axis=1)

    def positions(self) -> Array:
        """Position embedding (1, P + N, D), 0 for prefix tokens without an entry."""
        table, entries = self.pos_embed[...], self.design.position_prefix
        missing = jnp.zeros((1, self.prefix_tokens - entries, self.width), table.dtype)
        return jnp.concatenate([table[:, :entries], missing, table[:, entries:]], axis=1)

    def rotation(self, places: Array | None = None) -> Rotation | None:
        """Rotary positions of the tokens, which every block takes; None where the model has none. See `encode`."""
        if self.design.rotary == "none":
            return None
        width = self.width // self.blocks[0].attn.heads
        kind, base = self.design.rotary, self.design.rotary_base
        table = rotation(kind, base, self.grid, self.prefix_tokens, width, self.dtype)
        return table if places is None else table.at(places)

    def encode(
        self,
        tokens: Array,
        ops: Ops = PLAIN,
        probes: Sequence[Array | None] | None = None,
        lean: bool = False,
        places: Array | None = None,
    ) -> tuple[Array, list[Array]]:
        """Tokens (B, N, D) -> the tokens that `classify` reads (B, Q, D), and attention (B, heads, Q, N) of each block.

        Q is N, except in the last block, which computes the first `queries` tokens alone. `probes` has one entry a
        block. With `lean` a backward pass takes little memory, and the last block's attention alone is returned.
        `places` (B, N): the tokens' places among those of `embed`, where some are left out.
        """
        *below, last = self.blocks
        *probes_below, last_probe = [None] * len(self.blocks) if probes is None else probes
        attentions, rotate = [], self.rotation(places)
        if lean:
            tokens = scan_blocks(below, tokens, ops, probes_below, rotate=rotate)
        else:
            for block, probe in zip(below, probes_below, strict=True):
                tokens, attention = block(tokens, ops, probe, rotate=rotate)
                attentions.append(attention)
        tokens, attention = last(tokens, ops, last_probe, self.queries, rotate)
        return tokens, [*attentions, attention]

    def below_last(self, tokens: Array, ops: Ops = PLAIN) -> Array:
        """Tokens of `embed` -> the tokens (B, N, D) that enter the last block."""
        rotate = self.rotation()
        for block in self.blocks[:-1]:
            tokens, _ = block(tokens, ops, rotate=rotate)
        return tokens

    def pooling_weights(self, tokens: Array) -> Array:
        """Tokens of `encode` (B, Q, D) -> the weight of each in the output (B, Q), see `pooling.pooling_weights`."""
        probe = None
        if self.attn_pool is not None:
            probe = self.attn_pool.attention(self.normed(tokens)[:, self.prefix_tokens :])
        return pooling_weights(self.design, tokens, probe)

    def normed(self, tokens: Array, ops: Ops = PLAIN) -> Array:
        """Tokens (B, N, D) after the final norm, if the model has one."""
        return tokens if self.norm is None else self.norm(tokens, ops)

    def pooled(self, tokens: Array, ops: Ops = PLAIN) -> Array:
        """Tokens of `encode` (B, Q, D) -> what the head reads, or the output without one, (B, W).

        By the design's `pooling`, after the final norm: the class token; the mean of the patches; both side by side;
        the mean of class and distillation token; attention pooling of the patches. Then the norm and the projection of
        the pooled value, where there are any.
        """
        return self._pooled(tokens, ops)[:, 0]

    def _pooled(self, tokens: Array, ops: Ops) -> Array:
        tokens, pooling = self.normed(tokens[:, : self.design.queries], ops), self.design.pooling
        if self.attn_pool is not None:
            pooled = self.attn_pool(tokens[:, self.prefix_tokens :], ops)  # (B, 1, D)
        elif pooling == "class":
            pooled = tokens[:, :1]
        elif pooling == "class+distillation":
            pooled = ops.mean_tokens(tokens[:, :2])
        else:
            pooled = ops.mean_tokens(tokens[:, self.prefix_tokens :])
            if pooling == "class+mean":
                pooled = ops.concatenate(tokens[:, :1], pooled)  # (B, 1, 2 D)
        if self.fc_norm is not None:
            pooled = self.fc_norm(pooled, ops)
        return pooled if self.projection is None else self.projection(pooled, ops)

    def classify(self, tokens: Array, ops: Ops = PLAIN) -> Array:
        """Tokens of `encode` (B, Q, D) -> logits (B, classes), or `pooled` for a model without a head."""
        logits: list[Array] = []
        if self.head_dist is not None:
            two = self.normed(tokens[:, :2], ops)
            logits = [self.head(two[:, :1], ops), self.head_dist(two[:, 1:], ops)]
        elif self.head is not None:
            logits = [self.head(self._pooled(tokens, ops), ops)]  # (B, 1, classes)
        if self.head_patches is not None:
            patches = self.normed(tokens[:, self.prefix_tokens :], ops)
            count = jnp.asarray(self.design.best_patches, self.dtype)
            logits.append(ops.best_tokens(self.head_patches(patches, ops), count))
        if not logits:
            return self.pooled(tokens, ops)
        if len(logits) == 2:
            logits = [ops.scale(ops.add(*logits), factor=0.5)]
        return logits[0][:, 0]

    @property
    def linear_head(self) -> bool:
        """Whether a linear head reads the patches' mean, without a norm between them; see `class_map`."""
        design = self.design
        return design.pooling == "mean" and not design.pooled_norm and design.head == "pooled"

    def class_map(self, tokens: Array, ops: Ops = PLAIN) -> Array:
        """Tokens of `encode` -> each patch's share of each output (B, N, C), where there is a `linear_head`."""
        patches = self.normed(tokens, ops)[:, self.prefix_tokens :]
        if self.projection is not None:
            patches = self.projection(patches, ops)
        return patches if self.head is None else ops.linear(patches, self.head.kernel[...])

    def without_head(self) -> "VisionTransformer":
        """The model with the same weights whose output is the pooled one."""
        other = nnx.merge(*nnx.split(self))
        other.num_classes, other.design = 0, replace(self.design, head="pooled")
        other.name_classes()
        other.queries = other.design.queries
        other.head = other.head_dist = other.head_patches = None
        return other

    def __call__(
        self, images: Array, ops: Ops = PLAIN, probes: Sequence[Array | None] | None = None
    ) -> Array:
        """Normalised images (B, H, W, 3) -> the output (B, C), see `classify`."""
        tokens, _ = self.encode(self.embed(self.features(images, ops), ops), ops, probes)
        return self.classify(tokens, ops)
