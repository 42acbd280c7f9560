"""Small models for tests: weights drawn with NumPy, which compiles nothing."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import vitx
from vitx.models import families
from vitx.models.design import VIT, Design, Preprocess
from vitx.models.vit import VisionTransformer
from vitx.relevance.explain import METHODS
from vitx.relevance.methods import TABLE_METHODS
from vitx.relevance.registry import LINEAR_HEAD, REGISTRY


def filled(make: Callable[[], Any], seed: int = 0) -> Any:
    """The model of `make` with every weight drawn, so that each of them matters."""
    graph, state = nnx.split(nnx.eval_shape(make))
    generator = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> jax.Array:
        noise = generator.standard_normal(leaf.shape)
        name = jax.tree_util.keystr(path)
        if "kernel" in name:
            values = noise / np.sqrt(np.prod(leaf.shape[:-1]))
        else:
            values = 1 + 0.1 * noise if "scale" in name else 0.3 * noise
        return jnp.asarray(values.astype(leaf.dtype))

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, state))


def guessing(path: Path, num_classes: int = 3, side: int = 8) -> int:
    """Writes a ViT without metadata, so that its heads are guessed; returns the guess, which is wrong."""

    def make() -> VisionTransformer:
        sizes = {"width": 128, "depth": 1, "heads": 4, "hidden": 128, "patch": side // 4}
        preprocess = Preprocess(size=(side, side))
        return VisionTransformer(
            **sizes, num_classes=num_classes, preprocess=preprocess, rngs=nnx.Rngs(0)
        )

    vitx.save(filled(make), path)
    save_file(load_file(path), path)
    return 2


FAMILIES = {
    "vit": VIT,
    "deit3": families.DEIT3,
    "distilled": families.DISTILLED,
    "registers": Design(registers=2, positions="patches"),
    "mean": families.MEAN,
    "mae": families.MAE,
    "class+mean": Design(pooling="class+mean"),
    "best": Design(head="best", best_patches=2),
    "pooled+best": Design(head="pooled+best", best_patches=3),
    "dinov2": families.DINOV2,
    "dinov2 gated": replace(families.DINOV2, mlp="gated", activation="silu"),
    "dinov2 registers": replace(families.DINOV2_REGISTERS, positions="no registers"),
    "dinov3": families.DINOV3,
    "dinov3 gated": replace(families.DINOV3, mlp="gated", activation="silu", qkv_bias="none"),
    "clip": replace(families.CLIP_VISION, projection=10),
    "siglip": families.SIGLIP,
    "eva02": families.EVA02,
    "eva02 base": replace(families.EVA02, mlp_norm=True),
}
"""A small design of each family."""


USUAL_METHODS = (*TABLE_METHODS, "generic_attention", "legrad", "attn_lrp_gamma", "libragrad")


CLASS_TOKEN_METHODS = tuple(name for name in METHODS if REGISTRY[name].needs != LINEAR_HEAD)
"""The methods that any Vision Transformer has."""


def each_method(methods: Sequence[str] = CLASS_TOKEN_METHODS) -> list[Any]:
    """Parameters of a test of some methods; those that share their code with a usual one are exhaustive."""
    return [
        pytest.param(name, marks=[] if name in USUAL_METHODS else pytest.mark.exhaustive)
        for name in methods
    ]


def small_family(name: str, **changes: Any) -> VisionTransformer:
    """`small_vit` of a design of `FAMILIES`; its heads have four channels, as rotary positions need."""
    return small_vit(**{"width": 16, "heads": 4, "design": FAMILIES[name], **changes})


def small_vit(**changes: Any) -> VisionTransformer:
    """Two blocks over a 2 x 3 grid of 8 x 12 images, three classes."""
    sizes = {"width": 12, "depth": 2, "heads": 2, "hidden": 20, "patch": 4, "num_classes": 3}
    preprocess = Preprocess(size=changes.pop("size", (8, 12)))
    return filled(
        lambda: VisionTransformer(**{**sizes, **changes}, preprocess=preprocess, rngs=nnx.Rngs(0))
    )


def small_hybrid() -> VisionTransformer:
    """The registry's smallest hybrid on a 4 x 6 grid, three classes."""
    return filled(lambda: vitx.create("vit_test_conv_s4_48", num_classes=3, image_size=(16, 24)))


def images_for(model: VisionTransformer, count: int, seed: int = 1) -> jax.Array:
    """Normally distributed images, (count, H, W, 3)."""
    values = np.random.default_rng(seed).standard_normal((count, *model.preprocess.size, 3))
    return jnp.asarray(values.astype(model.dtype))


def recognising(model: VisionTransformer, images: jax.Array, classes: np.ndarray) -> None:
    """Gives a model a head by which it puts each of the images (N, H, W, 3) into its class.

    Its scores order classes by the distance of the class token to that of their image, so that
    perturbed images are lost one by one.
    """
    tokens, _ = model.encode(model.embed(model.features(images)))
    prototypes = np.asarray(model.norm(tokens[:, 0]), np.float64)  # (N, D)
    prototypes -= prototypes.mean(0)
    kernel, bias = np.zeros(model.head.kernel.shape), np.full(model.num_classes, -1e4)
    kernel[:, classes] = prototypes.T
    bias[classes] = -(prototypes**2).sum(1) / 2
    bias[classes] -= prototypes @ np.asarray(model.norm(tokens[:, 0]), np.float64).mean(0)
    dtype = model.head.bias.dtype
    model.head.kernel.set_value(jnp.asarray(kernel, dtype))
    model.head.bias.set_value(jnp.asarray(bias, dtype))
