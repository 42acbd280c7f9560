"""Builds transformers' DINOv2, CLIP and SigLIP with a checkpoint's weights, as transformers itself takes them."""

from collections.abc import Mapping
from typing import Any, Final

from vitx.weights.names import Named
from vitx.weights.pytorch_models import filled, numbered, torch_tensors

# By `model_type` of config.json, or of its vision_config: the classes of config and model, and the names of its blocks'
# list and last norm.
_CLASSES: Final = {
    "dinov2": ("Dinov2Config", "Dinov2Model", "Dinov2Layer", "layernorm"),
    "dinov2_with_registers": (
        "Dinov2WithRegistersConfig",
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersLayer",
        "layernorm",
    ),
    "clip_vision_model": (
        "CLIPVisionConfig",
        "CLIPVisionModel",
        "CLIPEncoderLayer",
        "post_layernorm",
    ),
    "siglip_vision_model": (
        "SiglipVisionConfig",
        "SiglipVisionModel",
        "SiglipEncoderLayer",
        "post_layernorm",
    ),
}


def family_model(
    named: Named, config: Mapping[str, Any], precision: str
) -> tuple[Any, dict[str, Any]]:
    """The model of transformers, and its modules as in `pytorch_models.timm_model`.

    Raises:
      ValueError: for a family that is not compared, or tensors or a config that transformers does not take.
    """
    import transformers

    section = config.get("vision_config", config)
    kind = section.get("model_type", f"{config.get('model_type')}_vision_model")
    if kind not in _CLASSES:
        raise ValueError(
            f"only ViT, DINOv2, CLIP and SigLIP are compared with transformers, not model_type={kind!r:.100}"
        )
    of_config, of_model, of_block, norm = _CLASSES[kind]
    sizes = dict(section)
    projection = named.original.get("visual_projection.weight")
    if projection is not None:
        of_model, sizes["projection_dim"] = "CLIPVisionModelWithProjection", projection.shape[0]
    used = {
        name: tensor
        for name, tensor in named.original.items()
        if named.scheme.timm_name(name) is not None or name.endswith("mask_token")
    }
    settings = getattr(transformers, of_config).from_dict(sizes)
    state = torch_tensors(used, 1, precision)
    built = filled(getattr(transformers, of_model), settings, state)
    blocks = [module for module in built.modules() if type(module).__name__ == of_block]
    last = next(module for name, module in built.named_modules() if name.split(".")[-1] == norm)
    return built, numbered(blocks) | {"norm": last}
