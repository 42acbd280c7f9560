"""What a checkpoint specifies besides its tensors, and what the caller of `load` overrides."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

import jax.numpy as jnp
import numpy as np

from vitx.models import checks
from vitx.models.design import CROP_MODES, INTERPOLATIONS, VIT, Design, Preprocess
from vitx.models.families import IMAGENET
from vitx.models.heads import HEADS
from vitx.models.model import SCORES
from vitx.models.vgg import AFFINITY_DILATION, AFFINITY_LEVELS
from vitx.runtime.files import parse_json
from vitx.runtime.paths import as_path
from vitx.weights.files import (
    FOLDER_FILES,
    Checkpoint,
    beside,
    find_file,
    open_checkpoint,
    parts_of,
)
from vitx.weights.hugging_face import read_hugging_face
from vitx.weights.names import Named
from vitx.weights.timm_config import read_timm

_LARGEST: Final = 2**13  # pixels of a side: they bound the memory of a resampled position embedding


def _checked_by(check: Callable[[Any], Any]) -> Any:
    return field(default=None, metadata={"check": check})


class _Checked:
    """Checks and converts the values of a frozen dataclass that are not None, or raises a ValueError."""

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]
            if (value := getattr(self, item.name)) is not None:
                value = checks.checked(item.name, value, item.metadata["check"])
                object.__setattr__(self, item.name, value)


def _float_type(value: Any) -> np.dtype:
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        dtype = np.dtype(object)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"must be a float type, not {value!r}")
    if dtype == np.float64 and jnp.result_type(float) != np.float64:
        raise ValueError("float64 needs jax_enable_x64")
    return dtype


def _bounded_size(value: Any) -> tuple[int, int]:
    if max(size := checks.image_size(value)) > _LARGEST:
        raise ValueError(f"must be at most {_LARGEST}, not {value!r}")
    return size


def _parts_of_a_design(value: Any) -> dict[str, Any]:
    """Parts by name, of the type and range of `Design`'s; whether they fit together shows in `Design`."""
    if not isinstance(value, dict):
        raise ValueError(f"must be an object of a design's parts, not {value!r:.100}")
    usual = asdict(VIT)
    for name, part in value.items():
        if name not in usual:
            raise ValueError(f"has an unknown part, {name!r:.100}")
        if type(part) is not type(usual[name]) or (type(part) is int and not 0 <= part < 2**31):
            raise ValueError(
                f"has {name} {part!r:.100}, where one like {usual[name]!r} is expected"
            )
    if not 0 < value.get("rotary_base", 1.0) < float("inf"):
        raise ValueError(f"has rotary_base {value['rotary_base']}, which must be positive")
    return value


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"must be a list of names, not {value!r:.100}")
    return tuple(value)


def _different_names(value: Any) -> tuple[str, ...]:
    if len(set(names := _names(value))) < len(names):
        raise ValueError("has a name twice")
    return names


def _one_or_several(value: Any) -> int | tuple[int, ...]:
    if isinstance(value, list | tuple):
        return tuple(map(checks.positive_int, value))
    return checks.positive_int(value)


def _count(value: Any) -> int:
    return value if type(value) is int and value == 0 else checks.positive_int(value)


def _known_head(value: Any) -> str:
    if value not in HEADS:
        raise ValueError(f"must be one of {', '.join(HEADS)}, not {value!r:.100}")
    return value


@dataclass(frozen=True)
class Overrides(_Checked):
    """The arguments of `load`, which documents them; None means: use the file's own value."""

    num_heads: int | None = _checked_by(checks.positive_int)
    image_size: tuple[int, int] | None = _checked_by(checks.image_size)
    num_classes: int | None = _checked_by(checks.positive_int)
    norm_eps: float | None = _checked_by(checks.positive_float)
    final_norm_eps: float | None = _checked_by(checks.positive_float)
    dtype: np.dtype | None = _checked_by(_float_type)  # noqa: RUF009
    head: str | None = _checked_by(_known_head)


@dataclass(frozen=True)
class Metadata(_Checked):
    """What a file specifies; None where it does not. Sizes are (height, width), in pixels.

    `image_size` is that of the position embedding. timm resamples the embedding to its `img_size`, and trained the
    model at its `input_size`: either is also the size of the embedding where it gives as many cells. `crop_size` is the
    input's. `design` has parts of the model's design, all of them in a file of `save`. `num_classes` counts where it is
    0: the file is whole without a head. `assumed` has the names of values that were guessed when the file was written.
    """

    num_heads: int | None = _checked_by(checks.positive_int)
    norm_eps: float | None = _checked_by(checks.positive_float)
    final_norm_eps: float | None = _checked_by(checks.positive_float)
    mean: tuple[float, float, float] | None = _checked_by(checks.three_numbers)
    std: tuple[float, float, float] | None = _checked_by(checks.three_positive)
    image_size: tuple[int, int] | None = _checked_by(_bounded_size)
    interpolation: str | None = _checked_by(checks.one_of(INTERPOLATIONS))
    crop_mode: str | None = _checked_by(checks.one_of(CROP_MODES))
    crop_pct: float | None = _checked_by(checks.share)
    img_size: tuple[int, int] | None = _checked_by(_bounded_size)
    input_size: tuple[int, int] | None = _checked_by(_bounded_size)
    crop_size: tuple[int, int] | None = _checked_by(_bounded_size)
    design: dict[str, Any] | None = _checked_by(_parts_of_a_design)  # noqa: RUF009
    num_classes: int | None = _checked_by(_count)
    weight_standardisation_eps: float | None = _checked_by(checks.positive_float)
    stem_stride: int | None = _checked_by(checks.positive_int)
    stem_unstrided: int | None = _checked_by(checks.positive_int)
    grid: tuple[int, int] | None = _checked_by(_bounded_size)
    groups: int | tuple[int, ...] | None = _checked_by(_one_or_several)
    fc6_dilation: int | None = _checked_by(checks.positive_int)
    levels: tuple[str, ...] | None = _checked_by(_different_names)
    class_names: tuple[str, ...] | None = _checked_by(_names)
    scores: str | None = _checked_by(checks.one_of(SCORES))
    assumed: tuple[str, ...] | None = _checked_by(_names)

    def preprocess(self, size: tuple[int, int]) -> Preprocess:
        """The preprocessing at an input size; what is not specified is 0.5, or `Preprocess`'s own."""
        names = ("mean", "std", "interpolation", "crop_mode", "crop_pct")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return Preprocess(**given, size=size)


