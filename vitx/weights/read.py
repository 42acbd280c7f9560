"""Reads a checkpoint into a model: its structure from the tensors' shapes, then the weights.

Epsilons, heads, activation, pooling, rotary base, mean, std and image size come from the file's metadata (which `save`
writes), else from config.json and preprocessor_config.json, or the image processor in processor_config.json, beside it
(in timm's: `model_args`, `pretrained_cfg`, and what `architecture` implies), else from the libraries' conventions:

- Mean and std: 0.5; ImageNet's where the file's name has deit, dino or mae, and for DINOv2, DINOv3, DeiT-III,
  distilled DeiT and torchvision; psa's own; CLIP's for CLIP and EVA-02.
- LayerNorm's epsilon: 1e-12 for Hugging Face's ViT and DeiT, 1e-5 for CLIP and DINOv3, else 1e-6.
- Activation: SiLU in gated MLPs; quick GELU in Hugging Face's CLIP, GELU's tanh form in its SigLIP; else GELU. So a
  CLIP or SigLIP of timm needs its config.json, where it has another one.
- Pooling: the patches' mean with a norm after it, without a class token, and in timm's DINOv3; attention pooling,
  or the mean of class and distillation token, where there are such; else the class token.
- Positions: DINOv3's rotary ones (base 100) without a table; EVA-02's (base 10000) for a gated MLP and keys alone
  without bias. DINOv3's image size: 224, 256 in timm.

A model has attributes for what is known besides its weights: `class_names`, a name of each output, or None, from the
file's metadata, Hugging Face's `id2label` or timm's `label_names`, and ImageNet's where 1,000 outputs have no other
names; `class_names_source`, one of `vitx.weights.class_names`, "assumed ImageNet" where nothing but their number says
so; `scores`, "sigmoid" of files of `vitx train`, else None; `assumed`, ("num_heads",) where the heads were guessed from
the width, as a warning says, else ().
"""

import warnings
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
from vitx.weights.class_names import class_names
from vitx.weights.files import listed, open_checkpoint
from vitx.weights.layout import Model, entries
from vitx.weights.metadata import Overrides, read_metadata
from vitx.weights.names import recognise
from vitx.weights.pickled import WHICH
from vitx.weights.tensor import Tensor


def load(
    path: str | Path,
    num_heads: SupportsIndex | None = None,
    image_size: SupportsIndex | Sequence[SupportsIndex] | np.ndarray | jax.Array | None = None,
    num_classes: SupportsIndex | None = None,
    norm_eps: float | None = None,
    final_norm_eps: float | None = None,
    dtype: Any = None,
    head: str | None = None,
    which: str | None = None,
) -> Model:
    """Reads a checkpoint, of any of the known projects, into the model it describes.

    It recognises the names of timm and DeiT, Hugging Face's ViT, distilled DeiT, DINOv2, DINOv3, CLIP and SigLIP (whole
    models' too, without their text tower), Google's .npz files of ViT and R50+ViT, the hybrid and the AffinityNet of
    [Re], psa's VGG-16 and AffinityNet, torchvision's VGG-16 and ResNet-50, and the files of `save`. Sizes and parts of
    the model follow from the tensors; the rest as described in `vitx.weights.read`.

    A file of a family that is published without a head (DINOv2, DINOv3, CLIP, SigLIP, EVA-02), or whose metadata or
    config has num_classes 0, gives a model with `num_classes` 0, whose output is what a head would read. So does timm's
    CLIP whose head has a bias of zeros: it is read as the projection. Numbers may be Python's, NumPy's or JAX's.

    Args:
      path: a .safetensors, .pth/.pt/.bin/.pth.tar (needs torch, loaded with weights_only=True) or .npz file, an index
        of shards (.safetensors.index.json, .bin.index.json), or a folder with model.safetensors, pytorch_model.bin or
        the index of either, here or in a bucket (gs://); or a name on the Hugging Face hub, such as
        "facebook/dinov2-small" or "OWNER/NAME@REVISION" (needs vitx[hub]; .safetensors only, kept in its cache).
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
      which: of a PyTorch file with the weights of several models "ema", the running mean, "model", "teacher" or
        "student". Default: the running mean, as in timm, which a warning says; DINO's two need it.

    Raises:
      FileNotFoundError: if there is nothing at `path`, or the hub does not give it; with a command that fetches it.
      ValueError: in one line, for a file that is damaged, holds objects or NaN, is not a regular file (a device, a
        FIFO), is of another architecture or computes what vitx does not, or whose tensors do not fit each other (with a
        list: - missing, + unknown), and for an argument that does not fit.
    """
    overrides = Overrides(num_heads, image_size, num_classes, norm_eps, final_norm_eps, dtype, head)  # type: ignore[arg-type]
    if which is not None and which not in WHICH:
        raise ValueError(f"which must be one of {', '.join(WHICH)}, not {which!r}")
    model = _loaded(path, overrides, which)
    if remark := assumed_heads(model):
        warnings.warn(f"{path}: {remark}", stacklevel=2)
    return model


def _loaded(path: str | Path, overrides: Overrides, which: str | None) -> Model:
    with open_checkpoint(path, which) as checkpoint:
        named = recognise(checkpoint.tensors)
        head_of_file = named.tensors.get("head.weight", named.tensors.get("head_patches.weight"))
        metadata = read_metadata(checkpoint, named)
        model = build(named.tensors, metadata, overrides)
        _fill(model, named.tensors, overrides.dtype)
    has_its_head = any(tensor is head_of_file for tensor in named.tensors.values())
    if has_its_head and isinstance(model, VisionTransformer | ConvNet):
        model.name_classes(*class_names(checkpoint, metadata, model.num_classes), metadata.scores)
    return model


def assumed_heads(model: Any) -> str:
    """A sentence about the number of heads of a model where it was guessed; "" where it was not."""
    if "num_heads" not in getattr(model, "assumed", ()):
        return ""
    heads = model.blocks[0].attn.heads
    return (
        f"{heads} heads are guessed from the width, {model.width}, as no file specifies them: with another number the "
        "model loads, and computes something else. Give num_heads where you know it"
    )


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
