"""Command `parity`: compares a checkpoint in PyTorch and in vitx on the same images, block by block."""

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
from rich.table import Column, Table

from vitx.data.transforms import normalise, resize_image
from vitx.data.user_images import find_images, read_user_image
from vitx.evaluation.differences import Parity, compare
from vitx.models.vit import VisionTransformer
from vitx.relevance.rulesets import EXACT
from vitx.runtime.experiment import Run, Stage
from vitx.runtime.files import write_json
from vitx.runtime.options import among, number, whole
from vitx.runtime.progress import busy, progress
from vitx.runtime.workdir import StageFolder
from vitx.weights import load_classifier
from vitx.weights.pickled import WHICH
from vitx.weights.pytorch_reference import LIBRARIES, Reference, build_reference
from vitx.weights.write import describe

# Largest relative difference of a stage. ViT-Base with random weights reaches 2e-6 in float32 and 4e-15 in float64;
# with the R50 stem, which amplifies rounding on either side, 2e-4 and 2e-13: hybrids are allowed ten times as much.
TOLERANCES: Final = {"float32": 1e-4, "float64": 1e-9}
_HYBRID: Final = 10
_OVERRIDES: Final = ("num_heads", "norm_eps", "final_norm_eps", "num_classes", "which")
_COLUMNS: Final = ("largest difference", "relative", "correlation", "")


