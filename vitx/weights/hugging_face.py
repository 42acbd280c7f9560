"""Reads config.json and preprocessor_config.json of Hugging Face, and refuses settings that vitx does not compute."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from vitx.models.families import CLIP, HALF, IMAGENET, Statistics
from vitx.weights.files import Checkpoint
from vitx.weights.names import Named

_PIXEL: Final = 1 / 255
_FILTERS: Final = dict(
    enumerate(("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"))
)  # by Pillow's number
_ACTIVATIONS: Final = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_pytorch_tanh": "tanh_gelu",
    "silu": "silu",
}


@dataclass(frozen=True)
class Family:
    """What transformers takes for granted where a family's config.json leaves it out.

    `model_types` are those of the config; `heads` without the key counts where there is a config; `usual`
    are settings that must have a value; `design` has the parts that no tensor shows; `keeps_aspect` is whether its
    processor takes one number as the size of the shorter side.
    """

    model_types: tuple[str, ...]
    norm_eps: float
    statistics: Statistics | None = None
    heads: int | None = None
    activation: str = "gelu"
    image_size: int | None = None
    usual: Mapping[str, Any] = field(default_factory=dict)
    design: Mapping[str, Any] = field(default_factory=dict)
    keeps_aspect: bool = False


_BICUBIC: Final = {"resampling": "bicubic"}
FAMILIES: Final = {
    "vit": Family(("vit", "vit_msn", "vit_mae", "ijepa", "deit"), 1e-12, usual={"qkv_bias": True}),
    "deit": Family(  # distilled; the others are ViTs there too
        ("deit",),
        1e-12,
        IMAGENET,
        heads=12,
        usual={"qkv_bias": True},
        design=_BICUBIC | {"positions": "all"},
    ),
    "dinov2": Family(
        ("dinov2", "dinov2_with_registers"),
        1e-6,
        IMAGENET,
        heads=12,
        usual={"qkv_bias": True},
        design={"positions": "no registers"},
        keeps_aspect=True,
    ),
    "dinov3": Family(
        ("dinov3_vit",),
        1e-5,
        IMAGENET,
        heads=6,
        image_size=224,
        usual={"mlp_bias": True, "proj_bias": True},
        design={"positions": "none", "rotary": "dinov3"},
    ),
    "clip": Family(
        ("clip", "clip_vision_model"),
        1e-5,
        CLIP,
        heads=12,
        activation="quick_gelu",
        design=_BICUBIC | {"positions": "all"},
        keeps_aspect=True,
    ),
    "siglip": Family(
        ("siglip", "siglip_vision_model"),
        1e-6,
        HALF,
        heads=12,
        activation="gelu_pytorch_tanh",
        usual={"vision_use_head": True},
        design=_BICUBIC | {"positions": "all", "pooling": "attention"},
    ),
}


def read_hugging_face(checkpoint: Checkpoint, named: Named) -> dict[str, Any]:
    """The values of Hugging Face's files under the names of `metadata.Metadata`, not yet checked."""
    family, config = FAMILIES[named.scheme.family], checkpoint.config
    model_type = config.get("model_type")
    if model_type not in (None, *family.model_types):
        raise ValueError(
            f"config.json: model_type={model_type!r:.100}, a model that vitx does not have"
        )
    patches = named.tensors.get("patch_embed.proj.weight")
    if named.scheme.family in ("clip", "siglip") and "classifier.weight" in named.original:
        raise ValueError(
            "this is a classifier on the mean of the patches of CLIP or SigLIP, which vitx does not have"
        )
    if patches and len(patches.shape) == 2:
        raise ValueError("this is a NaFlex SigLIP 2, whose images vary in shape: vitx has no such")
    nested = config.get("vision_config")
    section = nested if isinstance(nested, dict) else config
    if section.get("query_bias", True) != section.get("value_bias", True):
        raise ValueError("config.json: query_bias and value_bias differ, which vitx does not have")
    activation = section.get("hidden_act", family.activation)
    for name, value in section.items():
        if value != family.usual.get(name, value):
            raise _not_computed(name, value)
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise _not_computed("hidden_act", activation)
    own = {
        "num_heads": section.get("num_attention_heads", family.heads if config else None),
        "norm_eps": section.get("layer_norm_eps", None),
        "image_size": section.get("image_size", family.image_size),
    }
    if own["norm_eps"] is None:
        own["norm_eps"] = family.norm_eps
    own |= _pixels(checkpoint.processor, family.statistics)
    own |= _evaluation(checkpoint.processor, family.keeps_aspect)
    design = {"activation": _ACTIVATIONS[activation], **family.design}
    if named.scheme.family != "vit":
        own |= {"crop_size": _input_size(checkpoint.processor), "num_classes": 0}
    return own | {"design": _refined(design, section, named)}


