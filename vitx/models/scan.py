"""Runs blocks in a scan, so that a backward pass takes little memory."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vitx.ops import Array, Ops


def scan_blocks(
    blocks: Sequence[nnx.Module],
    tokens: Array,
    ops: Ops,
    probes: Sequence[Array | None],
    **options: Any,
) -> Array:
    """The tokens (B, N, D) above blocks of one structure; a backward pass keeps the blocks' inputs alone.

    It computes the rest again. The blocks run in a scan over their stacked weights, because a compiler may recompute
    unrolled ones too early. `probes` has an entry per block; entries of None must come first. All blocks get `options`.
    """
    if not blocks:
        return tokens
    graph, _ = nnx.split(blocks[0])

    @jax.checkpoint
    def step(x: Array, scanned: tuple[nnx.State, Array | None]) -> tuple[Array, None]:
        state, probe = scanned
        return nnx.merge(graph, state)(x, ops, probe, **options)[0], None

    probed = [probe for probe in probes if probe is not None]
    start = len(blocks) - len(probed)
    if any(probe is None for probe in probes[start:]):
        raise ValueError(
            "lean blocks take probes of the last blocks only: put entries of None first"
        )
    for part, zeros in ((blocks[:start], None), (blocks[start:], probed)):
        if part:
            states = [nnx.split(block)[1] for block in part]
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
            scanned = (stacked, None if zeros is None else jnp.stack(zeros))
            tokens, _ = jax.lax.scan(step, tokens, scanned)
    return tokens
