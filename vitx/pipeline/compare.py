"""Command `parity`: a checkpoint in PyTorch and in vitx on the same images, compared block by block."""

import math
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vitx import weights
from vitx.data.datasets.shapes import draw
from vitx.data.transforms import normalise, resize_image
from vitx.data.user_images import find_images, read_user_image
from vitx.evaluation.differences import Parity, as_json, compare
from vitx.models.vit import VisionTransformer
from vitx.relevance.rulesets import EXACT
from vitx.runtime.experiment import Run
from vitx.runtime.files import write_json
from vitx.runtime.progress import progress
from vitx.runtime.workdir import StageFolder
from vitx.weights.pytorch_reference import Reference, build_reference, require_library

# Largest relative difference of a stage. ViT-Base with random weights reaches 2e-6 in float32 and 4e-15 in float64;
# with the R50 stem, which enlarges rounding on either side, 2e-4 and 2e-13: hybrids are allowed ten times as much.
TOLERANCES: Final = {"float32": 1e-4, "float64": 1e-9}
_HYBRID: Final = 10
_RESULT: Final = "parity.json"


def compare_with_pytorch(run: Run, stage: StageFolder) -> None:
    """Prints the comparison and writes `parity.json`.

    Raises:
      SystemExit: with code 1, where the two are off.
      ValueError: for options or a checkpoint that cannot be compared.
      FileNotFoundError: for a checkpoint or image that is not there.
      ImportError: where PyTorch or both libraries are missing.
    """
    config = run.config
    dtype = _checked(config)
    require_library(config.reference)
    with jax.enable_x64(dtype == np.float64):
        model = _load(config, dtype)
        reference = build_reference(
            config.checkpoint, model, config.reference, config.architecture, dtype
        )
        images = images_for(model, config.images, config.count)
        ours, theirs = _run_both(run, model, reference, images.astype(dtype))
    usual = TOLERANCES[config.precision] * (_HYBRID if model.stem is not None else 1)
    parity = Parity(
        compare(ours, theirs),
        config.tolerance or usual,
        _predicted(ours, theirs),
        {name: (value, _settings(model)[name]) for name, value in reference.settings.items()},
    )
    about = {
        "checkpoint": str(config.checkpoint),
        "library": reference.library,
        "versions": reference.versions | {name: version(name) for name in ("jax", "flax")},
        "device": jax.devices()[0].device_kind,
        "precision": config.precision,
        "images": len(images),
        "image_size": model.preprocess.size,
        "assumed": reference.assumed,
    }
    write_json(stage.folder / _RESULT, about | as_json(parity))
    print_parity(parity, about)
    if not parity.equal:
        raise SystemExit(1)


def activations(model: VisionTransformer, images: jax.Array) -> dict[str, np.ndarray]:
    """What each part of the model gives for normalised images (B, H, W, 3), all tokens of every block.

    stem (B, h, w, C) where there is one, embedding and blocks.<number> (B, 1 + N, D), norm: the
    class token's (B, D), and logits (B, classes) of the model called as users call it.
    """
    found: dict[str, jax.Array] = {}
    features = _features(model, images)
    if model.stem is not None:
        found["stem"] = features
    tokens = found["embedding"] = _embed(model, features)
    for index, block in enumerate(model.blocks):
        tokens = found[f"blocks.{index}"] = _block(block, tokens)
    found["norm"] = _norm(model.norm, tokens)
    found["logits"] = _predict(model, images)
    return {name: np.asarray(array) for name, array in found.items()}


_features = jax.jit(lambda model, images: model.features(images, EXACT))
_embed = jax.jit(lambda model, features: model.embed(features, EXACT))
_block = jax.jit(lambda block, tokens: block(tokens, EXACT)[0])
_norm = jax.jit(lambda norm, tokens: norm(tokens[:, :1], EXACT)[:, 0])
_predict = jax.jit(lambda model, images: model(images, EXACT))


def images_for(model: VisionTransformer, files: str, count: int) -> np.ndarray:
    """Normalised images (N, H, W, 3), float32, at the model's size: the files', or `count` drawn ones."""
    if files:
        pictures = [read_user_image(path).pixels for path in find_images(files)]
    else:
        pictures = [draw(0, "val", index).image for index in range(count)]
    size = model.preprocess.size
    return normalise(np.stack([resize_image(p, size) for p in pictures]), model.preprocess)


