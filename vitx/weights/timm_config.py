"""Reads timm's config.json, and refuses settings that vitx does not compute."""

import re
from collections.abc import Mapping
from typing import Any, Final

from vitx.models.families import MODELS
from vitx.weights.files import Tensor, listed

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
# from the tensors, are read below, or change nothing in inference. None is timm's default everywhere. A hybrid's patch
# is in cells of its stem.
_ARGUMENTS: Final[tuple[tuple[str, tuple[Any, ...]], ...]] = (
    (r"global_pool", ("token",)),
    (r"act_layer", ("gelu",)),
    (r"norm_layer", ("layernorm", "layer_norm", "LayerNorm")),
    (r"pos_embed", ("learn",)),
    (r"in_chans", (3,)),
    (r"(qkv|proj)_bias|class_token|final_norm", (True,)),
    (r"qk_norm|scale_(attn|mlp)_norm|pre_norm|fc_norm|init_values", (False,)),
    (r"no_embed_class|reg_tokens|pool_include_prefix", (False,)),
    (
        r"num_heads|img_size|patch_size|embed_dim|depth|mlp_ratio|num_classes|dynamic_img_(size|pad)",
        (),
    ),
    (r"((pos|patch|proj|attn)_)?drop_rate|drop_path_rate|weight_init|fix_init", ()),
    (r"pretrained(_cfg(_overlay)?|_strict)?|checkpoint_path|cache_dir", ()),
    (r"scriptable|exportable|no_jit|device|dtype", ()),
)


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
    usual = next((heads for pattern, heads in _HEADS if re.fullmatch(pattern, name)), None)
    if name in MODELS:
        usual = MODELS[name].heads
    heads, img_size = arguments.get("num_heads"), arguments.get("img_size")
    fixed = pretrained.get("fixed_input_size") and not arguments.get("dynamic_img_size")
    return {
        "num_heads": usual if heads is None else heads,
        "img_size": (size or None) if img_size is None and fixed else img_size,
        "input_size": size or None,
        "mean": pretrained.get("mean"),
        "std": pretrained.get("std"),
    }


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
    computed = (values for pattern, values in _ARGUMENTS if re.fullmatch(pattern, name))
    return any(not values or value in values for values in computed)
