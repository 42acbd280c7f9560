"""Models with random weights drawn by NumPy: nothing is compiled but what is timed."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import vitx


def random_model(name: str, **options: Any) -> Any:
    """`vitx.create(name, **options)` with other random weights."""
    return with_random_weights(partial(vitx.create, name, **options))


def with_random_weights(make: Callable[[], Any]) -> Any:
    """The model that `make` describes: kernels normal over the root of their inputs, scales about 1."""
    graph, state = nnx.split(nnx.eval_shape(make))
    generator = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> jax.Array:
        noise, name = generator.standard_normal(leaf.shape, np.float32), jax.tree_util.keystr(path)
        if "kernel" in name:
            return jnp.asarray(noise / np.sqrt(np.float32(np.prod(leaf.shape[:-1]))))
        return jnp.asarray(1 + 0.1 * noise if "scale" in name else 0.02 * noise)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, state))
