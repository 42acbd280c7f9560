"""The random walk of AffinityNet: maps spread along affinities (Ahn & Kwak, CVPR 2018).

W is symmetric with unit diagonal; W^beta elementwise, its columns divided by their sums, is the
transition T, and maps m become m T^(2^log2_steps) (docs/protocol.md, "Walk"). T joins each pixel to its
neighbours inside a radius only, so one step is a stencil, and no H W x H W matrix is ever made.
"""

import math
import operator
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vitx.pseudomasks.affinity import block, offsets

Array = jax.Array

METHODS = ("exact", "chebyshev")


def random_walk(
    affinity: Array,
    maps: Array,
    beta: float = 16,
    log2_steps: int = 8,
    method: str = "exact",
    tolerance: float = 1e-5,
) -> Array:
    """Walks 2^log2_steps steps along the affinities.

    Args:
      affinity: (..., P, H, W) in [0, 1] as from `affinities`: [p, i, j] joins (i, j) and (i, j) +
        offsets[p]. It may be nonzero anywhere; entries that point outside the image do nothing.
        The radius follows from P.
      maps: (..., K, H, W), with the same leading axes.
      beta: exponent of the affinities, above 0; larger keeps the walk inside of edges.
      log2_steps: the walk has 2^log2_steps steps.
      method: "exact", step by step, or "chebyshev", about 6 sqrt(steps) of them.
      tolerance: largest absolute error of "chebyshev" on maps in [0, 1].

    Returns:
      maps (..., K, H, W), in the affinity's type: averages of the maps that came in.

    Raises:
      ValueError: for options out of range, shapes that do not fit, or a tolerance below rounding.
    """
    affinity, maps = jnp.asarray(affinity), jnp.asarray(maps)
    _check(affinity, maps, beta, log2_steps)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    coefficients = None
    if method == "chebyshev":
        smallest = 32 * float(jnp.finfo(affinity.dtype).eps)
        if not smallest <= tolerance < 1:
            raise ValueError(
                f"tolerance must be in [{smallest:.1e}, 1) in {affinity.dtype}, not {tolerance}"
            )
        pixels, most = math.prod(maps.shape[-2:]), 2 * affinity.shape[-3] + 1
        coefficients = tuple(chebyshev_coefficients(2**log2_steps, pixels * most, tolerance))
    return _walk(affinity, maps.astype(affinity.dtype), beta, 2**log2_steps, coefficients)


def _check(affinity: Array, maps: Array, beta: float, log2_steps: int) -> None:
    if affinity.ndim < 3 or not jnp.issubdtype(affinity.dtype, jnp.floating):
        raise ValueError(
            f"affinity must be floats (..., P, H, W), not {affinity.dtype} {affinity.shape}"
        )
    shape = affinity.shape
    if maps.ndim != affinity.ndim or maps.shape[:-3] != shape[:-3] or maps.shape[-2:] != shape[-2:]:
        raise ValueError(
            f"maps {maps.shape} do not fit the affinity {shape}: (..., K, H, W) wanted"
        )
    if beta <= 0:
        raise ValueError(f"beta must be above 0, not {beta}")
    if log2_steps < 0 or log2_steps != int(log2_steps):
        raise ValueError(f"log2_steps must be a whole number from 0 up, not {log2_steps}")
    _radius(shape[-3])


def chebyshev_coefficients(steps: int, spread: float, tolerance: float) -> np.ndarray:
    """The head of x^steps = sum_k c_k T_k(x) that keeps a walk within the tolerance.

    All c_k >= 0: c_k = 2^(1 - steps) binomial(steps, (steps - k) / 2) where k has the parity of
    steps (half of that at k = 0), else 0; they sum to 1. What is left out beyond degree d weighs
    delta = sum_{k > d} c_k, and errs by E = sum_{k > d} c_k T_k(P) m, P the averaging m -> m T.

    The bound: let D be the diagonal of degrees (column sums of W^beta). D^(1/2) P D^(-1/2) is
    symmetric with its spectrum in [-1, 1], so T_k(P) does not grow the norm |v|_D^2 = sum_i d_i
    v_i^2. Maps in [0, 1] are 1/2 + s/2 with |s| <= 1, and T_k(P) 1 = 1. Hence for every pixel

        |E_i| <= delta/2 + delta/2 |s|_D / sqrt(d_i) <= delta/2 (1 + sqrt(N d_max / d_min)).

    With W in [0, 1] and a unit diagonal degrees lie in [1, 2 P + 1], whatever the affinities are.
    The square root costs few steps, since c_k falls like exp(-k^2 / (2 steps)).

    Args:
      steps: the power.
      spread: N d_max / d_min, pixels times the largest ratio of degrees.
      tolerance: half of it is the bound's, the other half is for rounding.

    Returns:
      (d + 1,) float64, d >= 1 the smallest degree that does.
    """
    first = 2 - steps % 2  # the smallest k > 0 of the right parity
    terms = [1.0]  # c_k / c_first for k = first, first + 2, ...
    for k in range(first, steps, 2):
        terms.append(terms[-1] * (steps - k) / (steps + k + 2))
        if terms[-1] < 1e-25:
            break
    coefficients = np.zeros(first + 2 * len(terms) - 1)
    coefficients[first::2] = terms
    if steps % 2 == 0:
        coefficients[0] = (steps + 2) / steps / 2  # half the ratio of binomials
    coefficients /= coefficients.sum()
    tails = np.append(np.cumsum(coefficients[:0:-1])[::-1], 0.0)  # beyond degree 0, 1, ...
    kept = tails / 2 * (1 + math.sqrt(spread)) <= tolerance / 2
    return coefficients[: max(1, int(np.argmax(kept))) + 1]


