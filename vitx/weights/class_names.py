"""The names of a checkpoint's classes, and where they are from."""

import re
from collections.abc import Mapping
from typing import Any, Final

from vitx.data.class_names import IMAGENET_CLASSES, imagenet_names
from vitx.weights.files import Checkpoint
from vitx.weights.metadata import Metadata

FILE: Final = "file"
CONFIG: Final = "config"
IMAGENET: Final = "ImageNet"
ASSUMED: Final = "assumed ImageNet"
"""The sources of names: the file's own metadata, config.json beside it, or ImageNet's, with or without a sign that the
model was trained on it."""

Names = tuple[tuple[str, ...] | None, str | None]


def class_names(checkpoint: Checkpoint, metadata: Metadata, count: int) -> Names:
    """The names of a classifier's `count` classes and their source; (None, None) where nothing tells them.

    Names of another number of classes are not those of its outputs.
    """
    for source, names in ((FILE, metadata.class_names), (CONFIG, _in_config(checkpoint.config))):
        if names:
            return (names, source) if len(names) == count else (None, None)
    if count != IMAGENET_CLASSES:
        return None, None
    return imagenet_names(), IMAGENET if _trained_on_imagenet(checkpoint.config) else ASSUMED


def _in_config(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Hugging Face's `id2label`, unless it only counts, or timm's `label_names` with their descriptions; else ()."""
    if names := _listed(config.get("id2label")):
        counted = all(re.fullmatch(r"LABEL_\d+", name) for name in names)
        return () if counted else names
    pretrained = config.get("pretrained_cfg")
    sections = [config, pretrained] if isinstance(pretrained, dict) else [config]
    keys = ("label_names", "labels")  # the second in older files
    found = (_listed(section.get(key)) for section in sections for key in keys)
    names = next(filter(None, found), ())
    for described in (section.get("label_descriptions") for section in sections):
        if isinstance(described, dict):
            return tuple(str(described.get(name, name)) for name in names)
    return names


def _listed(names: Any) -> tuple[str, ...]:
    """A list of names, or an object with a name for each number from 0; () for anything else."""
    if isinstance(names, dict):
        names = [names.get(str(number)) for number in range(len(names))]
    fits = isinstance(names, list) and all(isinstance(name, str) and name.strip() for name in names)
    return tuple(names) if fits else ()


def _trained_on_imagenet(config: Mapping[str, Any]) -> bool:
    """Whether timm's tag of the weights ends with ImageNet, as in vit_base_patch16_224.augreg_in21k_ft_in1k."""
    pretrained = config.get("pretrained_cfg")
    section = pretrained if isinstance(pretrained, dict) else config
    tags = section.get("tag"), str(config.get("architecture", "")).partition(".")[2]
    return any(isinstance(tag, str) and re.search(r"(^|_)in1k$", tag) for tag in tags)
