"""Infers the design of a Vision Transformer from its tensors, and from what is specified beside them."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vitx.models.design import Design
from vitx.weights.tensor import Tensor

FirstFit = Callable[[Iterable[int]], int | None]


def design_of(
    tensors: Mapping[str, Tensor], specified: Mapping[str, Any], first_fit: FirstFit
) -> Design:
    """The design of a model.

    Args:
      tensors: with timm's names.
      specified: parts of the design that the file or a config beside it specifies; they count first.
      first_fit: the first of some numbers of tokens such that the position table has one entry for each patch and so
        many more; None where none fits.

    Raises:
      ValueError: for parts that do not fit together, or positions or norms that the tensors do not show.
    """
    names = {name.split(".", 2)[2] if name.startswith("blocks.") else name for name in tensors}
    gated = _is_gated(tensors)
    registers = _axis(tensors, "reg_token", 1)
    parts: dict[str, Any] = {
        "class_token": "cls_token" in names,
        "distillation_token": "dist_token" in names,
        "registers": registers,
        "patch_bias": "patch_embed.proj.bias" in names or "norm_pre.weight" not in names,
        "pre_norm": "norm_pre.weight" in names,
        "qkv_bias": _qkv_bias(names),
        "layer_scale": "ls1.gamma" in names,
        "mlp": "gated" if gated else "plain",
        "activation": "silu" if gated else "gelu",
        "mlp_norm": "mlp.norm.weight" in names,
        "final_norm": "norm.weight" in names or "fc_norm.weight" not in names,
        "pooling": _pooling(tensors),
        "pooled_norm": "fc_norm.weight" in names,
        "projection": _axis(tensors, "projection.weight", 0),
        "head": "each" if "head_dist.weight" in names else "pooled",
    }
    parts |= specified
    if "norm1.weight" in names and "norm1.bias" not in names:
        raise ValueError(
            "this is a ViT whose norms are RMSNorm (no blocks.0.norm1.bias), which vitx does not have"
        )
    if "qkv_bias" not in specified and _may_have_post_norms(parts):
        raise ValueError(
            "this looks like a ViT with norms after attention and MLP (fc_norm.weight, but no blocks.0.attn.qkv.bias), "
            "which vitx does not have; timm's config.json of any other has qkv_bias in model_args"
        )
    if "rotary" not in specified:
        parts |= _rotary(names, parts)
    if "pos_embed" not in names and parts.get("rotary", "none") == "none" != parts.get("positions"):
        raise ValueError("- pos_embed is missing, without which the model's sizes are not known")
    if "positions" not in specified:
        parts["positions"] = _positions(parts, "pos_embed" in names, first_fit)
    return Design(**parts)


def _axis(tensors: Mapping[str, Tensor], name: str, axis: int) -> int:
    """Length of a tensor's axis; 0 without the tensor."""
    shape = tensors[name].shape if name in tensors else ()
    return shape[axis] if axis < len(shape) else 0


def _is_gated(tensors: Mapping[str, Tensor]) -> bool:
    """Whether an MLP's last layer takes half of what the first gives."""
    hidden = _axis(tensors, "blocks.0.mlp.fc2.weight", 1)
    return hidden > 0 and _axis(tensors, "blocks.0.mlp.fc1.weight", 0) == 2 * hidden


def _qkv_bias(names: set[str]) -> str:
    return "all" if "attn.qkv.bias" in names else "no key" if "attn.q_bias" in names else "none"


def _pooling(tensors: Mapping[str, Tensor]) -> str:
    if any(name.startswith("attn_pool.") for name in tensors):
        return "attention"
    if "dist_token" in tensors:
        return "class+distillation"
    if "fc_norm.weight" in tensors or "cls_token" not in tensors:
        return "mean"
    width = _axis(tensors, "cls_token", 2)
    return "class+mean" if _axis(tensors, "head.weight", 1) == 2 * width else "class"


def _rotary(names: set[str], parts: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary positions, which no tensor holds: DINOv3's or EVA-02's, by the parts that these have together."""
    table = "pos_embed" in names
    if parts["qkv_bias"] == "all":
        return {}
    dinov3 = parts["layer_scale"] and parts["registers"] and not parts["pooled_norm"]
    if not table and dinov3:
        return {"rotary": "dinov3", "rotary_base": 100.0}
    if parts["qkv_bias"] == "no key":
        if table and parts["mlp"] == "gated" and not parts["registers"]:
            return {"rotary": "eva", "rotary_base": 10000.0}
        what = (
            "an EVA-02 without its position table"
            if parts["mlp"] == "gated"
            else "an EVA of 2022, or another ViT whose keys alone have no bias"
        )
        raise ValueError(f"this is {what} (tensor blocks.0.attn.q_bias), which vitx does not have")
    return {}


def _may_have_post_norms(parts: Mapping[str, Any]) -> bool:
    """Whether the tensors are named as those of timm's vit_base_patch16_rpn_224, and of no other published file."""
    others = parts["layer_scale"] or parts["registers"]
    return parts["pooled_norm"] and parts["qkv_bias"] == "none" and not others


def _positions(parts: Mapping[str, Any], table: bool, first_fit: FirstFit) -> str:
    """The tokens that the position table has entries for, by its length."""
    if not table:
        return "none"
    tokens = parts["class_token"] + parts["distillation_token"]
    entries = {"all": tokens + parts["registers"], "no registers": tokens, "patches": 0}
    fitting = first_fit(entries.values())
    return next((kind for kind, count in entries.items() if count == fitting), "all")
