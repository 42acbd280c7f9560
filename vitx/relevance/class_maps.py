"""Class activation maps: what each patch, or each cell of a CNN's last feature map, adds to a value."""

import jax.numpy as jnp

from vitx.explainable import Explainable
from vitx.ops import Array, Ops
from vitx.relevance.methods import embedded, on_grid, positive
from vitx.relevance.registry import LINEAR_HEAD, Forward, method


@method("CAM", needs=LINEAR_HEAD)
def _cam(model: Explainable, images: Array, ops: Ops, start_layer: int, lean: bool) -> Forward:
    """The positive part of the head's product with each patch or cell (Zhou et al., CVPR 2016): one forward in all.

    Without that part, a map's mean is the value less that of the head's bias.
    """
    encoded, _ = model.encode(embedded(model, images), ops)
    shares = model.class_map(encoded, ops)  # (B, N, C)

    def one_value(gradient: Array) -> Array:
        share = jnp.einsum("bnc,bc->bn", shares, gradient, precision="highest")
        return on_grid(model, positive(share))

    return model.classify(encoded, ops), one_value
