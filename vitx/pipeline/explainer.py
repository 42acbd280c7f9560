"""A checkpoint that explains images of any size: its classes, its input sizes, its maps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jax
import numpy as np
from flax import nnx

from vitx import weights
from vitx.data.class_names import IMAGENET_CLASSES, find_classes, imagenet_names, read_names
from vitx.data.datasets.shapes import CLASSES
from vitx.data.transforms import normalise
from vitx.models.vit import VisionTransformer
from vitx.ops import Array
from vitx.parallel import pad_batch
from vitx.relevance.explain import RULES, explain
from vitx.relevance.methods import REGISTRY
from vitx.runtime.files import parse_json
from vitx.weights.files import FOLDER_FILES

DEMO: Final = Path("runs/shapes/classifier")
ASPECTS: Final = ("squash", "keep")
SCORES: Final = ("auto", "softmax", "sigmoid")
_TOLD: Final = ("num_heads", "norm_eps", "final_norm_eps")  # options of `load`, where not 0
_OCTAVES: Final = 2.0  # the longest aspect kept, 4:1, as a power of two
_STEPS: Final = 2  # sizes in an octave

Size = tuple[int, int]


@dataclass(frozen=True)
class Explanation:
    """What a model says of one image.

    Attributes:
        classes: those explained, int32 (K,).
        logits: float32 (C,).
        probabilities: float32 (C,).
        maps: raw, (K, h, w) by method.
    """

    classes: np.ndarray
    logits: np.ndarray
    probabilities: np.ndarray
    maps: Mapping[str, np.ndarray]


class Explainer:
    """The checkpoint that `config` names, and what is wanted of it (configs/explain.py).

    Attributes:
        methods: to explain by.
        names: of all classes.
        scores: "softmax" or "sigmoid".
        options: all that its explanations depend on, comparable as JSON.

    Raises:
        ValueError: for an option that cannot be, or a checkpoint that is no classifier.
        FileNotFoundError: if there is no checkpoint.
    """

    def __init__(self, config: Any):
        self._config = config
        self.methods = _methods(config.methods)
        for key, known in (("rules", RULES), ("aspect", ASPECTS), ("scores", SCORES)):
            if config[key] not in known:
                raise ValueError(
                    f"config.{key} must be one of {', '.join(known)}, not {config[key]!r}"
                )
        for key in ("batch_size", "best", "top"):
            if config[key] < 1:
                raise ValueError(f"config.{key} must be at least 1, not {config[key]}")
        self._path = _checkpoint(config.checkpoint)
        self._model = self._load(_image_size(config.image_size))
        self._models: dict[Size, VisionTransformer] = {self._model.preprocess.size: self._model}
        self._rows: dict[Size, int] = {}  # of the batches that each size was compiled for
        trained = _trained_classes(self._path, config.checkpoint)
        self.names = _names(config.class_names, self._model.num_classes, trained)
        # What train.py makes is multi-label; what the world publishes, as good as never.
        usual = "sigmoid" if trained else "softmax"
        self.scores = usual if config.scores == "auto" else config.scores
        self._classes = find_classes(config.classes, self.names) if config.classes else ()
        start = config.start_layer.to_dict()
        self._start = {method: start.get(method, 0) for method in self.methods}
        self.options: dict[str, Any] = {
            "checkpoint": weights.digest(self._path),
            "classes": self._classes or config.best,
            "names": self.names,
            "scores": self.scores,
            "start_layer": self._start,  # in the order of the methods
            "input_size": self._model.preprocess.size,
            **{key: config[key] for key in ("rules", "aspect", *_TOLD)},
        }

    def _load(self, size: Size | None) -> VisionTransformer:
        told = {key: self._config[key] for key in _TOLD}
        return weights.load_classifier(self._path, image_size=size, **told)

    def input_size(self, image_size: Size) -> Size:
        """The size (H, W) at which the model sees an image of `image_size`."""
        own = self._model.preprocess.size
        if self._config.aspect == "squash":
            return own
        rows, columns = self._model.grid
        grid = nearest_grid(image_size, rows * columns)
        return grid[0] * (own[0] // rows), grid[1] * (own[1] // columns)

    def __call__(self, images: Sequence[np.ndarray]) -> list[Explanation]:
        """Explains at most `config.batch_size` uint8 images of one `input_size`."""
        size: Size = images[0].shape[:2]
        model = self._at(size)
        # One compilation a size: the first batch is the largest, since only a size's last is not full.
        rows = self._rows.setdefault(size, _rounded_up(len(images), self._config.batch_size))
        batch, _ = pad_batch(normalise(np.stack(images), model.preprocess), rows)
        logits = np.asarray(_logits(model, batch))
        classes = self._explained(logits)
        maps = {
            method: np.asarray(
                explain(model, batch, classes, method, self._start[method], self._config.rules)[1]
            )
            for method in self.methods
        }
        activation = jax.nn.softmax if self.scores == "softmax" else jax.nn.sigmoid
        probabilities = np.asarray(activation(logits))
        return [
            Explanation(
                classes[index],
                logits[index],
                probabilities[index],
                {method: values[index] for method, values in maps.items()},
            )
            for index in range(len(images))
        ]

    def _explained(self, logits: np.ndarray) -> np.ndarray:
        """Classes int32 (B, K): those wanted, or the best."""
        if self._classes:
            return np.tile(np.array(self._classes, np.int32), (len(logits), 1))
        return best_classes(logits, self._config.best).astype(np.int32)

    def _at(self, size: Size) -> VisionTransformer:
        """The model at an input size; all sizes share their weights but for the position embedding."""
        if size not in self._models:
            model = self._load(size)
            weights = nnx.state(self._model)
            del weights["pos_embed"]
            nnx.update(model, weights)
            self._models[size] = model
        return self._models[size]


def best_classes(scores: np.ndarray, count: int) -> np.ndarray:
    """The `count` classes (or all) of highest score (..., C), in falling order, (..., K)."""
    return np.argsort(-scores, axis=-1, kind="stable")[..., :count]


def nearest_grid(image_size: Size, tokens: int) -> Size:
    """A grid (h, w) of about so many tokens with about the image's aspect.

    Aspects are rounded to steps of half an octave, up to 4:1, so that there are nine grids.
    """
    octaves = np.clip(np.log2(image_size[1] / image_size[0]), -_OCTAVES, _OCTAVES)
    aspect = 2.0 ** (round(octaves * _STEPS) / _STEPS)
    return max(1, round((tokens / aspect) ** 0.5)), max(1, round((tokens * aspect) ** 0.5))


@jax.jit
def _logits(model: VisionTransformer, images: Array) -> Array:
    with jax.default_matmul_precision("highest"):  # as in explain
        return model(images)


def _rounded_up(count: int, most: int) -> int:
    """The next power of two: few sizes to compile for, over many runs with few images each."""
    return min(most, 1 << (count - 1).bit_length())


def _methods(wanted: str) -> tuple[str, ...]:
    if wanted.strip() == "all":
        return tuple(REGISTRY)
    methods = tuple(dict.fromkeys(name.strip() for name in wanted.split(",")))
    if unknown := [name for name in methods if name not in REGISTRY]:
        raise ValueError(
            f"config.methods: {unknown[0]!r} is none of {', '.join(REGISTRY)}; or give 'all'"
        )
    return methods


def _image_size(wanted: Any) -> Size | None:
    sides = np.atleast_1d(np.asarray(wanted, object)).tolist()
    if sides in ([], [0], [0, 0]):
        return None
    if len(sides) > 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"config.image_size must be a side or (H, W), not {wanted!r}")
    return sides[0], sides[-1]


def _checkpoint(wanted: str) -> Path:
    if wanted:
        return Path(wanted).expanduser()
    if not any((DEMO / name).is_file() for name in FOLDER_FILES):
        raise ValueError(
            f"there is no trained model in {DEMO}: run `make demo` first, or give "
            "--config.checkpoint=FILE"
        )
    return DEMO


def _trained_classes(path: Path, wanted: str) -> tuple[str, ...]:
    """The classes that train.py trained the checkpoint on, from the scores beside it; () if it did not."""
    scores = (path if path.is_dir() else path.parent) / "scores.json"
    try:
        return tuple(map(str, parse_json(scores.read_text())["average_precision"]))
    except (OSError, ValueError, KeyError, TypeError):
        return () if wanted else CLASSES[1:]


def _names(wanted: str, count: int, trained: tuple[str, ...]) -> tuple[str, ...]:
    if wanted:
        return read_names(Path(wanted).expanduser(), count)
    if len(trained) == count:
        return trained
    if count == IMAGENET_CLASSES:
        return imagenet_names()
    return tuple(f"class {number}" for number in range(count))
