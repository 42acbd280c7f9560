"""Reads timm's config.json, and refuses settings that vitx does not compute."""

import re
from collections.abc import Callable, Iterator, Mapping
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


def _is_off(value: Any) -> bool:
    return value is None or value is False or value == 0


def _is_on(value: Any) -> bool:
    return value is None or value is True


# What vitx computes, by the name of the argument of timm's VisionTransformer; None is timm's
# default everywhere.
_COMPUTED: Final[dict[str, Callable[[Any], bool]]] = {
    "global_pool": lambda value: value is None or value == "token",
    "act_layer": lambda value: value is None or value == "gelu",
    "norm_layer": lambda value: value is None or _plain(value) == "layernorm",
    "pos_embed": lambda value: value is None or value == "learn",
    "in_chans": lambda value: value is None or value == 3,
    **dict.fromkeys(("qkv_bias", "proj_bias", "class_token", "final_norm"), _is_on),
    **dict.fromkeys(
        (
            *("qk_norm", "scale_attn_norm", "scale_mlp_norm", "init_values", "no_embed_class"),
            *("reg_tokens", "pre_norm", "fc_norm", "pool_include_prefix"),
        ),
        _is_off,
    ),
}
# What the tensors say, `facts` reads, or changes nothing in inference at the model's own size.
_OTHER: Final = frozenset(
    (
        *("num_heads", "img_size", "patch_size", "embed_dim", "depth", "mlp_ratio", "num_classes"),
        *("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate"),
        *("drop_path_rate", "weight_init", "fix_init", "dynamic_img_size", "dynamic_img_pad"),
        *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict"),
        *("checkpoint_path", "cache_dir", "scriptable", "exportable", "no_jit", "device", "dtype"),
    )
)


def read_timm(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What timm's config.json says, by the names of `Facts`, still unchecked.

    `model_args` count before the top of the file, that before `pretrained_cfg`, and all before
    what `architecture` stands for.

    Args:
      config: config.json; empty where there is none.
      tensors: the checkpoint's, with timm's names.

    Raises:
      ValueError: for a value that changes what the model computes in a way that vitx does not
        have, by its name.
    """
    pretrained = _section(config, "pretrained_cfg")
    arguments = _section(config, "model_args")
    _refuse(list(_not_computed(arguments, tensors)), "model_args ")
    if "global_pool" not in arguments:
        pool = config.get("global_pool", pretrained.get("global_pool"))
        if not _COMPUTED["global_pool"](pool):
            _refuse([f"global_pool={pool!r:.100}"])
    # Without a section of its own, what was trained with is at the top.
    source = pretrained if "pretrained_cfg" in config else config
    said = {name: source[name] for name in ("mean", "std") if name in source}
    for name in ("num_heads", "img_size"):
        if arguments.get(name) is not None:
            said[name] = arguments[name]
    architecture = config.get("architecture", pretrained.get("architecture"))
    if not isinstance(architecture, str | None):
        raise ValueError(f"config.json: architecture must be a text, not {architecture!r:.100}")
    if architecture is not None and (heads := _heads(architecture)) is not None:
        said.setdefault("num_heads", heads)
    return said


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = config.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"config.json: {name} must be an object, not {value!r:.100}")
    return value


def _not_computed(arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    for name, value in arguments.items():
        if name in _COMPUTED:
            known = _COMPUTED[name](value)
        elif name == "patch_size":
            known = _fits_patch(value, tensors)
        else:
            known = name in _OTHER or value is None
        if not known:
            yield f"{name:.40}={value!r:.40}"


def _fits_patch(value: Any, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the patches are those of the tensors; timm would resample them."""
    hybrid = any(name.startswith("patch_embed.backbone.") for name in tensors)
    weight = tensors.get("patch_embed.proj.weight")
    if value is None or hybrid or weight is None or len(weight.shape) != 4:
        return True  # a hybrid's is of its stem's cells; the rest is refused where sizes are read
    patch = weight.shape[2]
    return value in (patch, [patch, patch])


def _refuse(found: list[str], where: str = "") -> None:
    if found:
        more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        listed = ", ".join(found[:_LISTED])
        raise ValueError(f"config.json: {where}{listed}{more}, which vitx does not compute")


def _heads(architecture: str) -> int | None:
    name, _, _ = architecture.partition(".")  # after it, the data that it was trained on
    for pattern, heads in _HEADS:
        if re.fullmatch(pattern, name):
            return heads
    return MODELS[name].heads if name in MODELS else None


def _plain(name: Any) -> str:
    """A layer's name as timm reads it: "LayerNorm" and "layer_norm" are one."""
    return name.replace("_", "").lower() if isinstance(name, str) else ""