def print_parity(parity: Parity, about: Mapping[str, Any]) -> None:
    """The table and the verdict, on standard output."""
    console = Console(file=sys.stdout, width=100, highlight=False)
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    height, width = about["image_size"]
    table = Table(
        title=escape(
            f"{Path(about['checkpoint']).name}: {about['library']} and vitx, {about['precision']}"
        ),
        caption=f"{about['images']} images of {height} x {width}; {versions}; vitx on {about['device']}",
    )
    headers = ("", "largest difference", "relative", "correlation", "")
    for number, header in enumerate(headers):
        table.add_column(header, justify="right" if number else "left")
    for d in parity.differences:
        off = not d.relative <= parity.tolerance
        correlation = "" if math.isnan(d.correlation) else f"{d.correlation:.9f}"
        table.add_row(
            d.stage, f"{d.absolute:.1e}", f"{d.relative:.1e}", correlation, "off" if off else ""
        )
    console.print(table)
    for name in about["assumed"]:
        print(
            f"The file does not say {name}: PyTorch's model was given the usual {parity.settings[name][0]:g}. With "
            "config.architecture, timm knows."
        )
    print(verdict(parity))


def verdict(parity: Parity) -> str:
    """The outcome in one line."""
    if not parity.equal:
        return f"verdict: off, {'; '.join(parity.reasons)}"
    worst = max(parity.differences, key=lambda d: d.relative)
    classes = (
        f"the same class predicted on all {len(parity.predicted)} images"
        if parity.predicted
        else "logits not compared, as the file has no such head"
    )
    return (
        f"verdict: equal, largest relative difference {worst.relative:.1e} ({worst.stage}), tolerance "
        f"{parity.tolerance:.0e}; {classes}"
    )


def _checked(config: Any) -> np.dtype:
    """The float type of the arithmetic; refuses options that cannot be."""
    if not config.checkpoint:
        raise ValueError("config.checkpoint is empty: give --config.checkpoint=FILE")
    if config.precision not in TOLERANCES:
        raise ValueError(
            f"config.precision must be {' or '.join(TOLERANCES)}, not {config.precision!r}"
        )
    for name in ("count", "batch_size"):
        if config[name] < 1:
            raise ValueError(f"config.{name} must be at least 1, not {config[name]}")
    if config.tolerance < 0:
        raise ValueError(f"config.tolerance must not be negative, not {config.tolerance}")
    return np.dtype(config.precision)


def _load(config: Any, dtype: np.dtype) -> VisionTransformer:
    told = {
        name: config[name] or None
        for name in ("num_heads", "norm_eps", "final_norm_eps", "num_classes")
    }
    size = config.image_size[0] if len(config.image_size) == 1 else config.image_size or None
    model = weights.load(config.checkpoint, image_size=size, dtype=dtype, **told)
    if not isinstance(model, VisionTransformer):
        raise ValueError(
            f"{config.checkpoint}: an AffinityNet, which neither timm nor transformers has: there is nothing in "
            "PyTorch to compare with"
        )
    return model


def _run_both(
    run: Run, model: VisionTransformer, reference: Reference, images: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Every stage's arrays over all images, ours and PyTorch's."""
    batches: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = []
    with progress(len(images), "parity") as bar:
        for start in range(0, len(images), run.config.batch_size):
            run.stop.check()
            batch = images[start : start + run.config.batch_size]
            ours = activations(model, jnp.asarray(batch))
            if not reference.has_head:
                del ours["logits"]  # of a fresh head
            batches.append((ours, reference(batch)))
            bar.advance(len(batch))
    first, second = (
        {
            name: np.concatenate([batch[side][name] for batch in batches])
            for name in batches[0][side]
        }
        for side in (0, 1)
    )
    return first, second


def _predicted(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
) -> tuple[tuple[int, int], ...]:
    if "logits" not in theirs:
        return ()
    best = (theirs["logits"].argmax(-1).tolist(), ours["logits"].argmax(-1).tolist())
    return tuple(zip(*best, strict=True))


def _settings(model: VisionTransformer) -> dict[str, float]:
    settings = {
        "num_heads": model.blocks[0].attn.heads,
        "norm_eps": model.blocks[0].norm1.epsilon,
        "final_norm_eps": model.norm.epsilon,
    }
    if model.stem is not None:
        settings["weight_standardisation_eps"] = model.stem.conv.epsilon
    return settings
