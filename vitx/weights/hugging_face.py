"""Reads config.json and preprocessor_config.json of Hugging Face, and refuses settings that vitx does not compute."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from vitx.models.families import CLIP, HALF, IMAGENET, Statistics
from vitx.weights.files import Checkpoint
from vitx.weights.names import Named

_ACTIVATIONS: Final = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_pytorch_tanh": "tanh_gelu",
    "silu": "silu",
}


@dataclass(frozen=True)
class Family:
    """What transformers takes for granted where a family's config.json leaves it out.

    `model_types` are those of the config, () for any; `heads` without the key counts where there is a config; `usual`
    are settings that must have a value; `design` has the parts that no tensor shows.
    """

    model_types: tuple[str, ...]
    norm_eps: float
    statistics: Statistics | None = None
    heads: int | None = None
    activation: str = "gelu"
    image_size: int | None = None
    usual: Mapping[str, Any] = field(default_factory=dict)
    design: Mapping[str, Any] = field(default_factory=dict)


_BICUBIC: Final = {"resampling": "bicubic"}
FAMILIES: Final = {
    "vit": Family((), 1e-12, usual={"qkv_bias": True}),
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
    if family.model_types and model_type not in (None, *family.model_types):
        raise ValueError(
            f"config.json: model_type={model_type!r:.100}, a model that vitx does not have"
        )
    patches = named.tensors.get("patch_embed.proj.weight")
    if family.model_types and patches and len(patches.shape) == 2:
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
    mean, std = family.statistics or (None, None)
    processor = checkpoint.processor
    own |= {"mean": processor.get("image_mean", mean), "std": processor.get("image_std", std)}
    design = {"activation": _ACTIVATIONS[activation], **family.design}
    if family.model_types:
        own |= {"crop_size": _input_size(processor), "num_classes": 0}
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


def _input_size(processor: Mapping[str, Any]) -> Any:
    """The size of the input: the crop's, or without one that of the resized image, where both sides are given."""
    cropped = processor.get("do_center_crop", True) and processor.get("crop_size")
    size = cropped or processor.get("size")
    if isinstance(size, dict):
        size = [size.get("height"), size.get("width")]
        return None if None in size else size
    return size


def _not_computed(name: str, value: Any) -> ValueError:
    return ValueError(f"config.json: {name}={value!r:.100}, which vitx does not compute")
