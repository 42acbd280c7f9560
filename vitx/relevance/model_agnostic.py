"""Methods that see only a model's output, and controls that see not even that."""

import jax
import jax.numpy as jnp
from jax import lax

from vitx.explainable import Explainable
from vitx.ops import Array, Ops
from vitx.relevance.methods import at_level
from vitx.relevance.registry import Forward, method
from vitx.relevance.rulesets import EXACT


@method("RISE", pixels=True, ranges={"kept": (0.01, 0.99)}, of_probability=True, needs="")
def _rise(
    model: Explainable,
    images: Array,
    ops: Ops,
    start_layer: int,
    lean: bool,
    *,
    level: str = "pixels",
    masks: int = 500,
    cells: int = 7,
    kept: float = 0.5,
    seed: int = 0,
) -> Forward:
    """The mean of random masks, each weighed by the output under it (Petsiuk et al., BMVC 2018), on pixels.

    At the level "tokens" a map has the mean of each patch's pixels.

    A mask is a grid of `cells` x `cells`, a share `kept` of which is 1, enlarged bilinearly and shifted by up to a
    cell; the rest of the image becomes 0. The output is the softmax probability of a class. It takes `masks`
    forwards, for any number of values; published are 4,000 to 8,000.
    """
    keys = jax.random.split(jax.random.key(seed), masks)
    x = images.astype(model.dtype)

    def scores(key: Array) -> Array:
        mask = _mask(key, x.shape[1:3], cells, kept).astype(x.dtype)
        return jax.nn.softmax(model(x * mask[None, :, :, None], EXACT))

    found = lax.map(scores, keys)  # (masks, B, C)

    def one_value(gradient: Array) -> Array:
        def step(total: Array, each: tuple[Array, Array]) -> tuple[Array, None]:
            key, score = each
            mask = _mask(key, x.shape[1:3], cells, kept).astype(x.dtype)
            return total + (score * gradient).sum(-1)[:, None, None] * mask[None], None

        total, _ = lax.scan(step, jnp.zeros(x.shape[:3], x.dtype), (keys, found))
        return at_level(model, total / (masks * kept), level)

    return model(x, EXACT), one_value


def _mask(key: Array, size: tuple[int, ...], cells: int, kept: float) -> Array:
    """A smooth random mask (H, W) in [0, 1]."""
    grid_key, shift_key = jax.random.split(key)
    grid = (jax.random.uniform(grid_key, (cells + 1, cells + 1), jnp.float32) < kept).astype(
        jnp.float32
    )
    cell = [-(-side // cells) for side in size]
    large = jax.image.resize(grid, [(cells + 1) * c for c in cell], "linear")
    limits = jnp.array(cell, jnp.float32)
    start = (jax.random.uniform(shift_key, (2,), jnp.float32) * limits).astype(jnp.int32)
    return lax.dynamic_slice(large, (start[0], start[1]), size)


@method("random", by_class=False, needs="")
def _random(
    model: Explainable, images: Array, ops: Ops, start_layer: int, lean: bool, *, seed: int = 0
) -> Forward:
    """Uniform noise that depends on the seed and the image, as a control: no explanation should be worse."""
    bits = lax.bitcast_convert_type(images.astype(jnp.float32), jnp.uint32)
    key = jax.random.key(seed)

    def one(content: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(key, content), model.grid, jnp.float32)

    maps = jax.vmap(one)(bits.sum((1, 2, 3), dtype=jnp.uint32))
    return model(images, EXACT), lambda gradient: maps.astype(model.dtype)


@method("centre", by_class=False, ranges={"width": (0.01, 100)}, needs="")
def _centre(
    model: Explainable,
    images: Array,
    ops: Ops,
    start_layer: int,
    lean: bool,
    *,
    width: float = 0.25,
) -> Forward:
    """A Gaussian in the middle of the image, as a control; `width` is its standard deviation over the side."""
    rows, columns = (
        jnp.exp(
            -jnp.square((jnp.arange(side, dtype=model.dtype) + 0.5) / side - 0.5) / (2 * width**2)
        )
        for side in model.grid
    )
    maps = jnp.broadcast_to(jnp.outer(rows, columns), (len(images), *model.grid))
    return model(images, EXACT), lambda gradient: maps.astype(model.dtype)
