"""timm's and transformers' ViT with a checkpoint's weights, of whatever size the checkpoint has.

Of vitx's model only the sizes are used, and strict loading holds each of them against the file's
tensors. What shapes do not tell, heads and epsilons, comes from the file or the library.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import numpy as np

from vitx.models.vit import VisionTransformer
from vitx.weights.pytorch_weights import Weights, to_transformers

_EPSILON: Final = {"timm": 1e-6, "transformers": 1e-12, "Google": 1e-6}
_HEAD_WIDTH: Final = 64


def build(
    weights: Weights,
    model: VisionTransformer,
    library: str,
    architecture: str,
    classes: int,
    dtype: np.dtype,
) -> tuple[Any, dict[str, Any]]:
    """The library's model, filled, and those of its modules whose outputs are compared, by stage.

    `architecture` is timm's name of the model, or "": then the sizes make it. Without `classes` it
    has no head. Raises whatever the library does.
    """
    told = _settings(weights, model)
    if library == "timm":
        built, parts = _timm(model, told, classes, architecture)
    else:
        built, parts = _transformers(weights, model, told, classes)
    _fill(built, weights, library, classes, dtype)
    return built.eval(), parts


def _settings(weights: Weights, model: VisionTransformer) -> dict[str, float]:
    """Heads and epsilons: the file's, else the usual ones."""
    width = model.cls_token.shape[-1]
    usual = model.blocks[0].attn.heads if width % _HEAD_WIDTH else width // _HEAD_WIDTH
    norm_eps = weights.said.get("norm_eps", _EPSILON[weights.origin])
    told = {"num_heads": usual, "norm_eps": norm_eps, "final_norm_eps": norm_eps}
    if model.stem is not None:
        told["weight_standardisation_eps"] = 1e-8
    return told | dict(weights.said)


def _timm(
    model: VisionTransformer, told: Mapping[str, float], classes: int, architecture: str
) -> tuple[Any, dict[str, Any]]:
    import timm
    import torch
    from timm.layers import PatchEmbed, StdConv2dSame
    from timm.models.resnetv2 import ResNetV2 as Backbone
    from timm.models.vision_transformer import VisionTransformer as TimmViT
    from timm.models.vision_transformer_hybrid import HybridEmbed

    size = model.preprocess.size
    if architecture:
        built = timm.create_model(architecture, num_classes=classes, img_size=size)
    else:
        width = model.cls_token.shape[-1]
        hidden = model.blocks[0].mlp.fc1.bias.shape[0]
        embed: Callable[..., Any] = PatchEmbed
        if model.stem is not None:
            convolution = partial(StdConv2dSame, eps=told["weight_standardisation_eps"])
            backbone = Backbone(
                [len(stage) for stage in model.stem.stages],
                num_classes=0,
                global_pool="",
                preact=False,
                stem_type="same",
                conv_layer=convolution,
            )
            embed = partial(HybridEmbed, backbone=backbone)
        built = TimmViT(
            img_size=size,
            patch_size=model.patch,
            num_classes=classes,
            embed_dim=width,
            depth=len(model.blocks),
            num_heads=int(told["num_heads"]),
            mlp_ratio=(hidden + 0.5) / width,  # timm rounds the product down
            norm_layer=partial(torch.nn.LayerNorm, eps=told["norm_eps"]),
            embed_layer=embed,
            weight_init="skip",
        )
        built.norm.eps = told["final_norm_eps"]
    parts = {f"blocks.{index}": block for index, block in enumerate(built.blocks)}
    stem = {"stem": built.patch_embed.backbone} if model.stem is not None else {}
    return built, stem | parts | {"norm": built.norm}


def _transformers(
    weights: Weights, model: VisionTransformer, told: Mapping[str, float], classes: int
) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoModelForImageClassification, ViTConfig

    if weights.origin == "transformers" and weights.config:
        config = ViTConfig.from_dict(dict(weights.config))
    else:
        config = ViTConfig(
            hidden_size=model.cls_token.shape[-1],
            num_hidden_layers=len(model.blocks),
            num_attention_heads=int(told["num_heads"]),
            intermediate_size=model.blocks[0].mlp.fc1.bias.shape[0],
            patch_size=model.patch,
            layer_norm_eps=told["norm_eps"],
        )
    config.image_size = list(model.preprocess.size)
    config.num_labels = classes
    # The "eager" attention takes its softmax in float32 whatever the model's type.
    built = AutoModelForImageClassification.from_config(config, attn_implementation="sdpa")
    built.vit.layernorm.eps = told["final_norm_eps"]
    layers = [module for module in built.modules() if type(module).__name__ == "ViTLayer"]
    parts = {f"blocks.{index}": layer for index, layer in enumerate(layers)}
    return built, parts | {"norm": built.vit.layernorm}


def _fill(built: Any, weights: Weights, library: str, classes: int, dtype: np.dtype) -> None:
    """Gives a PyTorch model the file's weights, all of them and no others."""
    import torch

    if weights.origin == "Google":
        built.to(torch.float64 if dtype == np.float64 else torch.float32)
        for parameter in built.parameters():
            parameter.data.fill_(torch.nan)
        built.load_pretrained(str(weights.path))
        unread = [name for name, p in built.named_parameters() if p.isnan().any()]
        if unread:
            raise ValueError(f"it does not read {', '.join(unread[:3])}")
        return
    tensors = dict(weights.tensors)
    if not classes:
        tensors = {n: a for n, a in tensors.items() if not n.startswith(("head.", "pre_logits."))}
    if library == "transformers":
        tensors = to_transformers(tensors, set(built.state_dict()))
    built.load_state_dict(
        {name: torch.from_numpy(array) for name, array in tensors.items()}, assign=True
    )


def settings_of(built: Any, parts: Mapping[str, Any]) -> dict[str, float]:
    """What the model that was built has, which need not be what was asked for."""
    block = parts["blocks.0"]
    timm = hasattr(block, "attn")
    settings = {
        "num_heads": block.attn.num_heads if timm else built.config.num_attention_heads,
        "norm_eps": (block.norm1 if timm else block.layernorm_before).eps,
        "final_norm_eps": parts["norm"].eps,
    }
    if "stem" in parts:
        settings["weight_standardisation_eps"] = parts["stem"].stem.conv.eps
    return settings
