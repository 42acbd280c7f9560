"""Naming schemes: recognises whose names a file's tensors have, and gives them timm's.

A family of checkpoints with names of its own is one entry of `SCHEMES`.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from vitx.weights.files import Tensor
from vitx.weights.layout import AXES


@dataclass(frozen=True)
class Scheme:
    """The names that one project gives to the tensors of a Vision Transformer."""

    project: str
    mark: str  # a regular expression found in at least one name of every such file
    # Regular expressions for whole names without the last part (weight, bias, kernel or scale), and timm's name for
    # each: a template, a function of the match, or None for tensors that a classifier does not use. Separate queries,
    # keys and values are named blocks.<number>.attn.q, .k and .v.
    table: tuple[tuple[str, str | Callable[[re.Match[str]], str] | None], ...] = ()
    prefix: str = ""  # may precede any of these names
    flax: bool = False  # whether axes are in Flax's order rather than PyTorch's

    def timm_name(self, name: str) -> str | None:
        """The name of a tensor in timm: its own where it is unknown, None where it is not used."""
        stem, leaf = name.removeprefix(self.prefix), ""
        if found := re.fullmatch(r"(?s)(.*)[./](weight|bias|kernel|scale)", stem):
            stem, leaf = found[1], ".bias" if found[2] == "bias" else ".weight"
        for pattern, new in self.table:
            if found := re.fullmatch(pattern, stem):
                if new is None:
                    return None
                return (new(found) if callable(new) else found.expand(new)) + leaf
        return name


def _google_unit(found: re.Match[str]) -> str:
    block, unit, kind, which = found.groups()
    layer = "norm" if kind == "gn" else kind
    part = f"downsample.{layer}" if which == "_proj" else f"{layer}{which}"
    return f"patch_embed.backbone.stages.{int(block) - 1}.blocks.{int(unit) - 1}.{part}"


_BLOCK: Final = r"Transformer/encoderblock_(\d+)"
# In files and in transformers 5's state dict, whose names differ.
_LAYER: Final = r"(?:encoder\.layer|layers)\.(\d+)"

HUGGING_FACE: Final = Scheme(
    "Hugging Face",
    r"embeddings\.patch_embeddings\.",
    (
        (r"pooler\..*|embeddings\.(?:mask_token|position_ids)", None),
        (r"embeddings\.cls_token", "cls_token"),
        (r"embeddings\.position_embeddings", "pos_embed"),
        (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
        (rf"{_LAYER}\.layernorm_before", r"blocks.\1.norm1"),
        (rf"{_LAYER}\.layernorm_after", r"blocks.\1.norm2"),
        (
            rf"{_LAYER}\.attention\.(?:attention\.)?([qkv])(?:uery|ey|alue|_proj)",
            r"blocks.\1.attn.\2",
        ),
        (rf"{_LAYER}\.attention\.(?:output\.dense|o_proj)", r"blocks.\1.attn.proj"),
        (rf"{_LAYER}\.(?:intermediate\.dense|mlp\.fc1)", r"blocks.\1.mlp.fc1"),
        (rf"{_LAYER}\.(?:output\.dense|mlp\.fc2)", r"blocks.\1.mlp.fc2"),
        (r"layernorm", "norm"),
        (r"classifier", "head"),
    ),
    prefix="vit.",
)

# The first whose mark is found counts.
SCHEMES: Final = (
    Scheme(
        "Google",
        r"^Transformer/encoderblock_",
        (
            (r"cls", "cls_token"),
            (r"Transformer/posembed_input/pos_embedding", "pos_embed"),
            (r"embedding", "patch_embed.proj"),
            (r"conv_root", "patch_embed.backbone.stem.conv"),
            (r"gn_root", "patch_embed.backbone.stem.norm"),
            (r"block(\d+)/unit(\d+)/(conv|gn)(\d|_proj)", _google_unit),
            (rf"{_BLOCK}/LayerNorm_0", r"blocks.\1.norm1"),
            (rf"{_BLOCK}/LayerNorm_[12]", r"blocks.\1.norm2"),
            (rf"{_BLOCK}/MultiHead\w+/([qkv])(?:uery|ey|alue)", r"blocks.\1.attn.\2"),
            (rf"{_BLOCK}/MultiHead\w+/out", r"blocks.\1.attn.proj"),
            (rf"{_BLOCK}/MlpBlock_\d/Dense_0", r"blocks.\1.mlp.fc1"),
            (rf"{_BLOCK}/MlpBlock_\d/Dense_1", r"blocks.\1.mlp.fc2"),
            (r"Transformer/encoder_norm", "norm"),
            (r"pre_logits", "pre_logits.fc"),
            (r"head", "head"),
        ),
        flax=True,
    ),
    HUGGING_FACE,
    Scheme("[Re]", r"^feat_conv\."),  # AffinityNet, which timm does not have
    Scheme("vitx", r"^branches\.0\.feat_conv\."),  # AffinityNet on several levels
    Scheme(
        "[Re]", r"^resnet_backbone\.", ((r"resnet_backbone\.(.*)", r"patch_embed.backbone.\1"),)
    ),
    Scheme("timm", r"^blocks\.0\."),
)

# Models that share names with a ViT but compute something else.
_REFUSED: Final = (
    (r"dist_token|head_dist\.|distillation_", "a distilled DeiT, which has a second class token"),
    (r"\.q_bias$|relative_position_bias\.", "a BEiT"),
    (r"relative_position_bias_table|(^|\.)layers\.\d+\.blocks\.", "a Swin Transformer"),
    (r"conv_dw|dwconv|downsample_layers", "a ConvNeXt"),
    (r"\.ls[12]\.|layer_scale|gamma_[12]$", "a ViT with layer scale (as DINOv2 and DeiT III)"),
    (r"reg_token|register_tokens", "a ViT with register tokens"),
    (r"^visual\.|vision_model\.|text_model\.|logit_scale", "a CLIP or SigLIP"),
    (r"attn_pool\.|MAPHead_", "a ViT with attention pooling (as SigLIP)"),
    (r"fc_norm\.", "a ViT that averages its tokens before the head"),
    (r"(^|\.)decoder", "a masked autoencoder from pre-training"),
    (r"norm_pre\.|pre_layrnorm", "a ViT with a norm before its blocks"),
    (r"\.[qk]_norm\.", "a ViT with normalised queries and keys"),
    (r"mlp\.(w12|fc1_g|weights_in)", "a ViT with gated MLPs"),
    (r"mlp_tokens|MixerBlock_|token_mixing", "an MLP-Mixer"),
    (r"^layer1\.0\.conv1\.|^conv1\.weight$", "a ResNet"),
)
_PREFIXES: Final = ("module.", "model.", "_orig_mod.")


@dataclass(frozen=True)
class Named:
    """Tensors under timm's names with PyTorch's axes; AffinityNet's keep [Re]'s names.

    `original` has the names and axes of the file, without prefixes such as "module.".
    """

    tensors: dict[str, Tensor]
    scheme: Scheme
    original: dict[str, Tensor]


def recognise(tensors: dict[str, Tensor]) -> Named:
    """Renames a file's tensors, except unknown ones; ValueError for an architecture that vitx does not have."""
    for prefix in _PREFIXES:
        while all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    for pattern, what in _REFUSED:
        if found := _first(pattern, tensors):
            raise ValueError(f"this is {what} (tensor {found}), which vitx does not have")
    scheme = next((scheme for scheme in SCHEMES if _first(scheme.mark, tensors)), None)
    if scheme is None:
        some = ", ".join(list(tensors)[:3])
        raise ValueError(
            f"no Vision Transformer's names that vitx knows; the first tensors are {some}"
        )
    renamed = {}
    for old, tensor in tensors.items():
        if (name := scheme.timm_name(old)) is not None:
            renamed[name] = _pytorch_axes(old, tensor) if scheme.flax else tensor
    _join_attention(renamed)
    return Named(renamed, scheme, tensors)