def _nothing(checkpoint: Checkpoint, named: Named) -> dict[str, Any]:
    return {}


def read_metadata(checkpoint: Checkpoint, named: Named) -> Metadata:
    """Reads, first to last: the file's own metadata, the JSON beside it, its name, the project's conventions."""
    specified = _PROJECTS.get(named.scheme.project, _nothing)(checkpoint, named)
    found = {name: value for name, value in specified.items() if value is not None}
    if _named_after_imagenet_models(checkpoint.path):
        found = dict(zip(("mean", "std"), IMAGENET, strict=True)) | found
    own = checkpoint.metadata
    if "family" in own:
        raise ValueError(
            f"it holds a {own['family']}, a model of your own: load builds only vitx's"
        )
    for name in [item.name for item in fields(Metadata) if item.name in own]:
        try:
            found[name] = parse_json(own[name])
        except ValueError:
            raise ValueError(f"metadata {name} is no JSON: {own[name]!r:.100}") from None
    try:
        metadata = Metadata(**found)
        if "num_heads" in own:  # written by `save`, which leaves out the parts that are usual
            parts = metadata.design if "design" in own and metadata.design else {}
            metadata = replace(metadata, design=asdict(Design(**parts)))
        return metadata
    except ValueError as error:
        raise ValueError(f"in its metadata or the JSON beside it, {error!s:.200}") from error


def remark_on_guesses(path: str | Path) -> str:
    """A sentence on the number of heads where it was guessed before `save` wrote a file; "" where it was not."""
    with open_checkpoint(path) as checkpoint:
        own = checkpoint.metadata
    if "num_heads" not in own.get("assumed", ""):
        return ""
    return guessed_heads(Path(path).parent.name, own["num_heads"])


def guessed_heads(model: str, heads: int | str) -> str:
    """A sentence for reports of a model whose number of heads follows from its width alone."""
    return (
        f"The number of heads of {model}, {heads}, was guessed from the width, as no file specifies it: with another "
        "one all of these figures are others."
    )


def digest(path: str | Path) -> str:
    """16 hexadecimal digits that change with whatever `load` makes a model from.

    They follow from the file (or all shards of an index), the JSON beside it, and whether its name implies ImageNet's
    mean and std.

    Raises:
      FileNotFoundError: if there is nothing at `path`.
      ValueError: for a folder without a checkpoint, or something that is not a regular file, such as a FIFO.
    """
    try:
        path = find_file(as_path(path))
        parts = [find_file(part) for part in parts_of(path)]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    content = hashlib.sha256()
    for part in parts:
        with part.open("rb") as file:
            hashlib.file_digest(file, lambda: content)
    for other in beside(path.parent):
        content.update(other.read_bytes() if other.is_file() else b"-")
    content.update(str(_named_after_imagenet_models(path)).encode())
    return content.hexdigest()[:16]


def _google(checkpoint: Checkpoint, named: Named) -> Mapping[str, Any]:
    """The queries' kernels are (width, heads, d)."""
    shapes = [t.shape for name, t in named.original.items() if name.endswith("/query/kernel")]
    return {"num_heads": next((shape[1] for shape in shapes if len(shape) == 3), None)}


def _psa(checkpoint: Checkpoint, named: Named) -> Mapping[str, Any]:
    """Pixels from 0 to 255, less their mean; AffinityNet's levels, groups, and dilation of fc6."""
    pixels = {"mean": [x / 255 for x in (122.675, 116.669, 104.008)], "std": [1 / 255] * 3}
    if "affinity_conv.weight" not in named.tensors:
        return pixels
    dilated = {"fc6_dilation": AFFINITY_DILATION}
    return pixels | dilated | {"levels": AFFINITY_LEVELS, "groups": (8, 16, 32)}


_PROJECTS: Final[dict[str, Callable[[Checkpoint, Named], Mapping[str, Any]]]] = {
    "Google": _google,
    "Hugging Face": read_hugging_face,
    "timm": lambda checkpoint, named: read_timm(checkpoint.config, named.tensors),
    "[Re]": lambda checkpoint, named: {"weight_standardisation_eps": 1e-6},
    "psa": _psa,
    "torchvision": lambda checkpoint, named: dict(zip(("mean", "std"), IMAGENET, strict=True)),
}


def _named_after_imagenet_models(path: Path) -> bool:
    """DeiT, DINO and MAE have a ViT's tensors but ImageNet's mean and std."""
    # Hubs name every file alike, and the folder after the model; their cache has folders of versions in this one.
    folder = path.parents[2] if path.parent.parent.name == "snapshots" else path.parent
    name = folder.name if path.name in FOLDER_FILES else path.name
    return re.search(r"(^|[^a-z])(deit|dino|mae)", name.lower()) is not None
