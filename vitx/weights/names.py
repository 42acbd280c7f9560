"""Whose names a file's tensors have, and the same tensors under timm's."""

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Final, Literal

from vitx.weights.files import Tensor, concatenate

Origin = Literal["timm", "Hugging Face", "Google", "[Re]"]


@dataclass(frozen=True)
class Named:
    """Tensors by timm's names with PyTorch's axes, and whose names they had.

    `heads` is set where the tensors' own shapes tell it.
    """

    tensors: dict[str, Tensor]
    origin: Origin
    heads: int | None = None


# Models that share names with a ViT but compute something else; the first that matches any name is
# reported.
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


def recognise(tensors: dict[str, Tensor]) -> Named:
    """Gives a file's tensors timm's names; AffinityNet's keep [Re]'s, unknown ones stay.

    Raises:
      ValueError: for an architecture that vitx does not have.
    """
    for prefix in _PREFIXES:
        while all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    for pattern, what in _REFUSED:
        found = next((name for name in tensors if re.search(pattern, name)), None)
        if found is not None:
            raise ValueError(f"this is {what} (tensor {found}), which vitx does not have")
    if any(name.startswith("Transformer/encoderblock_") for name in tensors):
        return _from_google(tensors)
    if any("embeddings.patch_embeddings." in name for name in tensors):
        return _from_hugging_face(tensors)
    if "feat_conv.weight" in tensors:
        return Named(dict(tensors), "[Re]")
    if any(name.startswith("resnet_backbone.") for name in tensors):
        renamed = {
            _under(n, "resnet_backbone.", "patch_embed.backbone."): t for n, t in tensors.items()
        }
        return Named(renamed, "[Re]")
    if any(name.startswith("blocks.0.") for name in tensors):
        return Named(dict(tensors), "timm")
    some = ", ".join(list(tensors)[:3])
    raise ValueError(f"no Vision Transformer's names that vitx knows; the first tensors are {some}")


def _under(name: str, old: str, new: str) -> str:
    return new + name.removeprefix(old) if name.startswith(old) else name


# Hugging Face's names without "vit.", in files (first) and in transformers 5's state dict.
_HUGGING_FACE: Final = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"(?:encoder\.layer|layers)\.(\d+)\.layernorm_before", r"blocks.\1.norm1"),
    (r"(?:encoder\.layer|layers)\.(\d+)\.layernorm_after", r"blocks.\1.norm2"),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)", r"blocks.\1.attn.\2"),
    (r"layers\.(\d+)\.attention\.q_proj", r"blocks.\1.attn.query"),
    (r"layers\.(\d+)\.attention\.k_proj", r"blocks.\1.attn.key"),
    (r"layers\.(\d+)\.attention\.v_proj", r"blocks.\1.attn.value"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense", r"blocks.\1.attn.proj"),
    (r"layers\.(\d+)\.attention\.o_proj", r"blocks.\1.attn.proj"),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense", r"blocks.\1.mlp.fc1"),
    (r"encoder\.layer\.(\d+)\.output\.dense", r"blocks.\1.mlp.fc2"),
    (r"layers\.(\d+)\.mlp\.(fc[12])", r"blocks.\1.mlp.\2"),
    (r"layernorm", "norm"),
    (r"classifier", "head"),
)
# Parts that the classifier does not read.
_UNUSED: Final = re.compile(r"pooler\.|embeddings\.(mask_token|position_ids)$")


def _from_hugging_face(tensors: dict[str, Tensor]) -> Named:
    renamed = {}
    for full, tensor in tensors.items():
        name = full.removeprefix("vit.")
        if not _UNUSED.match(name):
            renamed[_renamed(name, _HUGGING_FACE)] = tensor
    return Named(_joined(renamed), "Hugging Face")


def _renamed(name: str, table: tuple[tuple[str, str], ...]) -> str:
    stem, dot, leaf = name.rpartition(".")
    if leaf not in ("weight", "bias"):
        stem, dot, leaf = name, "", ""
    for pattern, new in table:
        if found := re.fullmatch(pattern, stem):
            return found.expand(new) + dot + leaf
    return name


