"""What a model must offer to be explained."""

from collections.abc import Sequence
from typing import Any, Protocol

from vitx.ops import PLAIN, Array, Ops


class Explainable(Protocol):
    """A model that can be explained: what its tokens are, and its forward pass in parts.

    Tokens are (B, N, D): prefix tokens (class token, registers) first, then the patches of the grid in row order.
    `vitx.models.vit.VisionTransformer` is one, and so is `vitx.models.convnet.ConvNet`: its tokens are the cells of the
    last feature map, and it has no blocks.

    Attributes:
      preprocess: mean and std of the input's channels, pixels being in [0, 1], and its size (H, W).
      num_classes: number of logits; 0 for a backbone without a head, whose output is `pooled`.
      prefix_tokens: number of tokens before those of the patches.
      width: channels of a token, D.
      blocks: functions (tokens, ops, probe, queries, rotate) -> the first `queries` tokens, or all, and attention.
      queries: how many tokens the last block computes in `encode`; None for all.
      any_size: whether it takes images of any size; its grid then follows from `preprocess.size`.

    Vitx's own models also have `class_names`, of their outputs, where they are known, else None; `class_names_source`,
    where these are from (`vitx.weights.class_names`); and `assumed`, the settings that were guessed: "num_heads".
    """

    preprocess: Any
    num_classes: int
    prefix_tokens: int
    width: int
    blocks: Any
    queries: int | None
    any_size: bool

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""

    @property
    def dtype(self) -> Any:
        """Type of the parameters."""

    def attention_shapes(self) -> Sequence[tuple[int, int, int]]:
        """(heads, Q, N) of each block's attention, Q the number of queries that the block computes."""

    def features(self, images: Array, ops: Ops = PLAIN) -> Array:
        """Images (B, H, W, 3) -> what `embed` reads: the images themselves, or a stem's map."""

    def embed(self, features: Array, ops: Ops = PLAIN) -> Array:
        """Features -> tokens (B, N, D)."""

    def rotation(self) -> Any:
        """What `blocks` take as `rotate`: rotary positions, or None."""

    def encode(
        self,
        tokens: Array,
        ops: Ops = PLAIN,
        probes: Sequence[Array | None] | None = None,
        lean: bool = False,
    ) -> tuple[Array, list[Array]]:
        """Tokens -> the tokens that `classify` reads, and each block's attention; see `probe`.

        With `lean` a backward pass takes little memory, only the last blocks may have probes, and only the last block's
        attention is returned.
        """

    def below_last(self, tokens: Array, ops: Ops = PLAIN) -> Array:
        """Tokens of `embed` -> the tokens (B, N, D) that enter the last block."""

    def pooling_weights(self, tokens: Array) -> Array:
        """Tokens of `encode` (B, Q, D) -> the weight of each in the pooled output, (B, Q), with sum 1.

        Methods read a matrix of attention (..., Q, N) by its rows' mean with these weights.
        """

    def pooled(self, tokens: Array, ops: Ops = PLAIN) -> Array:
        """Tokens of `encode` -> what the head reads, (B, W)."""

    def classify(self, tokens: Array, ops: Ops = PLAIN) -> Array:
        """Tokens of `encode` -> the output (B, C): logits, or `pooled` where there is no head."""

    @property
    def linear_head(self) -> bool:
        """Whether the output is linear in the mean of the patches that `encode` returns, as `class_map` needs."""

    def class_map(self, tokens: Array, ops: Ops = PLAIN) -> Array:
        """Tokens of `encode` -> each patch's share of each output, (B, N, C).

        Their mean over the patches is the output less the head's bias.
        """

    def without_head(self) -> "Explainable":
        """The model whose output is `pooled`."""

    def __call__(self, images: Array, ops: Ops = PLAIN) -> Array:
        """Images (B, H, W, 3) -> the output (B, C), see `classify`."""
