"""Writes a model to a .safetensors file with timm's names and PyTorch's axes."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as serialise

from vitx.models.affinitynet import AffinityNet, MultiLevelAffinityNet
from vitx.models.convnet import ConvNet
from vitx.models.design import Preprocess
from vitx.models.levels import Backbone, StemAlone
from vitx.models.resnet import ResNetV2
from vitx.models.resnet_v1 import ResNetV1
from vitx.models.segmenter import Segmenter
from vitx.models.vgg import VGG16
from vitx.models.vit import VisionTransformer
from vitx.runtime.files import plain_json, write_bytes
from vitx.runtime.paths import as_path
from vitx.weights.class_names import ASSUMED
from vitx.weights.files import FOLDER_FILES
from vitx.weights.layout import Model, entries


def save(model: Model, path: str | Path) -> None:
    """Writes a model so that `load` gives it back to the bit, and PyTorch's timm reads its tensors.

    The file appears whole or not at all. Its metadata holds what does not follow from the tensors
    (heads, epsilons, preprocessing, the parts of the design that are not those of a plain ViT, `scores`, and
    `class_names` unless they are assumed), each value as JSON. AffinityNet has the names of [Re]; CNNs,
    segmentation networks, stems that timm does not have, and an AffinityNet on a CNN keep vitx's.

    timm's own classes read plain ViTs, DeiT-III, distilled DeiT, registers, `fc_norm`, SigLIP's
    tower, CLIP's without a projection, EVA-02 tiny and small, and DINOv2 (with registers only those
    that came from timm: Hugging Face's have a position of the class token). Only vitx reads a
    projection (CLIP's), the heads "best", "pooled+best" and "class+mean", DINOv3 (timm's name of
    its LayerScale is another one) and EVA-02 base and large (whose gated MLPs vitx packs into one
    layer).

    Args:
      model: a `VisionTransformer`, `VGG16`, `ResNetV1`, `AffinityNet`, `MultiLevelAffinityNet` or `Segmenter`.
      path: a .safetensors file, or a folder, in which it becomes model.safetensors. If it is a
        symbolic link, its target is replaced, and the link stays.

    Raises:
      ValueError: for a model of another kind, a weight that is not finite, `class_names` of another
        number than its outputs, or a path that is empty or ends otherwise.
      vitx.runtime.files.WriteError: if it cannot be written.
    """
    if not isinstance(model, Model):
        raise ValueError(
            f"cannot save a {type(model).__name__}: no VisionTransformer, CNN, AffinityNet or Segmenter"
        )
    if not os.fspath(path):
        raise ValueError(
            'the path is empty: give a .safetensors file or a folder ("." is this one)'
        )
    path = as_path(path)
    if path.is_dir() or not path.suffix:
        path = path / FOLDER_FILES[0]
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: vitx writes .safetensors files, or folders with one")
    tensors = {}
    for entry in entries(model):
        array = np.asarray(entry.parameter[...])
        if not np.isfinite(array).all():
            raise ValueError(f"{path} is not written: {entry.name} has NaN or infinite values")
        tensors[entry.name] = np.ascontiguousarray(entry.to_file(array))
    # "pt" is what transformers and timm look for; the tensors do have PyTorch's axes.
    metadata = {"format": "pt"} | {
        name: json.dumps(value, default=plain_json) for name, value in describe(model).items()
    }
    write_bytes(path, _in_one_order(serialise(tensors, metadata)))


def _in_one_order(file: bytes) -> bytes:
    """The same file with a sorted header: the library's order changes from run to run."""
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors start at a multiple of eight
    return b"".join([len(header).to_bytes(8, "little"), header, memoryview(file)[end:]])


def describe(model: Model) -> dict[str, Any]:
    """What does not follow from the shapes of a model's tensors, under the names of `metadata.Metadata`."""
    if isinstance(model, AffinityNet):
        own: dict[str, Any] = {"grid": model.grid, "groups": model.gn.groups}
        return _of_stem(model.preprocess, model.stem) | own
    if isinstance(model, MultiLevelAffinityNet):
        each = [branch.gn.groups for branch in model.branches]
        groups = each if len({*each}) > 1 else each[0]
        own = {"levels": model.levels, "groups": groups}
        grid = {"grid": model.grid} if model.grid else {}
        return _of_backbone(model.backbone) | own | grid
    if isinstance(model, Segmenter):
        own = {"levels": model.levels, "groups": model.branches[0].norm.groups}
        return _of_backbone(model.backbone) | own
    about = _of_classes(model)
    if isinstance(model, ConvNet):
        return _of_backbone(model) | about
    return _of_backbone(model) | {"final_norm_eps": model.final_norm_eps} | about


def _of_classes(model: VisionTransformer | ConvNet) -> dict[str, Any]:
    """What is known of the outputs, except names that are only assumed; 0 for a model without a head.

    Raises:
      ValueError: for another number of names than of outputs.
    """
    if not model.num_classes:
        return {"num_classes": 0}
    names, scores = model.class_names, {"scores": model.scores} if model.scores else {}
    if names is None or model.class_names_source == ASSUMED:
        return scores
    if len(names) != model.num_classes:
        raise ValueError(
            f"class_names has {len(names)} names, where the model has {model.num_classes} outputs"
        )
    return scores | {"class_names": tuple(names)}


def _of_backbone(model: Backbone) -> dict[str, Any]:
    if isinstance(model, ConvNet):
        described = _of_stem(model.preprocess, None)
        if type(model) not in (VGG16, ResNetV1):
            described["family"] = type(model).__name__
        if isinstance(model, VGG16) and model.fc6 is not None and model.fc6.dilation > 1:
            described["fc6_dilation"] = model.fc6.dilation
        return described
    described = _of_stem(model.preprocess, model.stem)
    if isinstance(model, StemAlone):
        return described
    if type(model) is not VisionTransformer:
        described["family"] = type(model).__name__  # which `load` does not build
    if design := model.design.differences():
        described["design"] = design
    if model.assumed:
        described["assumed"] = model.assumed
    block = model.blocks[0]
    return described | {"num_heads": block.attn.heads, "norm_eps": block.norm1.epsilon}


def _of_stem(preprocess: Preprocess, stem: Any) -> dict[str, Any]:
    described = {"mean": preprocess.mean, "std": preprocess.std, "image_size": preprocess.size}
    usual = Preprocess()
    for name in ("interpolation", "crop_mode", "crop_pct"):
        if (value := getattr(preprocess, name)) != getattr(usual, name):
            described[name] = value
    if isinstance(stem, ResNetV2):
        return described | {"weight_standardisation_eps": stem.conv.epsilon}
    if stem is None:
        return described
    unstrided = {"stem_unstrided": stem.unstrided} if stem.unstrided else {}
    return described | {"stem_stride": stem.stride} | unstrided
