"""Builds timm's and transformers' ViT with a checkpoint's weights.

Where a file has the library's names, the library takes the tensors as they are in the file, so that a mistake in vitx's
tables of names shows as a difference; files with the other library's names go through these tables. Heads and epsilons
come from the file or the library. Sizes come from vitx's model, and strict loading checks them against the tensors.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from vitx.models.vit import VisionTransformer
from vitx.weights.build import usual_heads
from vitx.weights.metadata import Metadata
from vitx.weights.schemes import HUGGING_FACE
from vitx.weights.tensor import Tensor


def timm_model(
    model: VisionTransformer,
    metadata: Metadata,
    architecture: str,
    classes: int,
    arguments: Mapping[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """The model of timm without weights, and its modules whose outputs are compared; without `classes` no head."""
    import timm
    import torch
    from timm.layers import PatchEmbed, StdConv2dSame
    from timm.models.resnetv2 import ResNetV2 as Backbone
    from timm.models.vision_transformer import VisionTransformer as TimmViT
    from timm.models.vision_transformer_hybrid import HybridEmbed

    size, stem = model.preprocess.size, model.stem
    norm_eps = metadata.norm_eps or 1e-6
    if architecture:
        built = timm.create_model(
            architecture, **{**arguments, "num_classes": classes, "img_size": size}
        )
    else:
        embed: Callable[..., Any] = PatchEmbed
        if stem is not None:
            standardised = partial(StdConv2dSame, eps=metadata.weight_standardisation_eps or 1e-8)
            backbone = Backbone(
                [len(stage) for stage in stem.stages],
                num_classes=0,
                global_pool="",
                preact=False,
                stem_type="same",
                conv_layer=standardised,
            )
            embed = partial(HybridEmbed, backbone=backbone)
        width, hidden, heads = _sizes(model, metadata)
        built = TimmViT(
            img_size=size,
            patch_size=model.patch,
            num_classes=classes,
            embed_dim=width,
            depth=len(model.blocks),
            num_heads=heads,
            mlp_ratio=(hidden + 0.5) / width,  # timm rounds the product down
            norm_layer=partial(torch.nn.LayerNorm, eps=norm_eps),
            embed_layer=embed,
            weight_init="skip",
        )
        built.norm.eps = metadata.final_norm_eps or norm_eps
    first = {"stem": built.patch_embed.backbone} if stem is not None else {}
    return built, first | numbered(built.blocks) | {"norm": built.norm}


def transformers_model(
    model: VisionTransformer,
    metadata: Metadata,
    native: Mapping[str, Any] | None,
    state: dict[str, Any],
    classes: int,
) -> tuple[Any, dict[str, Any]]:
    """The model of transformers with the tensors `state`, and its modules as in `timm_model`.

    `native` is the config.json of a file with transformers' names, None for timm's names.
    """
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    width, hidden, heads = _sizes(model, metadata)
    norm_eps = metadata.norm_eps or 1e-6
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": heads,
        "intermediate_size": hidden,
        "patch_size": model.patch,
    }
    own = {"layer_norm_eps": norm_eps} if native is None else dict(native)
    vit = ViTConfig.from_dict(sizes | own)
    vit.image_size, vit.num_labels = list(model.preprocess.size), classes
    if native is None:
        with torch.device("meta"):
            names = ViTForImageClassification(vit).state_dict()
        state = _renamed(state, names)
    else:
        state = {n: array for n, array in state.items() if HUGGING_FACE.timm_name(n) is not None}
    built = filled(ViTForImageClassification, vit, state)
    if native is None:
        built.vit.layernorm.eps = metadata.final_norm_eps or norm_eps
    layers = (module for module in built.modules() if type(module).__name__ == "ViTLayer")
    return built, numbered(layers) | {"norm": built.vit.layernorm}


def filled(of_model: Any, config: Any, state: dict[str, Any]) -> Any:
    """A model of transformers with the tensors `state`, none missing and none left over."""
    from transformers import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    built, report = of_model.from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=next(iter(state.values())).dtype,
        # The "eager" attention takes its softmax in float32 whatever the model's type.
        attn_implementation="sdpa",
        output_loading_info=True,
    )
    if wrong := {*report["missing_keys"], *report["unexpected_keys"]}:
        raise ValueError(f"missing or unknown: {', '.join(sorted(wrong)[:3])}")
    return built


def settings_of(built: Any, parts: Mapping[str, Any]) -> dict[str, float]:
    """Heads and epsilons that a PyTorch model has, whatever it was asked for."""
    block = parts["blocks.0"]
    timm = hasattr(block, "attn")
    names = ("norm1", "layernorm_before", "layer_norm1")
    first = next(getattr(block, name) for name in names if hasattr(block, name))
    settings = {
        "num_heads": block.attn.num_heads if timm else built.config.num_attention_heads,
        "norm_eps": first.eps,
        "final_norm_eps": parts["norm"].eps,
    }
    if "stem" in parts:
        settings["weight_standardisation_eps"] = parts["stem"].stem.conv.eps
    return settings


def fill_from_npz(built: Any, path: Path, precision: str) -> None:
    """Fills timm's model by timm's own reader of Google's files, and checks that it read everything."""
    import torch

    built.to(getattr(torch, precision))
    for parameter in built.parameters():
        parameter.data.fill_(torch.nan)
    built.load_pretrained(str(path))
    unread = [name for name, parameter in built.named_parameters() if parameter.isnan().any()]
    if unread:
        raise ValueError(f"it does not read {', '.join(unread[:3])}")


def torch_tensors(tensors: Mapping[str, Tensor], classes: int, precision: str) -> dict[str, Any]:
    """PyTorch's tensors; without those of a head where there are no `classes`."""
    import torch

    head = () if classes else ("head.", "pre_logits.", "classifier.")
    return {
        name: torch.from_numpy(tensor.read().astype(precision))
        for name, tensor in tensors.items()
        if not name.startswith(head)
    }


def numbered(blocks: Iterable[Any]) -> dict[str, Any]:
    """Blocks under their names in a comparison."""
    return {f"blocks.{index}": block for index, block in enumerate(blocks)}


def _sizes(model: VisionTransformer, metadata: Metadata) -> tuple[int, int, int]:
    """Width, hidden width and heads: the file's, else the usual number, else vitx's (then reported as assumed)."""
    width = model.width
    usual = usual_heads(width, model.design) or model.blocks[0].attn.heads
    return width, model.blocks[0].mlp.fc2.kernel.shape[0], metadata.num_heads or usual


def _renamed(tensors: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Tensors with timm's names under the `names` of transformers' modules; others keep theirs."""
    theirs, state = {HUGGING_FACE.timm_name(name): name for name in names}, {}
    for name, tensor in tensors.items():
        if ".attn.qkv." in name:
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                state[theirs.get(name.replace(".qkv.", f".{part}."), f"{name}.{part}")] = third
        else:
            state[theirs.get(name, name)] = tensor
    return state
