"""Models with random weights, and their inputs, forwards and FLOPs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import vitx
from vitx.models.vit import VisionTransformer


def random_model(name: str, **options: Any) -> VisionTransformer:
    """`vitx.create(name, **options)` with other random weights."""
    return with_random_weights(partial(vitx.create, name, **options))


def with_random_weights(make: Callable[[], Any], dtype: type = np.float32) -> Any:
    """The model `make` describes, its kernels normal over the root of their inputs, its scales about 1.

    NumPy draws the weights, so that only what is timed is compiled. They are float32 numbers whatever the `dtype`.
    """
    graph, state = nnx.split(nnx.eval_shape(make))
    generator = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> jax.Array:
        noise, name = generator.standard_normal(leaf.shape), jax.tree_util.keystr(path)
        if "kernel" in name:
            values = noise / np.sqrt(np.prod(leaf.shape[:-1]))
        else:
            values = 1 + 0.1 * noise if "scale" in name else 0.02 * noise
        return jnp.asarray(values.astype(np.float32).astype(dtype))

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, state))


def in_both_precisions(name: str, images: int) -> tuple[VisionTransformer, Any, np.ndarray]:
    """A model in float32, the same one in float64, and float32 images (images, 1, H, W, 3), normally distributed."""
    create = partial(vitx.create, name, num_classes=1000)
    single, double = (with_random_weights(create, dtype) for dtype in (np.float32, np.float64))
    shape = (images, 1, *single.preprocess.size, 3)
    return single, double, np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def random_images(model: VisionTransformer, batch: int) -> jax.Array:
    """Normally distributed images (batch, H, W, 3) of the model's size."""
    shape = (batch, *model.preprocess.size, 3)
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))


@partial(jax.jit, static_argnames="precision")
def forward(model: VisionTransformer, images: jax.Array, precision: str = "highest") -> jax.Array:
    """The logits; the default precision is full float32, that of explanations."""
    with jax.default_matmul_precision(precision):
        return model(images)


def flops(function: Any, *arguments: Any) -> float:
    """FLOPs of a jitted function by XLA's analysis of the program as written; a multiply-add counts as two."""
    return function.lower(*arguments).cost_analysis()["flops"]