@partial(jax.jit, static_argnames=("beta", "steps", "coefficients"))
def _walk(
    affinity: Array, maps: Array, beta: float, steps: int, coefficients: tuple[float, ...] | None
) -> Array:
    moves, weights = _transition(affinity, beta)
    step = partial(_step, moves, weights)
    if coefficients is None:
        return lax.fori_loop(0, steps, lambda _, m: step(m), maps)
    c = jnp.asarray(coefficients, maps.dtype)

    def body(
        state: tuple[Array, Array, Array], factor: Array
    ) -> tuple[tuple[Array, Array, Array], None]:
        before, now, total = state
        after = 2 * step(now) - before  # T_{k+1} = 2 x T_k - T_{k-1}
        return (now, after, total + factor * after), None

    once = step(maps)
    (_, _, total), _ = lax.scan(body, (maps, once, c[0] * maps + c[1] * once), c[2:])
    return total


def _step(moves: list[tuple[int, int]], weights: Array, maps: Array) -> Array:
    """One step m T: at every pixel the weighted average of the maps (..., K, H, W) around it.

    Written by differences, sum_j w_ij (m_j - m_i): weights that sum to 1 but for rounding would
    let the maps' level drift over thousands of steps.
    """
    reach = max(dy for dy, _ in moves)
    wide = _pad(maps, reach)
    terms = (
        weights[..., p, None, :, :] * (_look(wide, reach, move) - maps)
        for p, move in enumerate(moves)
    )
    return maps + reduce(operator.add, terms)


def _transition(affinity: Array, beta: float) -> tuple[list[tuple[int, int]], Array]:
    """Where a pixel looks besides itself, and its weights there, (..., 2 P, H, W)."""
    pairs, height, width = affinity.shape[-3:]
    radius = _radius(pairs)
    ahead = offsets(radius)  # (P, 2)
    y, x = (ahead[:, axis, None, None] + np.indices((height, width))[axis] for axis in (0, 1))
    inside = (y < height) & (x >= 0) & (x < width)  # (P, H, W)
    forth = jnp.where(jnp.broadcast_to(inside, affinity.shape), affinity**beta, 0)

    def reverse(inputs: tuple[Array, Array]) -> Array:
        weight, offset = inputs
        start = (radius - 1 - offset[0], radius - 1 - offset[1])
        return block(_pad(weight, radius - 1), start, (height, width), axis=-2)

    back = lax.map(reverse, (jnp.moveaxis(forth, -3, 0), jnp.asarray(ahead)))
    weights = jnp.concatenate([forth, jnp.moveaxis(back, 0, -3)], axis=-3)
    moves = [(dy, dx) for dy, dx in [*ahead.tolist(), *(-ahead).tolist()]]
    return moves, weights / (1 + weights.sum(-3, keepdims=True))


def _pad(x: Array, reach: int) -> Array:
    """Zeros around the last two axes."""
    return jnp.pad(x, ((0, 0),) * (x.ndim - 2) + ((reach, reach),) * 2)


def _look(wide: Array, reach: int, move: tuple[int, int]) -> Array:
    """What every pixel sees by a move: padded (..., H + 2 reach, W + 2 reach) -> (..., H, W)."""
    top, left = reach + move[0], reach + move[1]
    bottom, right = wide.shape[-2] - reach + move[0], wide.shape[-1] - reach + move[1]
    return wide[..., top:bottom, left:right]


def _radius(pairs: int) -> int:
    """The radius that has so many pairs."""
    radius = 2
    while len(offsets(radius)) < pairs:
        radius += 1
    if len(offsets(radius)) != pairs:
        raise ValueError(f"no radius has {pairs} pairs; 2 has 4, 3 has 12, 5 has 34")
    return radius
