"""Creates models by name, with random weights."""

import difflib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, SupportsIndex

import jax
import numpy as np
from flax import nnx

from vitx.models.checks import checked, positive_float, positive_int
from vitx.models.checks import image_size as checked_size
from vitx.models.convnet import ConvNet
from vitx.models.design import Preprocess
from vitx.models.families import IMAGENET, MODELS
from vitx.models.heads import with_head
from vitx.models.resnet import ConvStem, ResNetV2
from vitx.models.resnet_v1 import ResNetV1
from vitx.models.variants import Classifier
from vitx.models.vgg import VGG16

STEMS: dict[str, Any] = {
    "resnet50": lambda rngs: ResNetV2((3, 4, 9), rngs=rngs),
    "conv": lambda rngs: ConvStem((32, 64, 64, 64), stride=4, rngs=rngs),
    "conv_full": lambda rngs: ConvStem((24, 48, 64), stride=4, unstrided=1, rngs=rngs),
    "conv_tiny": lambda rngs: ConvStem((16, 32), stride=4, rngs=rngs),
}

CNNS: dict[str, Callable[..., ConvNet]] = {
    "vgg16_cam": VGG16,
    "resnet50_cam": ResNetV1,
    # For small images, enlarged to 192 x 192: each cell sees 109 pixels, as large a part as VGG-16's 227 of 448.
    "vgg_mini_cam": partial(VGG16, depths=(1,) * 5, widths=(8, 16, 32, 64, 64), hidden=128),
    "vgg_test_cam": partial(VGG16, widths=(4, 8, 8, 16, 16), hidden=32),
}
"""Networks for class activation maps, by default VOC's 20 classes and a size of 448, with ImageNet's mean and std."""
_CNN_CLASSES, _CNN_SIZE = 20, 448


def create(
    name: str,
    num_classes: SupportsIndex | None = None,
    image_size: SupportsIndex | Sequence[SupportsIndex] | np.ndarray | jax.Array | None = None,
    seed: int = 0,
    final_norm_eps: float | None = None,
    head: str | None = None,
) -> Classifier:
    """A model with random weights.

    Whole numbers may be Python's, NumPy's or JAX's, and sizes in a tuple, list or array.

    Args:
      name: a key of `MODELS`, such as "vit_base_patch16_224", or of `CNNS`.
      num_classes: outputs of the head, at least 1; default: the family's, which has no head if that is 0.
      image_size: side, or (H, W), in pixels, multiples of the patch; default: the one in the name, 448 for a CNN.
      seed: of the weights.
      final_norm_eps: epsilon of the last LayerNorm, above 0; default: as in the blocks. A CNN has none.
      head: what the head reads, one of `vitx.models.heads.HEADS`; needs `num_classes`. Default: the family's; a CNN has
        no other.

    Raises:
      ValueError: for an unknown name, a number that is not positive, a count or size that is not
        whole, sizes that do not fit, or an option that the model does not have.
    """
    if name not in MODELS and name not in CNNS:
        near = difflib.get_close_matches(name, (*MODELS, *CNNS), n=3, cutoff=0.3)
        raise ValueError(f"unknown model {name!r}; nearest: {', '.join(near) or 'none'}")
    rngs = nnx.Rngs(seed)
    if num_classes is not None:
        num_classes = checked("num_classes", num_classes, positive_int)
    if name in CNNS:
        require_no_options(name, final_norm_eps=final_norm_eps, head=head)
        size = checked("image_size", _CNN_SIZE if image_size is None else image_size, checked_size)
        return CNNS[name](num_classes or _CNN_CLASSES, Preprocess(*IMAGENET, size), rngs=rngs)
    sizes = MODELS[name]
    outputs, design = sizes.num_classes, sizes.design
    if num_classes is not None:
        outputs = num_classes
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


def require_no_options(model: str, **options: Any) -> None:
    """Raises ValueError for an option that is not None."""
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{model} has no {name}: leave it out")
