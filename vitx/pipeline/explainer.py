"""A checkpoint that explains images of any size: its classes, its input sizes, its maps."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from vitx import weights
from vitx.data.class_names import find_classes, output_names, read_names
from vitx.data.transforms import normalise
from vitx.models.families import MODELS
from vitx.models.registry import CNNS
from vitx.models.variants import Classifier
from vitx.ops import Array
from vitx.parallel import pad_batch
from vitx.relevance.explain import explain_many
from vitx.relevance.methods import TABLE_METHODS
from vitx.relevance.outliers import high_norm_tokens, neighbours_median, patch_norms
from vitx.relevance.registry import REGISTRY
from vitx.runtime.files import parse_json
from vitx.weights.class_names import ASSUMED, IMAGENET
from vitx.weights.files import FOLDER_FILES
from vitx.weights.read import assumed_heads

DEMO: Final = Path("runs/shapes/classifier")
ASPECTS: Final = ("squash", "keep", "crop")
_OVERRIDES: Final = ("num_heads", "norm_eps", "final_norm_eps", "which")  # of the checkpoint's own
_EVALUATION: Final = ("interpolation", "crop_mode", "crop_pct")
_FORMAT: Final = 4  # of the results: those of another format are written again
_OCTAVES: Final = 2.0  # the longest aspect kept, 4:1, as a power of two
_STEPS: Final = 2  # aspects in an octave

Size = tuple[int, int]


class Explanation(NamedTuple):
    """A model's scores and maps of one image.

    Attributes:
        classes: the explained ones, int32 (K,).
        logits: float32 (C,).
        probabilities: float32 (C,).
        maps: raw, (K, h, w) by method.
        high_norm: patch tokens of high norm, bool (h, w).
    """

    classes: np.ndarray
    logits: np.ndarray
    probabilities: np.ndarray
    maps: Mapping[str, np.ndarray]
    high_norm: np.ndarray


class Explainer:
    """The checkpoint and the explanations that a config asks for (configs/explain.py).

    Attributes:
        model: the classifier at its own input size, or at `config.image_size`.
        methods: names of explanation methods.
        names: of all classes.
        scores: "softmax" or "sigmoid".
        options: everything that results depend on except the image, comparable as JSON.

    Raises:
        ValueError: for an unknown method or class, or a checkpoint that is no classifier.
        FileNotFoundError: if there is no checkpoint.
    """

    def __init__(self, config: ConfigDict):
        self._config = config
        _methods(config.methods)  # before a large file is read
        path = _checkpoint(config.checkpoint)
        overrides = {key: config[key] for key in _OVERRIDES}
        self._load = partial(weights.load_classifier, path, **overrides)
        sides = np.ravel(config.image_size).tolist()
        size = (sides * 2 if len(sides) == 1 else sides) if any(sides) else ()
        self.model = self._load(image_size=size)
        self.methods = _methods(config.methods, self.model)
        self._models: dict[Size, Classifier] = {self.model.preprocess.size: self.model}
        self._rows: dict[Size, int] = {}  # of the batches that each size is compiled for
        trained = trained_classes(path, () if config.checkpoint else demo_classes())
        assumed = self.model.class_names_source in (ASSUMED, IMAGENET)
        known = trained if trained and assumed else self.model.class_names or trained
        self.names = _names(config.class_names, self.model.num_classes, known)
        # Files of older versions of train.py, which trains multi-label classifiers, do not say so.
        usual = self.model.scores or ("sigmoid" if trained else "softmax")
        self.scores = usual if config.scores == "auto" else config.scores
        self._classes = find_classes(config.classes, self.names) if config.classes else ()
        self._start = {method: config.start_layer.get(method, 0) for method in self.methods}
        self.options: dict[str, Any] = {
            "checkpoint": weights.digest(path),
            "classes": self._classes or config.best,
            "names": self.names,
            "scores": self.scores,
            "start_layer": self._start,  # in the order of the methods
            "input_size": self.model.preprocess.size,
            "evaluation": [getattr(self.model.preprocess, key) for key in _EVALUATION],
            **{key: config[key] for key in ("rules", "aspect", "high_norm", *_OVERRIDES)},
            "format": _FORMAT,
            **{key: config[key] for key in ("top", "font", "overlays", "overlay", "strength")},
        }

    def note(self, size: Size) -> str:
        """A warning where heads were guessed, or the demo's model explains an image that is not of its size, or ""."""
        if self._config.checkpoint or size == self.model.preprocess.size:
            return assumed_heads(self.model).partition(":")[0]
        return (
            f"this is the demo's model, which knows nothing but {len(self.names)} drawn shapes "
            f"({', '.join(self.names)}): what it says of a photograph means nothing; give a checkpoint"
        )

    def fingerprint(self, data: bytes) -> str:
        """A digest of an image file's content and of everything else that its results depend on."""
        made_of = json.dumps([self.options, hashlib.sha256(data).hexdigest()])
        return hashlib.sha256(made_of.encode()).hexdigest()

    def __call__(self, images: Sequence[np.ndarray]) -> list[Explanation]:
        """Explains at most `config.batch_size` uint8 images (H, W, 3) of one `input_size`.

        Of each size the first batch must be the largest: the later ones are filled up to its length.
        """
        size: Size = images[0].shape[:2]
        model = self.at(size)
        # A power of two: runs of few images, each of another number, share compiled programs.
        most = min(self._config.batch_size, 1 << (len(images) - 1).bit_length())
        rows = self._rows.setdefault(size, most)
        batch, _ = pad_batch(normalise(np.stack(images), model.preprocess), rows)
        logits = np.asarray(_logits(model, batch))  # (B, C)
        if self._classes:
            classes = np.tile(np.array(self._classes, np.int32), (rows, 1))  # (B, K)
        else:
            classes = best_classes(logits, self._config.best).astype(np.int32)
        _, found = explain_many(
            model, batch, classes, self.methods, self._start, self._config.rules
        )
        maps = {method: np.asarray(each) for method, each in found.items()}
        high_norm = high_norm_tokens(patch_norms(model, batch))
        if self._config.high_norm == "median":
            for method, each in maps.items():
                if each.shape[-2:] == model.grid:  # not of pixels
                    maps[method] = np.asarray(neighbours_median(jnp.asarray(each), high_norm))
        masks = np.asarray(high_norm)
        activation = jax.nn.softmax if self.scores == "softmax" else jax.nn.sigmoid
        probabilities = np.asarray(activation(logits))
        return [
            Explanation(
                classes[index],
                logits[index],
                probabilities[index],
                {method: each[index] for method, each in maps.items()},
                masks[index],
            )
            for index in range(len(images))
        ]

    def at(self, size: Size) -> Classifier:
        """The model at an input size; all sizes share their weights except the position embedding."""
        if size not in self._models:
            model = self._load(image_size=size)
            shared = nnx.state(self.model)
            shared.pop("pos_embed", None)
            nnx.update(model, shared)
            self._models[size] = model
        return self._models[size]


