"""A checkpoint into a model: its structure from the tensors' shapes, then the weights."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Final, SupportsIndex, cast

import jax
import jax.numpy as jnp
import numpy as np

from vitx.models import checks
from vitx.models.affinitynet import AffinityNet
from vitx.models.checks import checked
from vitx.models.vit import VisionTransformer
from vitx.weights.build import Wish, affinity_net, vision_transformer
from vitx.weights.facts import gather
from vitx.weights.files import Tensor, on_disk, open_checkpoint
from vitx.weights.layout import Entry, entries
from vitx.weights.names import recognise

_LISTED: Final = 12  # differences shown


def load(
    path: str | Path,
    num_heads: SupportsIndex | None = None,
    image_size: SupportsIndex | Sequence[SupportsIndex] | np.ndarray | jax.Array | None = None,
    num_classes: SupportsIndex | None = None,
    norm_eps: float | None = None,
    final_norm_eps: float | None = None,
    dtype: Any = None,
) -> VisionTransformer | AffinityNet:
    """Reads a checkpoint, whosever names it has, into the model it describes.

    Known are timm's and DeiT's names, Hugging Face's ViT, Google's .npz files of ViT and R50+ViT,
    those of [Re] for the hybrid and for AffinityNet, and what `save` writes. Sizes are read off the
    tensors' shapes. Epsilons, heads, mean, std and image size are taken from the file's metadata
    (what `save` wrote), else from config.json and preprocessor_config.json beside it (of timm's:
    `model_args`, and the heads of its `architecture`), else from conventions: mean and std 0.5, but
    ImageNet's where the file's name has deit, dino or mae; LayerNorm's epsilon 1e-12 for Hugging
    Face's names, else 1e-6.

    Args:
      path: a .safetensors, .pth/.pt/.bin (needs torch, loaded with weights_only=True) or .npz file,
        or a folder with model.safetensors or pytorch_model.bin, here or in a bucket (gs://).
      num_heads: at least 1; default: the file's, else width / 64.
      image_size: side or (H, W) in pixels; the position embedding is resampled (bicubic with
        antialias, as in timm), AffinityNet's grid scaled. Default: the file's, which for
        AffinityNet of [Re] is 448.
      num_classes: at least 1; replaces the head by a fresh one, unless the file's has as many
        outputs.
      norm_eps: LayerNorm's epsilon, above 0; default: the file's, see above.
      final_norm_eps: that of the last LayerNorm; default: `norm_eps` where that is given, else the
        file's.
      dtype: of the weights; default: float32, but float64 where the file has it and jax_enable_x64
        is on.

    Numbers may be Python's, NumPy's or JAX's, and sizes in a tuple, list or array.

    Raises:
      FileNotFoundError: if there is nothing at `path`.
      ValueError: in one line, for a file that is damaged, holds objects or NaN, is no regular file
        (a device, a FIFO), is of another architecture or computes what vitx does not, or whose
        tensors do not fit each other (with a list: - missing, + unknown), or for an argument that
        does not fit.
    """
    return _load(path, False, num_heads, image_size, num_classes, norm_eps, final_norm_eps, dtype)


def _load(
    path: str | Path,
    classifier: bool,
    num_heads: Any = None,
    image_size: Any = None,
    num_classes: Any = None,
    norm_eps: Any = None,
    final_norm_eps: Any = None,
    dtype: Any = None,
) -> VisionTransformer | AffinityNet:
    wish = Wish(
        _checked("num_heads", num_heads, checks.positive_int),
        _checked("image_size", image_size, checks.image_size),
        _checked("num_classes", num_classes, checks.positive_int),
        _checked("norm_eps", norm_eps, checks.positive_float),
        _checked("final_norm_eps", final_norm_eps, checks.positive_float),
    )
    wanted = _checked("dtype", dtype, _float_type)
    try:
        with on_disk(path) as local:
            checkpoint = open_checkpoint(local)
            named = recognise(checkpoint.tensors)
            if classifier and "feat_conv.weight" in named.tensors:
                raise ValueError(
                    "it holds an AffinityNet, which has no classes to explain or to train: give a"
                    " classifier's weights"
                )
            facts = gather(checkpoint, named)
            if "feat_conv.weight" in named.tensors:
                return _fill(affinity_net(named, facts, wish), named.tensors, wanted)
            model, tensors = vision_transformer(named, facts, wish)
            return _fill(model, tensors, wanted)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_classifier(path: str | Path, **options: Any) -> VisionTransformer:
    """`load` for files that must hold a classifier.

    Args:
      path: as in `load`.
      **options: those of `load`; 0 and () mean: use the file's own value.

    Raises:
      FileNotFoundError, ValueError: as `load`, and for an AffinityNet.
    """
    given = {name: None if _is_empty(value) else value for name, value in options.items()}
    return cast(VisionTransformer, _load(path, True, **given))


def _is_empty(value: Any) -> bool:
    """Whether an option is 0, () or "", which a config has in place of None."""
    return isinstance(value, Real | Sequence) and not value


def _checked(name: str, value: Any, check: Callable[[Any], Any]) -> Any:
    if value is None:
        return None
    return checked(name, value, check)


def _float_type(dtype: Any) -> np.dtype:
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise ValueError(f"must be a float type, not {dtype!r}")
    if found == np.float64 and not _double_is_on():
        raise ValueError("float64 needs jax_enable_x64")
    return found


def _double_is_on() -> bool:
    return jnp.result_type(float) == np.float64


def _fill(model: Any, tensors: Mapping[str, Tensor], dtype: np.dtype | None) -> Any:
    """Gives an abstract model its weights, one tensor at a time."""
    wanted = {entry.name: entry for entry in entries(model)}
    differences = list(
        _differences(
            {name: entry.file_shape for name, entry in wanted.items()},
            {name: tensor.shape for name, tensor in tensors.items()},
        )
    )
    if differences:
        more = f" and {len(differences) - _LISTED} more" if len(differences) > _LISTED else ""
        listed = ", ".join(differences[:_LISTED])
        raise ValueError(f"its tensors do not fit (- missing, + unknown): {listed}{more}")
    for name, entry in wanted.items():
        array = tensors[name].read()
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} holds {array.dtype}, where floats are expected")
        if dtype is None:  # the first tensor stands for all
            double = array.dtype == np.float64 and _double_is_on()
            dtype = np.dtype(np.float64 if double else np.float32)
        entry.parameter.set_value(_converted(entry, array, dtype))
    return model


def _converted(entry: Entry, array: np.ndarray, dtype: np.dtype) -> jax.Array:
    if not np.isfinite(array).all():
        raise ValueError(f"{entry.name} has NaN or infinite values")
    return jnp.array(entry.from_file(array), dtype)


def _differences(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> Iterator[str]:
    """Lines of "- name shape" (missing), "+ name shape" (unknown); both where shapes differ."""
    # What is missing comes last: a whole block may be.
    for name in sorted(expected.keys() | found.keys(), key=lambda name: (name not in found, name)):
        if expected.get(name) == found.get(name):
            continue
        if name in expected:
            yield f"- {name} {expected[name]}"
        if name in found:
            yield f"+ {name} {found[name]}"
