"""What a checkpoint says beyond its tensors: in metadata, in the JSON beside it, by its name."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from vitx.models.checks import image_size as size
from vitx.models.checks import positive_float, positive_int, three_numbers, three_positive
from vitx.models.registry import IMAGENET_MEAN, IMAGENET_STD
from vitx.runtime.files import parse_json
from vitx.runtime.paths import as_path
from vitx.weights.files import BESIDE, FOLDER_FILES, Checkpoint, check_regular, file_in
from vitx.weights.names import Named
from vitx.weights.timm_config import read_timm

_LARGEST: Final = 2**13  # pixels, of a side


@dataclass(frozen=True)
class Facts:
    """What was said, None where nothing was. Lengths in pixels, (height, width).

    `image_size` is the size that the position embedding was made for. `img_size` is timm's argument:
    the embedding is resampled to it where their lengths differ.
    """

    num_heads: int | None = None
    norm_eps: float | None = None
    final_norm_eps: float | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    image_size: tuple[int, int] | None = None
    img_size: tuple[int, int] | None = None
    weight_standardisation_eps: float | None = None
    stem_stride: int | None = None
    grid: tuple[int, int] | None = None
    groups: int | None = None


def _file_size(value: Any) -> tuple[int, int]:
    """A size that a file tells: the position embedding is resampled to it, whatever memory that takes."""
    if max(height_width := size(value)) > _LARGEST:
        raise ValueError(f"must be at most {_LARGEST}, not {value!r}")
    return height_width


_CHECKS: Final[dict[str, Callable[[Any], Any]]] = {
    "num_heads": positive_int,
    "norm_eps": positive_float,
    "final_norm_eps": positive_float,
    "mean": three_numbers,
    "std": three_positive,
    "image_size": _file_size,
    "img_size": _file_size,
    "weight_standardisation_eps": positive_float,
    "stem_stride": positive_int,
    "grid": _file_size,
    "groups": positive_int,
}


def gather(checkpoint: Checkpoint, named: Named) -> Facts:
    """All that is known: metadata before JSON files before the file's name before conventions.

    Raises:
      ValueError: for a value that cannot be, or that vitx does not compute.
    """
    said: dict[str, Any] = {}
    if named.heads is not None:
        said["num_heads"] = named.heads
    if _looks_like_imagenet_statistics(checkpoint.path):
        said |= {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    if named.origin == "Hugging Face":
        said |= _from_hugging_face(checkpoint.config, checkpoint.processor)
    elif named.origin == "timm":
        said |= read_timm(checkpoint.config, named.tensors)
    elif named.origin == "[Re]":
        said["weight_standardisation_eps"] = 1e-6
    said |= _from_metadata(checkpoint.metadata)
    checked = {}
    for name, value in said.items():
        try:
            checked[name] = _CHECKS[name](value)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"what the file says of {name} {error!s:.200}") from error
    return Facts(**checked)


def digest(path: str | Path) -> str:
    """16 hexadecimal digits that change with whatever `load` makes a model from.

    They follow from the weights, the JSON beside them, and whether the name stands for ImageNet's statistics.

    Raises:
      FileNotFoundError: if there is nothing at `path`.
      ValueError: for a folder without a checkpoint, or what is no regular file, such as a FIFO.
    """
    path = as_path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or folder")
    path = file_in(path) if path.is_dir() else path
    try:
        check_regular(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256")
    for beside in (path.parent / name for name in BESIDE):
        content.update(beside.read_bytes() if beside.is_file() else b"-")
    content.update(str(_looks_like_imagenet_statistics(path)).encode())
    return content.hexdigest()[:16]


def _from_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    said = {}
    for name in (field.name for field in fields(Facts)):
        if name in metadata:
            try:
                said[name] = parse_json(metadata[name])
            except ValueError:
                raise ValueError(f"metadata {name} is no JSON: {metadata[name]!r:.100}") from None
    return said


def _from_hugging_face(config: Mapping[str, Any], processor: Mapping[str, Any]) -> dict[str, Any]:
    if (activation := config.get("hidden_act", "gelu")) != "gelu":
        raise ValueError(f"its activation is {activation!r:.100}; vitx has the exact GELU only")
    if (bias := config.get("qkv_bias", True)) is not True:
        raise ValueError(f"config.json: qkv_bias={bias!r:.100}, which vitx does not compute")
    said = {"norm_eps": config.get("layer_norm_eps", 1e-12)}
    for name, source, key in (
        ("num_heads", config, "num_attention_heads"),
        ("image_size", config, "image_size"),
        ("mean", processor, "image_mean"),
        ("std", processor, "image_std"),
    ):
        if key in source:
            said[name] = source[key]
    return said


def _looks_like_imagenet_statistics(path: Path) -> bool:
    """DeiT, DINO and MAE have a ViT's tensors but ImageNet's mean and std: the name tells."""
    # Hubs name every file alike, and the folder after the model.
    name = path.parent.name if path.name in FOLDER_FILES else path.name
    return re.search(r"(^|[^a-z])(deit|dino|mae)", name.lower()) is not None