@jax.jit
def _logits(model: Classifier, images: Array) -> Array:
    with jax.default_matmul_precision("highest"):  # as in explain
        return model(images)


def best_classes(scores: np.ndarray, count: int) -> np.ndarray:
    """The `count` classes (or all) with the highest scores (..., C), the best first, (..., K)."""
    return np.argsort(-scores, axis=-1, kind="stable")[..., :count]


def input_size(model: Classifier, image_size: Size, aspect: str) -> Size:
    """The size (H, W) at which a model sees an image of `image_size`.

    Args:
        model: a classifier.
        image_size: (H, W) in pixels.
        aspect: "squash" and "crop" for the model's own size; "keep" for about as many tokens in about the image's
            aspect.
    """
    own = model.preprocess.size
    if aspect != "keep":
        return own
    rows, columns = model.grid
    grid = nearest_grid(image_size, rows * columns)
    return grid[0] * (own[0] // rows), grid[1] * (own[1] // columns)


def nearest_grid(image_size: Size, tokens: int) -> Size:
    """A grid (h, w) of about so many tokens with about the image's aspect.

    Aspects are rounded to steps of half an octave, up to 4:1, so that there are nine grids.
    """
    octaves = np.clip(np.log2(image_size[1] / image_size[0]), -_OCTAVES, _OCTAVES)
    aspect = 2.0 ** (round(octaves * _STEPS) / _STEPS)
    return max(1, round((tokens / aspect) ** 0.5)), max(1, round((tokens * aspect) ** 0.5))


def _methods(wanted: str, model: Classifier | None = None) -> tuple[str, ...]:
    """The names of the wanted methods, which the model must have, where it is given.

    "all" are [Re]'s and CAM, those that the model has; "auto" is transformer attribution, or GradCAM of a CNN.
    """
    if wanted.strip() == "auto":
        attention = model is None or bool(model.attention_shapes())
        return ("transformer_attribution",) if attention else ("gradcam",)
    if wanted.strip() == "all":
        usual = (*TABLE_METHODS, "cam")
        return () if model is None else tuple(n for n in usual if REGISTRY[n].explains(model))
    names = map(str.strip, wanted.split(","))
    methods = tuple(dict.fromkeys(names))
    if unknown := [name for name in methods if name not in REGISTRY]:
        raise ValueError(
            f"config.methods: {unknown[0]!r} is none of {', '.join(REGISTRY)}; or give 'all' or 'auto'"
        )
    if model is not None:
        for name in methods:
            REGISTRY[name].require(model)
    return methods


def _checkpoint(wanted: str) -> Path:
    path = Path(wanted).expanduser()
    if wanted in (*MODELS, *CNNS) and not path.exists():
        raise ValueError(
            f"{wanted} names an architecture, whose weights would be random: give a file of trained weights"
        )
    if wanted:
        return path
    if not any((DEMO / name).is_file() for name in FOLDER_FILES):
        raise ValueError(
            f"there is no trained model in {DEMO}: run `make demo` first, or give "
            "a checkpoint (vitx explain --model FILE, or --config.checkpoint=FILE)"
        )
    return DEMO


def demo_classes() -> tuple[str, ...]:
    """The classes of the demo's model."""
    from vitx.data.datasets.shapes import CLASSES  # its package needs the extra "data"

    return CLASSES[1:]


def trained_classes(path: Path, default: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The classes that train.py trained a checkpoint on, from the scores beside it; the default without any."""
    scores = (path if path.is_dir() else path.parent) / "scores.json"
    try:
        return tuple(map(str, parse_json(scores.read_text())["average_precision"]))
    except (OSError, ValueError, KeyError, TypeError):
        return default


def _names(wanted: str, count: int, known: tuple[str, ...]) -> tuple[str, ...]:
    if wanted:
        return read_names(Path(wanted).expanduser(), count)
    return output_names(count, known)
