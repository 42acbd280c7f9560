"""Naming schemes: recognises whose names a file's tensors have, and gives them timm's.

A family of checkpoints with names of its own is one entry of `SCHEMES`.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vitx.weights.files import Tensor, concatenate


@dataclass(frozen=True)
class Scheme:
    """The names that one project gives to the tensors of a Vision Transformer.

    Attributes:
      project: whose names they are.
      mark: a regular expression found in at least one name of every such file.
      table: regular expressions for whole names without the last part (weight, bias, kernel or scale), and timm's
        name for each: a template, a function of the match, or None for tensors that a classifier does not use.
        Separate queries, keys and values are named blocks.<number>.attn.q, .k and .v.
      prefix: may precede any of these names.
      flax: whether axes are in Flax's order rather than PyTorch's.
    """

    project: str
    mark: str
    table: tuple[tuple[str, str | Callable[[re.Match[str]], str] | None], ...] = ()
    prefix: str = ""
    flax: bool = False

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
    layer = {"conv": "conv", "gn": "norm"}[kind]
    part = f"downsample.{layer}" if which == "_proj" else f"{layer}{which}"
    return f"patch_embed.backbone.stages.{int(block) - 1}.blocks.{int(unit) - 1}.{part}"


_BLOCK: Final = r"Transformer/encoderblock_(\d+)"
_LAYER: Final = r"encoder\.layer\.(\d+)"

# Layers are encoder.layer.<number> in files, layers.<number> in transformers 5's state dict.
HUGGING_FACE: Final = Scheme(
    "Hugging Face",
    r"embeddings\.patch_embeddings\.",
    (
        (r"pooler\..*|embeddings\.(?:mask_token|position_ids)", None),
        (r"embeddings\.cls_token", "cls_token"),
        (r"embeddings\.position_embeddings", "pos_embed"),
        (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
        (r"(?:encoder\.layer|layers)\.(\d+)\.layernorm_before", r"blocks.\1.norm1"),
        (r"(?:encoder\.layer|layers)\.(\d+)\.layernorm_after", r"blocks.\1.norm2"),
        (rf"{_LAYER}\.attention\.attention\.([qkv])(?:uery|ey|alue)", r"blocks.\1.attn.\2"),
        (rf"{_LAYER}\.attention\.output\.dense", r"blocks.\1.attn.proj"),
        (rf"{_LAYER}\.intermediate\.dense", r"blocks.\1.mlp.fc1"),
        (rf"{_LAYER}\.output\.dense", r"blocks.\1.mlp.fc2"),
        (r"layers\.(\d+)\.attention\.([qkv])_proj", r"blocks.\1.attn.\2"),
        (r"layers\.(\d+)\.attention\.o_proj", r"blocks.\1.attn.proj"),
        (r"layers\.(\d+)\.mlp\.(fc[12])", r"blocks.\1.mlp.\2"),
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
    """Finds the naming scheme of a file's tensors, and renames them; unknown tensors keep their names.

    Raises:
      ValueError: for an architecture that vitx does not have.
    """
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
    return Named(_joined(renamed), scheme, tensors)


def _first(pattern: str, names: dict[str, Tensor]) -> str | None:
    return next((name for name in names if re.search(pattern, name)), None)


def _joined(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Joins queries, keys and values to one projection, where all three exist with equal shapes."""
    joined = dict(tensors)
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for name in tensors:
        if found := re.fullmatch(r"(blocks\.\d+\.attn)\.([qkv])\.(weight|bias)", name):
            groups[f"{found[1]}.qkv.{found[3]}"][found[2]] = name
    for name, parts in groups.items():
        members = [parts[part] for part in "qkv" if part in parts]
        if len(members) == 3 and len({tensors[member].shape for member in members}) == 1:
            joined[name] = concatenate([joined.pop(member) for member in members])
    return joined


def _pytorch_axes(name: str, tensor: Tensor) -> Tensor:
    """A tensor of Flax with PyTorch's axes; one with unexpected axes stays, and will not fit."""
    leaf, shape = name.rpartition("/")[2], tensor.shape
    if leaf == "kernel" and len(shape) == 4:
        return tensor.transpose(3, 2, 0, 1)
    if leaf == "kernel" and len(shape) == 3:  # (heads, d, width) or (width, heads, d)
        rows = shape[0] * shape[1] if name.endswith("/out/kernel") else shape[0]
        return tensor.reshape(rows, math.prod(shape) // max(rows, 1)).transpose(1, 0)
    if leaf == "kernel" and len(shape) == 2:
        return tensor.transpose(1, 0)
    if leaf in ("scale", "bias"):  # biases by heads, GroupNorms over (1, 1, 1, C)
        return tensor.reshape(math.prod(shape))
    return tensor
