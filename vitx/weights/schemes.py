"""The names that projects give to the tensors of Vision Transformers and CNNs, and timm's or vitx's name for each.

A family of checkpoints with names of its own is one entry of `SCHEMES`; what its config.json specifies is read by
`hugging_face` or `timm_config`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vitx.weights import conv_names
from vitx.weights.tensor import Tensor


@dataclass(frozen=True)
class Scheme:
    """The names that one project gives to the tensors of a model."""

    project: str
    mark: str  # a regular expression found in at least one name of every such file
    # Regular expressions for whole names, with the last part (weight, bias, kernel or scale) or without, and timm's
    # name for each: a template, a function of the match, or None for tensors that vitx does not use. Parts that vitx
    # joins are named blocks.<number>.attn.q, .k and .v, and blocks.<number>.mlp.gate and .up.
    table: tuple[tuple[str, str | Callable[[re.Match[str]], str] | None], ...] = ()
    prefix: str = ""  # a regular expression of what may precede any of these names
    flax: bool = False  # whether axes are in Flax's order rather than PyTorch's
    family: str = ""  # a key of `hugging_face.FAMILIES`
    convert: Callable[[dict[str, Tensor]], None] | None = None  # changes tensors beyond names

    def timm_name(self, name: str) -> str | None:
        """The name of a tensor in timm: its own where it is unknown, None where it is not used."""
        whole = re.sub(rf"^(?:{self.prefix})", "", name) if self.prefix else name
        forms = [(whole, "")]
        if found := re.fullmatch(r"(?s)(.*)[./](weight|bias|kernel|scale)", whole):
            forms.append((found[1], ".bias" if found[2] == "bias" else ".weight"))
        for stem, leaf in forms:
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
_LAYER: Final = r"(?:encoder\.layer|layers|layer|model\.layer)\.(\d+)"
_EMBEDDINGS: Final = (
    (r"embeddings\.(?:mask_token|position_ids)", None),
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings(?:\.projection)?", "patch_embed.proj"),
)
_ATTENTION: Final = (
    (
        rf"{_LAYER}\.attention\.(?:attention\.)?([qkv])(?:uery|ey|alue|_proj)",
        r"blocks.\1.attn.\2",
    ),
    (rf"{_LAYER}\.attention\.(?:output\.dense|o_proj)", r"blocks.\1.attn.proj"),
)

_PLAIN: Final = (
    (r"pooler\..*", None),
    *_EMBEDDINGS,
    (rf"{_LAYER}\.layernorm_before", r"blocks.\1.norm1"),
    (rf"{_LAYER}\.layernorm_after", r"blocks.\1.norm2"),
    *_ATTENTION,
    (rf"{_LAYER}\.(?:intermediate\.dense|mlp\.fc1)", r"blocks.\1.mlp.fc1"),
    (rf"{_LAYER}\.(?:output\.dense|mlp\.fc2)", r"blocks.\1.mlp.fc2"),
    (r"layernorm", "norm"),
    (r"classifier", "head"),
)
HUGGING_FACE: Final = Scheme(
    "Hugging Face",
    r"embeddings\.patch_embeddings\.",
    _PLAIN,
    prefix=r"(?:vit|ijepa)\.",
    family="vit",
)
_DISTILLED: Final = (
    (r"embeddings\.distillation_token", "dist_token"),
    (r"cls_classifier", "head"),
    (r"distillation_classifier", "head_dist"),
)
_DINO: Final = (
    *_EMBEDDINGS,
    (rf"{_LAYER}\.norm([12])", r"blocks.\1.norm\2"),
    (rf"{_LAYER}\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    *_ATTENTION,
    (rf"{_LAYER}\.mlp\.(?:fc1|weights_in)", r"blocks.\1.mlp.fc1"),
    (rf"{_LAYER}\.mlp\.(?:fc2|weights_out|down_proj)", r"blocks.\1.mlp.fc2"),
    (rf"{_LAYER}\.mlp\.(gate|up)_proj", r"blocks.\1.mlp.\2"),
    (r"(?:layer)?norm", "norm"),
    (r"classifier", "head"),
)
_WITH_TEXT: Final = (
    (r"text_model\..*|text_projection|logit_(?:scale|bias)|embeddings\.position_ids", None),
    (r"embeddings\.class_embedding", "cls_token"),
    (r"embeddings\.position_embedding\.weight", "pos_embed"),
    (r"embeddings\.patch_embedding", "patch_embed.proj"),
    (r"pre_layrnorm", "norm_pre"),
    (r"encoder\.layers\.(\d+)\.layer_norm([12])", r"blocks.\1.norm\2"),
    (r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj", r"blocks.\1.attn.\2"),
    (r"encoder\.layers\.(\d+)\.self_attn\.out_proj", r"blocks.\1.attn.proj"),
    (r"encoder\.layers\.(\d+)\.mlp\.(fc[12])", r"blocks.\1.mlp.\2"),
    (r"post_layernorm", "norm"),
    (r"visual_projection", "projection"),
    (r"head\.probe", "attn_pool.latent"),
    (r"head\.attention\.in_proj_(weight|bias)", r"attn_pool.qkv.\1"),
    (r"head\.attention\.out_proj", "attn_pool.proj"),
    (r"head\.layernorm", "attn_pool.norm"),
    (r"head\.mlp\.(fc[12])", r"attn_pool.mlp.\1"),
)
_PSA: Final = (
    (r"conv(\d)_(\d)", conv_names.psa_conv),
    (r"fc8", "head"),
    (r"f8_([345])", lambda found: f"branches.{int(found[1]) - 3}.feat_conv"),
    (r"gn8_([345])", lambda found: f"branches.{int(found[1]) - 3}.gn"),
    (r"f9", "affinity_conv"),
)
_TORCHVISION_VGG: Final = (
    (r"features\.(\d+)", conv_names.torchvision_conv),
    (r"classifier\.0", "fc6"),
    (r"classifier\.3", "fc7"),
    (r"classifier\.6", None),
)
_BATCH_NORM: Final = r"(?:\.(running_mean|running_var))?"


def _resnet_block(found: re.Match[str]) -> str:
    stage, block, part, statistic = found.groups()
    parts = {"downsample.0": "downsample.conv", "downsample.1": "downsample.norm"}
    name = parts.get(part, part.replace("bn", "norm"))
    return ".".join(filter(None, (f"stages.{int(stage) - 1}.{block}.{name}", statistic)))


_TORCHVISION_RESNET: Final = (
    (r".*\.num_batches_tracked", None),
    (r"conv1", "conv"),
    (r"bn1", "norm"),
    (r"bn1\.(running_mean|running_var)", r"norm.\1"),
    (
        rf"layer(\d)\.(\d+)\.(conv\d|bn\d|downsample\.[01]){_BATCH_NORM}",
        _resnet_block,
    ),
    (r"fc", "head"),
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
    Scheme("Hugging Face", r"\.mlp\.up_proj\.", _DINO, r"dinov3_vit\.|model\.", family="dinov3"),
    Scheme(
        "Hugging Face",
        r"\.layer_scale1\.lambda1$",
        _DINO,
        r"dinov2(?:_with_registers)?\.",
        family="dinov2",
    ),
    Scheme(
        "Hugging Face",
        r"(^|\.)embeddings\.distillation_token$",
        (*_PLAIN, *_DISTILLED),
        r"deit\.",
        family="deit",
    ),
    HUGGING_FACE,
    Scheme("Hugging Face", r"(^|\.)pre_layrnorm\.", _WITH_TEXT, r"vision_model\.", family="clip"),
    Scheme(
        "Hugging Face",
        r"(^|\.)embeddings\.patch_embedding\.",
        _WITH_TEXT,
        r"vision_model\.",
        family="siglip",
    ),
    Scheme("psa", r"^gn8_3\.", _PSA, convert=conv_names.psa_affinity),
    Scheme("psa", r"^conv1_1\.", _PSA, convert=conv_names.from_psa),
    Scheme(
        "torchvision", r"^features\.28\.", _TORCHVISION_VGG, convert=conv_names.from_torchvision_vgg
    ),
    Scheme(
        "torchvision",
        r"^layer1\.0\.conv1\.",
        _TORCHVISION_RESNET,
        convert=conv_names.from_torchvision_resnet,
    ),
    Scheme("[Re]", r"^feat_conv\."),  # AffinityNet, which timm does not have
    Scheme("vitx", r"^branches\.0\.feat_conv\."),  # AffinityNet on several levels
    Scheme("vitx", r"^branches\.0\.linear\."),  # a segmentation network
    Scheme("vitx", r"^stages\.0\.0\."),  # a CNN
    Scheme(
        "[Re]", r"^resnet_backbone\.", ((r"resnet_backbone\.(.*)", r"patch_embed.backbone.\1"),)
    ),
    Scheme(
        "timm",
        r"^blocks\.0\.",
        (
            (r"blocks\.(\d+)\.attn\.([qkv])_proj", r"blocks.\1.attn.\2"),
            (r"blocks\.(\d+)\.gamma_([12])", r"blocks.\1.ls\2.gamma"),
            (r"blocks\.(\d+)\.mlp\.fc1_g", r"blocks.\1.mlp.gate"),
            (r"blocks\.(\d+)\.mlp\.fc1_x", r"blocks.\1.mlp.up"),
            # DINOv2's own files
            (r"mask_token", None),
            (r"register_tokens", "reg_token"),
            (r"blocks\.(\d+)\.mlp\.w12", r"blocks.\1.mlp.fc1"),
            (r"blocks\.(\d+)\.mlp\.w3", r"blocks.\1.mlp.fc2"),
            # EVA-02's own files
            (r"blocks\.(\d+)\.mlp\.w1", r"blocks.\1.mlp.gate"),
            (r"blocks\.(\d+)\.mlp\.w2", r"blocks.\1.mlp.up"),
            (r"blocks\.(\d+)\.mlp\.ffn_ln", r"blocks.\1.mlp.norm"),
            (r"(blocks\.\d+\.attn\.)?rope\.freqs_(cos|sin)", None),
        ),
    ),
)

# Models that share names with those above but compute something else: the first pattern found counts.
REFUSED: Final = (
    (r"(^|\.)layers\.\d+\.blocks\.", "a Swin Transformer"),
    (r"relative_position_bias|\.lambda_[12]$", "a BEiT or data2vec"),
    (r"\.attn\.rel_pos\.", "a ViT with relative positions"),
    (r"\.lambda_[qk][12]$", "a ViT with differential attention"),
    (r"^blocks\.\d+\.(attns|in_proj)\.", "a ViT with attention and MLP side by side"),
    (r"^patch_embed\.norm\.|(^|\.)rms_norm", "an AIMv2, whose norms are RMSNorm"),
    (r"patch_embed\.backbone\.\d+\.", "a hybrid with MobileCLIP's or another stem than R50"),
    (r"(^|\.)encoder_layer_\d+\.", "a ViT with torchvision's names, not Hugging Face's or timm's"),
    (r"conv_dw|dwconv|depthwise_conv|downsample_layers", "a ConvNeXt"),
    (r"^visual\.", "a CLIP with the names of OpenAI or open_clip, not Hugging Face's or timm's"),
    (r"storage_tokens|rope_embed\.", "a DINOv3 with Meta's names, not Hugging Face's or timm's"),
    (r"MAPHead_", "a SigLIP with the names of big_vision, not Hugging Face's or timm's"),
    (r"(^|\.)decoder", "a masked autoencoder from pre-training"),
    (r"\.[qk]_norm\.", "a ViT with normalised queries and keys"),
    (
        r"\.attn\.norm\.|inner_attn_ln",
        "a ViT with a norm inside its attention (as BEiT-3 and EVA-02's CLIP)",
    ),
    (r"mlp_tokens|MixerBlock_|token_mixing", "an MLP-Mixer"),
)
