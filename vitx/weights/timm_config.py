"""Reads timm's config.json, and refuses settings that vitx does not compute."""

import re
from collections.abc import Mapping
from typing import Any, Final

from vitx.models.families import CLIP, IMAGENET, MODELS
from vitx.weights.files import listed
from vitx.weights.tensor import Tensor

# Heads of the architectures whose number of heads is not width / 64, from `model_args` in
# timm/models/vision_transformer.py, vision_transformer_hybrid.py and deit.py of timm 1.0.
_HEADS: Final = (
    (r"(vit|deit3|beit3)_(huge|giant|gigantic|giantopt|so400m)_patch\d+_.*", 16),
    (r"vit_huge_plus_patch16_dinov3.*", 20),
    (r"vit_small_resnet(26d|50d_s16)_224", 8),
    (r"vit_base_patch16_gap_224", 16),
    (r"vit_7b_patch16_dinov3.*", 32),
    (r"test_vit2?", 2),
    (r"test_vit[34]", 3),
)

# Architectures whose activation is not GELU, or SiLU where the MLP is gated.
_ACTIVATIONS: Final = (
    (r".*_clip_quickgelu_.*", "quick_gelu"),
    (r"vit_(base_patch32|so400m_patch16|giantopt_patch16)_siglip_.*", "tanh_gelu"),
    (r"vit_large_patch16_siglip_(gap_)?512", "tanh_gelu"),
)
_ACTIVATION_NAMES: Final = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_tanh": "tanh_gelu",
    "silu": "silu",
}
_POOLING: Final = {"token": "class", "avg": "mean", "map": "attention"}
# Architectures whose number of heads is width / 64, by the widths that they are made with: a file of another width has
# been changed, and with it maybe the heads.
_SIZES: Final = r"(?:vit|deit|deit3|eva|eva02|flexivit)_([a-z0-9]+)(?:_.*)?"
_WIDTHS: Final = {
    "tiny": (192,),
    "xsmall": (256,),
    "wee": (256,),
    "little": (320,),
    "small": (384,),
    "medium": (512,),
    "mediumd": (512,),
    "betwixt": (640,),
    "base": (768, 896),
    "so150m2": (832,),
    "so150m": (896,),
    "large": (1024,),
    "intern300m": (1024,),
    "giant": (1536,),  # DINOv2's, not those of 1408
}
# Architectures with tensors like those of vitx's families, but other positions, or norms elsewhere.
_NOT_COMPUTED: Final = r"rope|_pe_|naflex|_rpn_|radio|^beit|^eva_giant|^eva02_enormous|^test_vit3"
_NO_FINAL_NORM: Final = r"vit_intern300m_.*"

# Arguments of timm's VisionTransformer and Eva, and the values that vitx computes; () is any value, for arguments that
# are read below, or change nothing in inference. None is timm's default everywhere. A hybrid's patch is in cells of its
# stem.
_ARGUMENTS: Final[tuple[tuple[str, tuple[Any, ...]], ...]] = (
    (r"global_pool", tuple(_POOLING)),
    (r"act_layer", tuple(_ACTIVATION_NAMES)),
    (r"norm_layer", ("layernorm", "layer_norm", "LayerNorm")),
    (r"pos_embed", ("learn",)),
    (r"in_chans", (3,)),
    (r"proj_bias", (True,)),
    (r"qk_norm|scale_(attn(_inner)?|norm)|pool_include_prefix", (False,)),
    (r"ref_feat_shape", ([16, 16],)),
    (r"no_embed_class|qkv_fused|dynamic_img_(size|pad)", ()),
    (r"num_heads|img_size|patch_size|embed_dim|depth|mlp_ratio|num_classes", ()),
    (r"((pos|patch|proj|attn)_)?drop_rate|drop_path_rate|weight_init|fix_init", ()),
    (r"pretrained(_cfg(_overlay)?|_strict)?|checkpoint_path|cache_dir", ()),
    (r"scriptable|exportable|no_jit|device|dtype", ()),
)
# Arguments that are computed where they agree with the tensors, which have such a name if these are set, or above 0.
_PARTS: Final = {
    "qkv_bias": r"\.(qkv\.bias|q_bias)$",
    "init_values": r"\.ls1\.gamma$",
    "class_token": r"^cls_token$",
    "reg_tokens": r"^reg_token$",
    "num_reg_tokens": r"^reg_token$",
    "pre_norm": r"^norm_pre\.",
    "final_norm": r"^(fc_)?norm\.",
    "fc_norm": r"^fc_norm\.",
    "use_fc_norm": r"^fc_norm\.",
    "scale_mlp": r"\.mlp\.norm\.",
    "scale_mlp_norm": r"\.mlp\.norm\.",
    "use_abs_pos_emb": r"^pos_embed$",
}


