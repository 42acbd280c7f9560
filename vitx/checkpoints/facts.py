"""What a checkpoint says beyond its tensors: in metadata, in the JSON beside it, by its name."""

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from vitx.checkpoints.files import BESIDE, FOLDER_FILES, Checkpoint, file_in
from vitx.checkpoints.names import Named
from vitx.files import parse_json
from vitx.models.registry import IMAGENET_MEAN, IMAGENET_STD
from vitx.paths import as_path

_LARGEST: Final = 2**13  # pixels, of a side


@dataclass(frozen=True)
class Facts:
    """What was said, None where nothing was. Lengths in pixels, (height, width)."""

    num_heads: int | None = None
    norm_eps: float | None = None
    final_norm_eps: float | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    image_size: tuple[int, int] | None = None
    weight_standardisation_eps: float | None = None
    stem_stride: int | None = None
    grid: tuple[int, int] | None = None
    groups: int | None = None


def positive_int(value: Any) -> int:
    """Checks a count."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"must be a positive whole number, not {value!r}")
    return value


def positive_float(value: Any) -> float:
    """Checks an epsilon."""
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"must be a positive number, not {value!r}")
    return float(value)


def size(value: Any) -> tuple[int, int]:
    """Checks a side, or (height, width)."""
    if isinstance(value, int):
        value = (value, value)
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"must be a side or (height, width), not {value!r}")
    return positive_int(value[0]), positive_int(value[1])


def _file_size(value: Any) -> tuple[int, int]:
    """A size that a file tells: the position embedding is resampled to it, whatever memory that takes."""
    if max(height_width := size(value)) > _LARGEST:
        raise ValueError(f"must be at most {_LARGEST}, not {value!r}")
    return height_width


def _three(value: Any) -> tuple[float, float, float]:
    numbers = value if isinstance(value, list | tuple) else ()
    if len(numbers) != 3 or not all(
        isinstance(x, int | float) and math.isfinite(x) for x in numbers
    ):
        raise ValueError(f"must be three numbers, not {value!r}")
    return float(numbers[0]), float(numbers[1]), float(numbers[2])


def _three_positive(value: Any) -> tuple[float, float, float]:
    if min(three := _three(value)) <= 0:
        raise ValueError(f"must be positive, not {value!r}")
    return three


_CHECKS: Final[dict[str, Callable[[Any], Any]]] = {
    "num_heads": positive_int,
    "norm_eps": positive_float,
    "final_norm_eps": positive_float,
    "mean": _three,
    "std": _three_positive,
    "image_size": _file_size,
    "weight_standardisation_eps": positive_float,
    "stem_stride": positive_int,
    "grid": _file_size,
    "groups": positive_int,
}


def gather(checkpoint: Checkpoint, named: Named) -> Facts:
    """All that is known: metadata before JSON files before the file's name before conventions.

    Raises:
      ValueError: for a value that cannot be, or an activation that vitx does not have.
    """
    said: dict[str, Any] = {}
    if named.heads is not None:
        said["num_heads"] = named.heads
    if _looks_like_imagenet_statistics(checkpoint.path):
        said |= {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    if named.origin == "Hugging Face":
        said |= _from_hugging_face(checkpoint.config, checkpoint.processor)
    elif named.origin == "timm":
        said |= _from_timm(checkpoint.config)
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
      ValueError: for a folder without a checkpoint.
    """
    path = as_path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or folder")
    path = file_in(path) if path.is_dir() else path
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
        raise ValueError(f"its activation is {activation!r}; vitx has the exact GELU only")
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


def _from_timm(config: Mapping[str, Any]) -> dict[str, Any]:
    source = config.get("pretrained_cfg", config)
    return {name: source[name] for name in ("mean", "std") if name in source}


def _looks_like_imagenet_statistics(path: Path) -> bool:
    """DeiT, DINO and MAE have a ViT's tensors but ImageNet's mean and std: the name tells."""
    # Hubs name every file alike, and the folder after the model.
    name = path.parent.name if path.name in FOLDER_FILES else path.name
    return re.search(r"(^|[^a-z])(deit|dino|mae)", name.lower()) is not None