def _refined(design: dict[str, Any], section: Mapping[str, Any], named: Named) -> dict[str, Any]:
    """The design of a family by what its members differ in."""
    names = named.original.keys()
    if named.scheme.family == "deit" and "classifier.weight" in names:
        design["pooling"] = (
            "class"  # DeiTForImageClassification leaves the distillation token unread
        )
    if named.scheme.family == "dinov2":
        if "reg_token" not in named.tensors:
            design |= _BICUBIC
        if any(".weights_in." in name for name in names):
            design["activation"] = "silu"
    if named.scheme.family == "dinov3":
        base = section.get("rope_theta", 100.0)
        design["rotary_base"] = float(base) if type(base) is int else base
        if not section and any(".gate_proj." in name for name in names):
            design["activation"] = "silu"
    return design


def _pixels(processor: Mapping[str, Any], usual: Statistics | None) -> dict[str, Any]:
    """Mean and std of pixels in [0, 1], of what a processor subtracts from pixels in [0, 255] times a factor."""
    mean, std = (list(part) for part in usual or HALF)
    own: dict[str, Any] = {"mean": mean, "std": std} if usual else {}
    own |= {k: v for k in own or ("mean", "std") if (v := processor.get(f"image_{k}")) is not None}
    if processor.get("do_normalize") is False:
        own = {"mean": [0.0] * 3, "std": [1.0] * 3}
    factor = processor.get("rescale_factor", _PIXEL) if processor.get("do_rescale", True) else 1
    if not isinstance(factor, int | float) or not factor > 0:
        raise ValueError(f"preprocessor_config.json: rescale_factor={factor!r:.100}")
    if math.isclose(factor, _PIXEL, rel_tol=1e-6):
        return own
    own = {"mean": mean, "std": std} | own
    try:
        return {name: [x / (255 * factor) for x in values] for name, values in own.items()}
    except TypeError:  # no numbers, which the check of the values names
        return own


def _evaluation(processor: Mapping[str, Any], keeps_aspect: bool) -> dict[str, Any]:
    """How a processor resizes and crops pictures; nothing without a processor."""
    found: dict[str, Any] = {}
    if processor.get("do_resize") is False:  # pictures come at the input's size
        return found
    if (filter_ := processor.get("resample")) is not None:
        if type(filter_) is not int or filter_ not in _FILTERS:
            raise ValueError(f"preprocessor_config.json: resample={filter_!r:.100}")
        found["interpolation"] = _FILTERS[filter_]
    size, crop = processor.get("size"), _input_size(processor)
    shortest = size
    if isinstance(size, dict):
        keeps_aspect, shortest = (
            "shortest_edge" in size,
            size.get("shortest_edge", size.get("height")),
        )
    if shortest and keeps_aspect:
        found["crop_mode"] = "center"
    side = crop[0] if isinstance(crop, list) else crop
    if isinstance(side, int) and isinstance(shortest, int) and 0 < side <= shortest:
        found["crop_pct"] = side / shortest
    return found


def _input_size(processor: Mapping[str, Any]) -> Any:
    """The size of the input: the crop's, or without one that of the resized image, where both sides are given."""
    cropped = processor.get("do_center_crop", True) and processor.get("crop_size")
    size = cropped or processor.get("size")
    if isinstance(size, dict) and "shortest_edge" in size:
        return None
    if isinstance(size, dict):
        size = [size.get("height"), size.get("width")]
        return None if None in size else size
    return size


def _not_computed(name: str, value: Any) -> ValueError:
    return ValueError(f"config.json: {name}={value!r:.100}, which vitx does not compute")