def read_timm(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The values of timm's config.json under the names of `metadata.Metadata`, not yet checked.

    `model_args` count before the top of the file, the top before `pretrained_cfg`, and all of them
    before the heads of `architecture`.
    """
    section = _get(config, "pretrained_cfg", dict, "an object")
    pretrained = config if section is None else section  # as in older files
    arguments = _get(config, "model_args", dict, "an object") or {}
    channels, *size = _get(pretrained, "input_size", list, "[channels, height, width]") or (3,)
    implied = {
        "global_pool": config.get("global_pool", pretrained.get("global_pool")),
        "in_chans": channels,
    }
    wrong = [
        f"{name:.40}={value!r:.40}"
        for name, value in (implied | arguments).items()
        if value is not None and not _is_computed(name, value, tensors)
    ]
    if wrong:
        raise ValueError(f"config.json: {listed(wrong)}, which vitx does not compute")
    architecture = _get({**pretrained, **config}, "architecture", str, "a text") or ""
    name, _, _ = architecture.partition(".")  # after it, the data that it was trained on
    if re.search(_NOT_COMPUTED, name):
        raise ValueError(f"config.json: architecture={name!r:.100}, which vitx does not have")
    usual = _usual_heads(name, tensors)
    heads, img_size = arguments.get("num_heads"), arguments.get("img_size")
    fixed = pretrained.get("fixed_input_size") and not arguments.get("dynamic_img_size")
    table = "pos_embed" in tensors
    clip = "norm_pre.weight" in tensors and (not name or "clip" in name)
    mean, std = _statistics(tensors)
    return {
        "num_heads": usual if heads is None else heads,
        "norm_eps": 1e-5 if not table or clip else None,  # timm's DINOv3 and CLIP
        "img_size": (size or None) if img_size is None and fixed else img_size,
        "input_size": size or (None if table else 256),
        "mean": pretrained.get("mean", mean),
        "std": pretrained.get("std", std),
        **_evaluation(pretrained),
        "num_classes": _no_classes(config, pretrained, arguments),
        "design": _design(implied | arguments, name, tensors),
    }


def _usual_heads(architecture: str, tensors: Mapping[str, Tensor]) -> int | None:
    """The heads of an architecture, where the tensors have its width; None where that does not tell."""
    norm = tensors.get("blocks.0.norm1.weight")
    width = norm.shape[0] if norm and norm.shape else None
    if architecture in MODELS and width in (None, MODELS[architecture].width):
        return MODELS[architecture].heads
    size = re.fullmatch(_SIZES, architecture)
    if size and width in _WIDTHS.get(size[1], ()):
        return width // 64
    return next((heads for pattern, heads in _HEADS if re.fullmatch(pattern, architecture)), None)


def _evaluation(pretrained: Mapping[str, Any]) -> dict[str, Any]:
    """How timm resizes and crops pictures for a model; nothing where the config does not have it."""
    names = ("interpolation", "crop_pct", "crop_mode")
    found = {name: pretrained[name] for name in names if pretrained.get(name) is not None}
    # timm's own defaults, where there is anything of the kind.
    usual = {"crop_mode": "center", "crop_pct": 0.875, "interpolation": "bicubic"}
    return usual | found if found else {}


def _design(
    arguments: Mapping[str, Any], architecture: str, tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    """The parts of a design that arguments and the architecture specify."""
    usual = (act for pattern, act in _ACTIVATIONS if re.fullmatch(pattern, architecture))
    activation = _ACTIVATION_NAMES.get(arguments.get("act_layer") or "", next(usual, None))
    pooling = _POOLING.get(arguments.get("global_pool") or "")
    if pooling is None and "pos_embed" not in tensors and "fc_norm.weight" not in tensors:
        pooling = "mean"  # of timm's DINOv3
    if "dist_token" in tensors:  # of timm's distilled class, whatever the argument
        pooling = None
    parts = {"activation": activation, "pooling": pooling}
    if "pos_embed" in tensors:
        parts["positions"] = _positions(arguments, architecture)
    if arguments.get("qkv_bias") is False:
        parts["qkv_bias"] = "none"
    known = {k: v for k, v in parts.items() if v}
    no_norm = arguments.get("final_norm") is False or re.fullmatch(_NO_FINAL_NORM, architecture)
    return known | {"final_norm": False} if no_norm else known


def _positions(arguments: Mapping[str, Any], architecture: str) -> str | None:
    """The tokens that have positions, where an argument or an architecture that vitx has specifies them."""
    if isinstance(only_patches := arguments.get("no_embed_class"), bool):
        return "patches" if only_patches else "all"
    return MODELS[architecture].design.positions if architecture in MODELS else None


def _statistics(tensors: Mapping[str, Tensor]) -> tuple[Any, Any]:
    """Mean and std that the families of timm with these tensors are published with; (None, None) for a plain ViT."""
    names = {name.split(".", 2)[2] if name.startswith("blocks.") else name for name in tensors}
    eva02 = "attn.q_bias" in names and "pos_embed" in names
    if "norm_pre.weight" in names or eva02:
        return CLIP
    dino_or_deit3 = "ls1.gamma" in names and "fc_norm.weight" not in names
    return IMAGENET if dino_or_deit3 or "dist_token" in names else (None, None)


def _no_classes(*sections: Mapping[str, Any]) -> int | None:
    """0 where the last section that has num_classes has 0."""
    found = [section["num_classes"] for section in sections if "num_classes" in section]
    return 0 if found and type(found[-1]) is int and found[-1] == 0 else None


def _get(config: Mapping[str, Any], name: str, kind: type, what: str) -> Any:
    value = config.get(name)
    if isinstance(value, kind | None):
        return value
    raise ValueError(f"config.json: {name} must be {what}, not {value!r:.100}")


def _is_computed(name: str, value: Any, tensors: Mapping[str, Tensor]) -> bool:
    weight = tensors.get("patch_embed.proj.weight")
    hybrid = any(name.startswith("patch_embed.backbone.") for name in tensors)
    if name == "patch_size" and weight and not hybrid:
        sides = list(weight.shape[2:])
        return value in (sides, *sides[:1])  # timm would resample patches of another size
    if name in _PARTS:
        return bool(value) == any(re.search(_PARTS[name], tensor) for tensor in tensors)
    computed = (values for pattern, values in _ARGUMENTS if re.fullmatch(pattern, name))
    return any(not values or value in values for values in computed)
