"""Models by name (timm's names), and their sizes."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex

import jax
import numpy as np
from flax import nnx

from vitx.models.checks import checked, positive_float, positive_int
from vitx.models.checks import image_size as checked_size
from vitx.models.resnet import ConvStem, ResNetV2
from vitx.models.vit import Preprocess, VisionTransformer

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Sizes:
    """Sizes of a transformer, and the side of its patches (in feature cells where there is a stem)."""

    width: int
    depth: int
    heads: int
    hidden: int
    patch: int = 16
    image_size: int = 224
    stem: str | None = None  # a key of STEMS
    imagenet_statistics: bool = False
    family: type[VisionTransformer] = VisionTransformer


STEMS: dict[str, Any] = {
    "resnet50": lambda rngs: ResNetV2((3, 4, 9), rngs=rngs),
    "conv": lambda rngs: ConvStem((32, 64, 64, 64), stride=4, rngs=rngs),
    "conv_full": lambda rngs: ConvStem((24, 48, 64), stride=4, unstrided=1, rngs=rngs),
    "conv_tiny": lambda rngs: ConvStem((16, 32), stride=4, rngs=rngs),
}

_TINY = Sizes(192, 12, 3, 768)
_SMALL = Sizes(384, 12, 6, 1536)
_BASE = Sizes(768, 12, 12, 3072)
_LARGE = Sizes(1024, 24, 16, 4096)


def _vit_family() -> dict[str, Sizes]:
    family = {}
    for size, sizes in (("tiny", _TINY), ("small", _SMALL), ("base", _BASE), ("large", _LARGE)):
        for image_size in (224, 384):
            family[f"vit_{size}_patch16_{image_size}"] = replace(sizes, image_size=image_size)
        family[f"vit_{size}_patch8_224"] = replace(sizes, patch=8)
        if size != "large":
            family[f"deit_{size}_patch16_224"] = replace(sizes, imagenet_statistics=True)
    family["deit_base_patch16_384"] = replace(_BASE, image_size=384, imagenet_statistics=True)
    return family


MODELS: dict[str, Sizes] = {
    **_vit_family(),
    "vit_base_r50_s16_224": replace(_BASE, patch=1, stem="resnet50"),
    "vit_base_r50_s16_384": replace(_BASE, patch=1, stem="resnet50", image_size=384),
    # Small hybrids for small images: a 12 x 12 token grid at 48 x 48.
    "vit_mini_conv_s4_48": Sizes(64, 3, 2, 128, patch=1, stem="conv", image_size=48),
    "vit_mini_conv_full_s4_48": Sizes(64, 3, 2, 128, patch=1, stem="conv_full", image_size=48),
    "vit_test_conv_s4_48": Sizes(32, 2, 2, 64, patch=1, stem="conv_tiny", image_size=48),
}


def create(
    name: str,
    num_classes: SupportsIndex = 1000,
    image_size: SupportsIndex | Sequence[SupportsIndex] | np.ndarray | jax.Array | None = None,
    seed: int = 0,
    final_norm_eps: float | None = None,
) -> VisionTransformer:
    """A model with random weights.

    Whole numbers may be Python's, NumPy's or JAX's, and sizes in a tuple, list or array.

    Args:
      name: a key of `MODELS`, such as "vit_base_patch16_224".
      num_classes: outputs of the head, at least 1.
      image_size: side, or (H, W), in pixels, multiples of the patch; default: the one in the name.
      seed: of the weights.
      final_norm_eps: epsilon of the last LayerNorm, above 0; default: 1e-6, as in the blocks.

    Raises:
      ValueError: for an unknown name, a number that is not positive, a count or size that is not
        whole, or sizes that do not fit.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=3, cutoff=0.3)
        raise ValueError(f"unknown model {name!r}; nearest: {', '.join(near) or 'none'}")
    sizes, rngs = MODELS[name], nnx.Rngs(seed)
    outputs = checked("num_classes", num_classes, positive_int)
    side = sizes.image_size if image_size is None else image_size
    preprocess = Preprocess(size=checked("image_size", side, checked_size))
    if final_norm_eps is not None:
        final_norm_eps = checked("final_norm_eps", final_norm_eps, positive_float)
    if sizes.imagenet_statistics:
        preprocess = replace(preprocess, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return sizes.family(
        width=sizes.width,
        depth=sizes.depth,
        heads=sizes.heads,
        hidden=sizes.hidden,
        patch=sizes.patch,
        num_classes=outputs,
        preprocess=preprocess,
        stem=STEMS[sizes.stem](rngs) if sizes.stem else None,
        final_norm_eps=final_norm_eps,
        rngs=rngs,
    )