def compare_with_pytorch(run: Run, stage: StageFolder) -> None:
    """Prints the comparison and writes `parity.json`; exit code 1 where the two models differ."""
    config = run.config
    if not config.checkpoint:
        raise ValueError("config.checkpoint is empty: give --config.checkpoint=FILE")
    size = config.image_size[0] if len(config.image_size) == 1 else config.image_size
    overrides = {name: config[name] for name in _OVERRIDES} | {"dtype": config.precision}
    with jax.enable_x64(config.precision == "float64"):
        with busy("parity: loading the checkpoint"):
            model = load_classifier(config.checkpoint, headless=True, image_size=size, **overrides)
        if not isinstance(model, VisionTransformer):
            raise ValueError(
                f"{config.checkpoint} holds a CNN, and only Vision Transformers are compared with PyTorch"
            )
        with busy("parity: building PyTorch's model"):
            reference = build_reference(
                config.checkpoint,
                model,
                config.reference,
                config.architecture,
                config.precision,
                config.which or None,
            )
        images = images_for(model, config.images, config.count)
        ours, theirs = _run_both(run, model, reference, images.astype(config.precision))
    usual = TOLERANCES[config.precision] * (_HYBRID if model.stem is not None else 1)
    settings = describe(model)
    best = [arrays["logits"].argmax(-1).tolist() for arrays in (theirs, ours) if "logits" in arrays]
    parity = Parity(
        compare(ours, theirs),
        config.tolerance or usual,
        tuple(zip(*best, strict=True)),
        {name: (value, settings[name]) for name, value in reference.settings.items()},
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
    write_json(stage.folder / "parity.json", about | parity.as_json())
    print_parity(parity, about)
    if parity.reasons:
        raise SystemExit(1)


def activations(model: VisionTransformer, images: jax.Array) -> dict[str, np.ndarray]:
    """The output of each part of the model for normalised images (B, H, W, 3), all tokens of every block.

    stem (B, h, w, C) where there is one; embedding, blocks.<number> and norm, where there is one, (B, prefix + patches,
    D); logits (B, classes), or pooled (B, W) without a head, of the model called as users call it.
    """
    found: dict[str, jax.Array] = {}
    features = _features(model, images)
    if model.stem is not None:
        found["stem"] = features
    tokens = found["embedding"] = _embed(model, features)
    for index, block in enumerate(model.blocks):
        tokens = found[f"blocks.{index}"] = _block(model, block, tokens)
    if model.norm is not None:
        found["norm"] = _norm(model.norm, tokens)
    found["logits" if model.num_classes else "pooled"] = _predict(model, images)
    return {name: np.asarray(array) for name, array in found.items()}


_features = jax.jit(lambda model, images: model.features(images, EXACT))
_embed = jax.jit(lambda model, features: model.embed(features, EXACT))
_block = jax.jit(lambda model, block, tokens: block(tokens, EXACT, rotate=model.rotation())[0])
_norm = jax.jit(lambda norm, tokens: norm(tokens, EXACT))
_predict = jax.jit(lambda model, images: model(images, EXACT))


def images_for(model: VisionTransformer, files: str, count: int) -> np.ndarray:
    """Normalised images (N, H, W, 3), float32, at the model's size: the files', or `count` drawn ones."""
    if files:
        pictures = [read_user_image(path) for path in find_images(files)]
    else:
        from vitx.data.datasets.shapes import draw  # its package needs the extra "data"

        pictures = [draw(0, "val", index).image for index in range(count)]
    size = model.preprocess.size
    return normalise(np.stack([resize_image(p, size) for p in pictures]), model.preprocess)


def print_parity(parity: Parity, about: Mapping[str, Any]) -> None:
    """Prints the table and the verdict on standard output."""
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    height, width = about["image_size"]
    table = Table(
        "",
        *(Column(name, justify="right") for name in _COLUMNS),
        title=escape(
            f"{Path(about['checkpoint']).name}: {about['library']} and vitx, {about['precision']}"
        ),
        caption=f"{about['images']} images of {height} x {width}; {versions}; vitx on {about['device']}",
    )
    for d in parity.differences:
        correlation = "" if math.isnan(d.correlation) else f"{d.correlation:.9f}"
        off = "off" if d in parity.off else ""
        table.add_row(d.stage, f"{d.absolute:.1e}", f"{d.relative:.1e}", correlation, off)
    Console(file=sys.stdout, width=100, highlight=False).print(table)
    for name in about["assumed"]:
        print(
            f"The file does not specify {name}: PyTorch's model has the usual {parity.settings[name][0]:g}. "
            "With config.architecture, timm knows it."
        )
    print(verdict(parity, guessed="num_heads" in about["assumed"]))


def verdict(parity: Parity, guessed: bool = False) -> str:
    """The outcome in one line; `guessed`: whether both sides' number of heads follows from the width."""
    if parity.reasons:
        return f"verdict: off, {'; '.join(parity.reasons)}"
    worst = max(parity.differences, key=lambda d: d.relative)
    classes = "logits not compared, as the file has no such head"
    if parity.differences[-1].stage == "pooled":
        classes = "without a head, so the pooled output is compared"
    if parity.predicted:
        classes = f"the same class predicted on all {len(parity.predicted)} images"
    return (
        f"verdict: equal{', but heads were guessed' * guessed}, largest relative difference {worst.relative:.1e} "
        f"({worst.stage}), tolerance "
        f"{parity.tolerance:.0e}; {classes}"
    )


def _run_both(
    run: Run, model: VisionTransformer, reference: Reference, images: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Every stage's arrays over all images, ours and PyTorch's."""
    ours, theirs = [], []
    with progress(len(images), "parity", compiles=True) as bar:
        for start in range(0, len(images), run.config.batch_size):
            run.stop.check()
            batch = images[start : start + run.config.batch_size]
            ours.append(activations(model, jnp.asarray(batch)))
            theirs.append(reference(batch))
            bar.advance(len(batch))
    names = [name for name in ours[0] if reference.output or name != "logits"]
    arrays = {name: np.concatenate([batch[name] for batch in ours]) for name in names}
    expected = {name: np.concatenate([batch[name] for batch in theirs]) for name in theirs[0]}
    if "norm" in arrays and expected["norm"].ndim == 2:  # CLIP's, of the class token alone
        arrays["norm"] = arrays["norm"][:, 0]
    return arrays, expected


COMMAND = Stage(
    "parity",
    compare_with_pytorch,
    options={
        "which": among(("", *WHICH)),
        "reference": among(("auto", *LIBRARIES)),
        "precision": among(tuple(TOLERANCES)),
        "tolerance": number(0),
        "num_classes": whole(0),
        "count": whole(1),
    },
    command=True,
)
