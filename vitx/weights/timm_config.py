"""Reads timm's config.json, and refuses settings that vitx does not compute."""

import re
from collections.abc import Mapping
from typing import Any, Final

from vitx.models.registry import MODELS
from vitx.weights.files import Tensor

_LISTED: Final = 12  # arguments shown in a refusal

# Heads of the architectures whose number of heads is not width / 64, from `model_args` in
# timm/models/vision_transformer.py, vision_transformer_hybrid.py and deit.py of timm 1.0.
_HEADS: Final = (
    (r"(vit|deit3|beit3)_(huge|giant|gigantic|giantopt|so400m)_patch\d+_.*", 16),
    (r"vit_small_resnet(26d|50d_s16)_224", 8),
    (r"vit_base_patch16_gap_224", 16),
    (r"test_vit2?", 2),
    (r"test_vit[34]", 3),
)

# Arguments of timm's VisionTransformer, and the values that vitx computes; () is any value, for arguments that follow
# from the tensors, are read below, or change nothing in inference. None is timm's default everywhere.
_ARGUMENTS: Final[tuple[tuple[str, tuple[Any, ...]], ...]] = (
    (r"global_pool", ("token",)),
    (r"act_layer", ("gelu",)),
    (r"norm_layer", ("layernorm", "layer_norm", "LayerNorm")),
    (r"pos_embed", ("learn",)),
    (r"in_chans", (3,)),
    (r"(qkv|proj)_bias|class_token|final_norm", (True,)),
    (r"qk_norm|scale_(attn|mlp)_norm|pre_norm|fc_norm|init_values", (False,)),
    (r"no_embed_class|reg_tokens|pool_include_prefix", (False,)),
    (r"num_heads|img_size|embed_dim|depth|mlp_ratio|num_classes|dynamic_img_(size|pad)", ()),
    (r"((pos|patch|proj|attn)_)?drop_rate|drop_path_rate|weight_init|fix_init", ()),
    (r"pretrained(_cfg(_overlay)?|_strict)?|checkpoint_path|cache_dir", ()),
    (r"scriptable|exportable|no_jit|device|dtype", ()),
)


def read_timm(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The values of timm's config.json under the names of `metadata.Metadata`, not yet checked.

    `model_args` count before the top of the file, the top before `pretrained_cfg`, and all of them
    before the heads of `architecture`.

    Args:
      config: config.json; empty where there is none.
      tensors: the checkpoint's, with timm's names.

    Raises:
      ValueError: for a setting that vitx does not compute, by its name.
    """
    # Older files have the contents of this section at the top.
    pretrained = _section(config, "pretrained_cfg") if "pretrained_cfg" in config else config
    arguments = _section(config, "model_args")
    input_size = pretrained.get("input_size")
    if input_size is not None and not (isinstance(input_size, list) and len(input_size) == 3):
        raise ValueError(
            f"config.json: input_size must be [channels, height, width], not {input_size!r:.100}"
        )
    channels, *size = input_size or (3,)
    implied = {
        "global_pool": config.get("global_pool", pretrained.get("global_pool")),
        "in_chans": channels,
    }
    wrong = [
        f"{name:.40}={value!r:.40}"
        for name, value in (implied | arguments).items()
        if not _is_computed(name, value, tensors)
    ]
    if wrong:
        more = f" and {len(wrong) - _LISTED} more" if len(wrong) > _LISTED else ""
        listed = ", ".join(wrong[:_LISTED])
        raise ValueError(f"config.json: {listed}{more}, which vitx does not compute")
    architecture = config.get("architecture", pretrained.get("architecture"))
    if not isinstance(architecture, str | None):
        raise ValueError(f"config.json: architecture must be a text, not {architecture!r:.100}")
    heads, img_size = arguments.get("num_heads"), arguments.get("img_size")
    fixed = pretrained.get("fixed_input_size") and not arguments.get("dynamic_img_size")
    found = {
        "num_heads": _heads(architecture or "") if heads is None else heads,
        "img_size": (size or None) if img_size is None and fixed else img_size,
        "input_size": size or None,
        "mean": pretrained.get("mean"),
        "std": pretrained.get("std"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _section(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = config.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"config.json: {name} must be an object, not {value!r:.100}")
    return value


def _is_computed(name: str, value: Any, tensors: Mapping[str, Tensor]) -> bool:
    if value is None:
        return True
    if name == "patch_size":  # timm would resample patches of another size
        weight = tensors.get("patch_embed.proj.weight")
        hybrid = any(name.startswith("patch_embed.backbone.") for name in tensors)
        if hybrid or weight is None or len(weight.shape) != 4:
            return (
                True  # a hybrid's is in cells of its stem; the rest is refused where sizes are read
            )
        return value in (weight.shape[2], [weight.shape[2]] * 2)
    for pattern, values in _ARGUMENTS:
        if re.fullmatch(pattern, name):
            return not values or value in values
    return False


def _heads(architecture: str) -> int | None:
    name, _, _ = architecture.partition(".")  # after it, the data that it was trained on
    for pattern, heads in _HEADS:
        if re.fullmatch(pattern, name):
            return heads
    return MODELS[name].heads if name in MODELS else None
