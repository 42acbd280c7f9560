"""Creates models by name, with random weights."""

import difflib
from collections.abc import Sequence
from typing import Any, SupportsIndex

import jax
import numpy as np
from flax import nnx

from vitx.models.checks import checked, positive_float, positive_int
from vitx.models.checks import image_size as checked_size
from vitx.models.design import Preprocess
from vitx.models.families import MODELS
from vitx.models.heads import with_head
from vitx.models.resnet import ConvStem, ResNetV2
from vitx.models.vit import VisionTransformer

STEMS: dict[str, Any] = {
    "resnet50": lambda rngs: ResNetV2((3, 4, 9), rngs=rngs),
    "conv": lambda rngs: ConvStem((32, 64, 64, 64), stride=4, rngs=rngs),
    "conv_full": lambda rngs: ConvStem((24, 48, 64), stride=4, unstrided=1, rngs=rngs),
    "conv_tiny": lambda rngs: ConvStem((16, 32), stride=4, rngs=rngs),
}


def create(
    name: str,
    num_classes: SupportsIndex | None = None,
    image_size: SupportsIndex | Sequence[SupportsIndex] | np.ndarray | jax.Array | None = None,
    seed: int = 0,
    final_norm_eps: float | None = None,
    head: str | None = None,
) -> VisionTransformer:
    """A model with random weights.

    Whole numbers may be Python's, NumPy's or JAX's, and sizes in a tuple, list or array.

    Args:
      name: a key of `MODELS`, such as "vit_base_patch16_224".
      num_classes: outputs of the head, at least 1; default: the family's, which has no head if that is 0.
      image_size: side, or (H, W), in pixels, multiples of the patch; default: the one in the name.
      seed: of the weights.
      final_norm_eps: epsilon of the last LayerNorm, above 0; default: as in the blocks.
      head: what the head reads, one of `vitx.models.heads.HEADS`; needs `num_classes`. Default: the family's.

    Raises:
      ValueError: for an unknown name, a number that is not positive, a count or size that is not
        whole, or sizes that do not fit.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=3, cutoff=0.3)
        raise ValueError(f"unknown model {name!r}; nearest: {', '.join(near) or 'none'}")
    sizes, rngs = MODELS[name], nnx.Rngs(seed)
    outputs, design = sizes.num_classes, sizes.design
    if num_classes is not None:
        outputs = checked("num_classes", num_classes, positive_int)
    if head is not None:
        design = with_head(design, head, outputs)
    side = sizes.image_size if image_size is None else image_size
    preprocess = Preprocess(*sizes.statistics, checked("image_size", side, checked_size))
    if final_norm_eps is not None:
        final_norm_eps = checked("final_norm_eps", final_norm_eps, positive_float)
    return sizes.family(
        width=sizes.width,
        depth=sizes.depth,
        heads=sizes.heads,
        hidden=sizes.hidden,
        patch=sizes.patch,
        num_classes=outputs,
        preprocess=preprocess,
        stem=STEMS[sizes.stem](rngs) if sizes.stem else None,
        norm_eps=sizes.norm_eps,
        final_norm_eps=final_norm_eps,
        design=design,
        rngs=rngs,
    )
