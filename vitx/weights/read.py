"""Reads a checkpoint into a model: its structure from the tensors' shapes, then the weights."""

from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np

from vitx.models.convnet import ConvNet
from vitx.models.segmenter import Segmenter
from vitx.models.variants import Classifier
from vitx.models.vit import VisionTransformer
from vitx.weights.build import build
from vitx.weights.files import Tensor, listed, open_checkpoint
from vitx.weights.layout import Model, entries
from vitx.weights.metadata import Overrides, read_metadata
from vitx.weights.names import recognise


def load(
    path: str | Path,
    num_heads: SupportsIndex | None = None,
    image_size: SupportsIndex | Sequence[SupportsIndex] | np.ndarray | jax.Array | None = None,
    num_classes: SupportsIndex | None = None,
    norm_eps: float | None = None,
    final_norm_eps: float | None = None,
    dtype: Any = None,
    head: str | None = None,
) -> Model:
    """Reads a checkpoint, of any of the known projects, into the model it describes.

    It recognises the names of timm and DeiT, Hugging Face's ViT, distilled DeiT, DINOv2, DINOv3, CLIP and SigLIP (whole
    models' too, without their text tower), Google's .npz files of ViT and R50+ViT, the hybrid and the AffinityNet of
    [Re], psa's VGG-16 and AffinityNet, torchvision's VGG-16 and ResNet-50, and the files of `save`. Sizes and parts of
    the model follow from the tensors. Epsilons, heads, activation, pooling, rotary base, mean, std and image size come
    from the file's metadata (which `save` writes), else from config.json and preprocessor_config.json beside it (in
    timm's: `model_args`, `pretrained_cfg`, and what `architecture` implies), else from the libraries' conventions:

    - Mean and std: 0.5; ImageNet's where the file's name has deit, dino or mae, and for DINOv2, DINOv3, DeiT-III,
      distilled DeiT and torchvision; psa's own; CLIP's for CLIP and EVA-02.
    - LayerNorm's epsilon: 1e-12 for Hugging Face's ViT and DeiT, 1e-5 for CLIP and DINOv3, else 1e-6.
    - Activation: SiLU in gated MLPs; quick GELU in Hugging Face's CLIP, GELU's tanh form in its SigLIP; else GELU. So a
      CLIP or SigLIP of timm needs its config.json, where it has another one.
    - Pooling: the patches' mean with a norm after it, without a class token, and in timm's DINOv3; attention pooling,
      or the mean of class and distillation token, where there are such; else the class token.
    - Positions: DINOv3's rotary ones (base 100) without a table; EVA-02's (base 10000) for a gated MLP and keys alone
      without bias. DINOv3's image size: 224, 256 in timm.

    A file of a family that is published without a head (DINOv2, DINOv3, CLIP, SigLIP, EVA-02), or whose metadata or
    config has num_classes 0, gives a model with `num_classes` 0, whose output is what a head would read. So does timm's
    CLIP whose head has a bias of zeros: it is read as the projection. Numbers may be Python's, NumPy's or JAX's.

    Args:
      path: a .safetensors, .pth/.pt/.bin (needs torch, loaded with weights_only=True) or .npz file, an index of shards
        (.safetensors.index.json), or a folder with model.safetensors, model.safetensors.index.json or
        pytorch_model.bin, here or in a bucket (gs://).
      num_heads: at least 1; default: the file's, else width / 64, 16 for ViT-H's 1280 (not rotary). Needed for widths
        published with other heads (1152, 1408, 1664, 4096, and 1536 without LayerScale).
      image_size: side or (H, W) in pixels; positions are resampled as in the family's library (bicubic, with antialias
        except in Hugging Face's DINOv2 without registers, CLIP, SigLIP and DeiT), AffinityNet's grid scaled. Default:
        that of Hugging Face's preprocessor_config.json (but ViT's); else the file's, 448 for [Re]'s AffinityNet.
      num_classes: at least 1; a new head on the pooled output, unless the file's has as many outputs.
      norm_eps: LayerNorm's epsilon, above 0; default: the file's, see above.
      final_norm_eps: epsilon of the last LayerNorm; default: `norm_eps` where it is given, else the file's.
      dtype: of the weights; default: float32, but float64 where the file has it and jax_enable_x64 is on.
      head: what a new head reads, one of `vitx.models.heads.HEADS`; needs `num_classes`. Default: as the file's.

    Raises:
      FileNotFoundError: if there is nothing at `path`.
      ValueError: in one line, for a file that is damaged, holds objects or NaN, is not a regular file (a device, a
        FIFO), is of another architecture or computes what vitx does not, or whose tensors do not fit each other (with a
        list: - missing, + unknown), and for an argument that does not fit.
    """
    overrides = Overrides(num_heads, image_size, num_classes, norm_eps, final_norm_eps, dtype, head)  # type: ignore[arg-type]
    with open_checkpoint(path) as checkpoint:
        named = recognise(checkpoint.tensors)
        model = build(named.tensors, read_metadata(checkpoint, named), overrides)
        _fill(model, named.tensors, overrides.dtype)
        return model


def load_classifier(path: str | Path, *, headless: bool = False, **options: Any) -> Classifier:
    """`load` for files that must hold a classifier; options of 0, () or "" mean: use the file's own value.

    With `headless` it may also be a backbone without a head.
    """
    given: dict[str, Any] = {
        n: v for n, v in options.items() if not isinstance(v, Real | Sequence) or v
    }
    model = load(path, **given)
    if not isinstance(model, VisionTransformer | ConvNet):
        kind = "a segmentation network" if isinstance(model, Segmenter) else "an AffinityNet"
        raise ValueError(
            f"{path}: it holds {kind}, which has no classes to explain or to train: give a "
            "classifier's weights"
        )
    if not model.num_classes and not headless:
        raise ValueError(
            f"{path}: its model has no head, and so no classes: give a classifier's weights "
            "(vitx.explain explains an embedding)"
        )
    return model


def _fill(model: Model, tensors: Mapping[str, Tensor], dtype: np.dtype | None) -> None:
    """Gives an abstract model its weights, one tensor at a time."""
    parameters = {entry.name: entry for entry in entries(model)}
    wanted = {name: entry.file_shape for name, entry in parameters.items()}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    # What is missing comes last: a whole block may be.
    names = sorted(wanted.keys() | found.keys(), key=lambda name: (name not in found, name))
    differences = [
        f"{sign} {name} {shapes[name]}"
        for name in names
        if wanted.get(name) != found.get(name)
        for sign, shapes in (("-", wanted), ("+", found))
        if name in shapes
    ]
    if differences:
        raise ValueError(f"its tensors do not fit (- missing, + unknown): {listed(differences)}")
    for name, entry in parameters.items():
        array = tensors[name].read()
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} holds {array.dtype}, where floats are expected")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} has NaN or infinite values")
        if dtype is None:  # the first tensor decides
            double = array.dtype == np.float64 and jnp.result_type(float) == np.float64
            dtype = np.dtype(np.float64 if double else np.float32)
        entry.parameter.set_value(jnp.array(entry.from_file(array), dtype))