def _first(pattern: str, names: Iterable[str]) -> str | None:
    return next(filter(re.compile(pattern).search, names), None)


def _join_attention(tensors: dict[str, Tensor]) -> None:
    """Joins queries, keys and values to one projection, where all three exist with equal shapes."""
    for query in [n for n in tensors if re.fullmatch(r"blocks\.\d+\.attn\.q\.(weight|bias)", n)]:
        names = [query.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        shape = tensors[query].shape
        if shape and all(name in tensors and tensors[name].shape == shape for name in names):
            parts = [tensors.pop(name) for name in names]
            joined = Tensor((3 * shape[0], *shape[1:]), partial(_concatenated, parts))
            tensors[query.replace(".attn.q.", ".attn.qkv.")] = joined


def _concatenated(parts: list[Tensor]) -> np.ndarray:
    return np.concatenate([part.read() for part in parts])


def _pytorch_axes(name: str, tensor: Tensor) -> Tensor:
    """A tensor of Flax with PyTorch's axes; one with unexpected axes stays, and will not fit."""
    leaf, shape = name.rpartition("/")[2], tensor.shape
    if leaf in ("scale", "bias"):  # biases by heads, GroupNorms over (1, 1, 1, C)
        return tensor.reshape(math.prod(shape))
    if leaf == "kernel" and len(shape) == 3:  # (heads, d, width) or (width, heads, d)
        rows = shape[0] * shape[1] if name.endswith("/out/kernel") else shape[0]
        tensor = tensor.reshape(rows, math.prod(shape) // max(rows, 1))
    if leaf == "kernel" and (axes := AXES.get(len(tensor.shape))):
        return tensor.transpose(*axes)
    return tensor