def _joined(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Separate queries, keys and values as one projection, where all three are there and alike."""
    joined = dict(tensors)
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for name in tensors:
        if found := re.fullmatch(r"(blocks\.\d+\.attn)\.(query|key|value)\.(weight|bias)", name):
            groups[f"{found[1]}.qkv.{found[3]}"][found[2]] = name
    for name, parts in groups.items():
        members = [parts[part] for part in ("query", "key", "value") if part in parts]
        if len(members) == 3 and len({tensors[member].shape for member in members}) == 1:
            joined[name] = concatenate([joined.pop(member) for member in members])
    return joined


_GOOGLE: Final = (
    (r"cls", "cls_token"),
    (r"Transformer/posembed_input/pos_embedding", "pos_embed"),
    (r"embedding", "patch_embed.proj"),
    (r"Transformer/encoder_norm", "norm"),
    (r"Transformer/encoderblock_(\d+)/LayerNorm_0", r"blocks.\1.norm1"),
    (r"Transformer/encoderblock_(\d+)/LayerNorm_[12]", r"blocks.\1.norm2"),
    (r"Transformer/encoderblock_(\d+)/MlpBlock_\d/Dense_0", r"blocks.\1.mlp.fc1"),
    (r"Transformer/encoderblock_(\d+)/MlpBlock_\d/Dense_1", r"blocks.\1.mlp.fc2"),
    (r"Transformer/encoderblock_(\d+)/MultiHead\w+/(query|key|value)", r"blocks.\1.attn.\2"),
    (r"Transformer/encoderblock_(\d+)/MultiHead\w+/out", r"blocks.\1.attn.proj"),
    (r"pre_logits", "pre_logits.fc"),
    (r"head", "head"),
    (r"conv_root", "patch_embed.backbone.stem.conv"),
    (r"gn_root", "patch_embed.backbone.stem.norm"),
)
_GOOGLE_UNIT: Final = re.compile(r"block(\d+)/unit(\d+)/(conv|gn)(\d|_proj)")
_LEAVES: Final = {"kernel": ".weight", "scale": ".weight", "bias": ".bias"}


def _from_google(tensors: dict[str, Tensor]) -> Named:
    renamed: dict[str, Tensor] = {}
    heads = None
    for full, tensor in tensors.items():
        stem, _, leaf = full.rpartition("/")
        if leaf not in _LEAVES:
            stem, leaf = full, ""
        name = _google_name(stem)
        if name is None:
            renamed[full] = tensor
            continue
        if name.endswith(".attn.query") and leaf == "kernel" and len(tensor.shape) == 3:
            heads = tensor.shape[1]
        renamed[name + _LEAVES.get(leaf, "")] = _pytorch_axes(name, leaf, tensor)
    return Named(_joined(renamed), "Google", heads)


def _google_name(stem: str) -> str | None:
    if found := _GOOGLE_UNIT.fullmatch(stem):
        block, unit, kind, which = found.groups()
        layer = {"conv": "conv", "gn": "norm"}[kind]
        part = f"downsample.{layer}" if which == "_proj" else f"{layer}{which}"
        return f"patch_embed.backbone.stages.{int(block) - 1}.blocks.{int(unit) - 1}.{part}"
    name = _renamed(stem, _GOOGLE)
    return None if name == stem and name != "head" else name


def _pytorch_axes(name: str, leaf: str, tensor: Tensor) -> Tensor:
    """A tensor with Flax's axes, in PyTorch's; one with other axes stays, and will not fit."""
    axes = len(tensor.shape)
    if leaf == "kernel" and axes == 4:
        return tensor.transpose(3, 2, 0, 1)
    if leaf == "kernel" and axes == 3:
        a, b, c = tensor.shape
        matrix = tensor.reshape(a * b, c) if name.endswith("proj") else tensor.reshape(a, b * c)
        return matrix.transpose(1, 0)
    if leaf == "kernel" and axes == 2:
        return tensor.transpose(1, 0)
    if leaf and axes > 1:  # biases by heads, GroupNorms over (1, 1, 1, C)
        size = 1
        for side in tensor.shape:
            size *= side
        return tensor.reshape(size)
    return tensor
