"""The random walk of AffinityNet: maps spread along affinities (Ahn & Kwak, CVPR 2018).

W is symmetric with unit diagonal; W^beta elementwise, its columns divided by their sums, is the
transition T, and maps m become m T^(2^log2_steps) (docs/protocol.md, "Walk"). T joins each pixel to its
neighbours inside a radius alone, so one step is a stencil, and no H W x H W matrix is built.
"""

import math
import operator
from collections.abc import Callable
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vitx.pseudomasks.affinity import inside, offsets

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
        offsets[p]. It may be nonzero anywhere; entries that point outside the image are ignored.
        The radius follows from P.
      maps: (..., K, H, W), with the same leading axes.
      beta: exponent of the affinities, above 0; larger keeps the walk inside of edges.
      log2_steps: the walk has 2^log2_steps steps.
      method: "exact", step by step with compensated sums, or "chebyshev", about 6 sqrt(steps) steps.
      tolerance: largest absolute error of "chebyshev" on maps in [0, 1], rounding included.

    Returns:
      maps (..., K, H, W), in the affinity's type: averages of the maps that came in.

    Raises:
      ValueError: for options out of range, shapes or types that do not fit, a tolerance below rounding, or an affinity
        outside [0, 1]. The affinity's values are not checked inside another `jit`.
    """
    affinity, maps = (x if isinstance(x, jax.Array) else np.asarray(x) for x in (affinity, maps))
    beta = float(beta)
    _check(affinity, maps, beta, log2_steps)
    affinity, maps = jnp.asarray(affinity), jnp.asarray(maps)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be in (0, 1), not {tolerance}")
    steps, coefficients = 2 ** int(log2_steps), None
    if method == "chebyshev":
        # Rounding errors of a step may grow with those that follow: with the square of the degree.
        smallest = max(48, steps / 32) * float(jnp.finfo(affinity.dtype).eps)
        if tolerance < smallest:
            raise ValueError(
                f"tolerance must be in [{smallest:.1e}, 1) for {steps} steps in {affinity.dtype}, "
                f"not {tolerance}; method 'exact' needs none"
            )
        pixels, most = math.prod(maps.shape[-2:]), 2 * affinity.shape[-3] + 1
        coefficients = tuple(chebyshev_coefficients(steps, pixels * most, tolerance))
    return _walk(affinity, maps.astype(affinity.dtype), beta, steps, coefficients)


def dense_walk(affinity: Array, maps: Array, beta: float = 16, log2_steps: int = 8) -> Array:
    """Walks 2^log2_steps steps along affinities between all pixels of an image, not only between near ones.

    Args:
      affinity: (..., N, N) in [0, 1], symmetric, with a unit diagonal, N = H W.
      maps: (..., K, H, W), with the same leading axes.
      beta: see `random_walk`.
      log2_steps: see `random_walk`.

    Returns:
      maps (..., K, H, W), in the affinity's type.

    Raises:
      ValueError: for shapes that do not fit.
    """
    pixels = math.prod(maps.shape[-2:])
    if affinity.shape != (*maps.shape[:-3], pixels, pixels):
        raise ValueError(
            f"affinity {affinity.shape} and maps {maps.shape} do not fit: {pixels} pixels"
        )
    power = int(beta) if beta == int(beta) else beta
    weights = affinity**power
    averaging = weights / weights.sum(-1, keepdims=True)  # (P m)_i = sum_j W_ij m_j / d_i
    flat = maps.reshape(*maps.shape[:-2], pixels).astype(affinity.dtype)

    def step(_: int, now: Array) -> Array:
        return jnp.einsum("...kj,...ij->...ki", now, averaging, precision="highest")

    return lax.fori_loop(0, 2**log2_steps, step, flat).reshape(maps.shape)


def _check(affinity: Array, maps: Array, beta: float, log2_steps: int) -> None:
    if affinity.ndim < 3 or not jnp.issubdtype(affinity.dtype, jnp.floating):
        raise ValueError(
            f"affinity must be floats (..., P, H, W), not {affinity.dtype} {affinity.shape}"
        )
    shape = affinity.shape
    if maps.ndim != affinity.ndim or maps.shape[:-3] != shape[:-3] or maps.shape[-2:] != shape[-2:]:
        raise ValueError(
            f"maps {maps.shape} do not fit the affinity {shape}: they must be (..., K, H, W)"
        )
    if maps.dtype == object or jnp.issubdtype(maps.dtype, jnp.complexfloating):
        raise ValueError(f"maps must be real numbers, not {maps.dtype}")
    # The bound on the error needs it. Not by a minimum: XLA's on a CPU may ignore NaN.
    fits = (affinity >= 0) & (affinity <= 1)
    # Inside another jit even a constant's values are traced.
    if not isinstance(fits, jax.core.Tracer) and not fits.all():
        found = float(affinity.ravel()[fits.argmin()])
        raise ValueError(f"affinity must be in [0, 1], found {found:g}")
    if not 0 < beta < math.inf:
        raise ValueError(f"beta must be a number above 0, not {beta}")
    if not 0 <= log2_steps < math.inf or log2_steps != int(log2_steps):
        raise ValueError(f"log2_steps must be a whole number from 0 up, not {log2_steps}")
    _radius(shape[-3])


def chebyshev_coefficients(steps: int, spread: float, tolerance: float) -> np.ndarray:
    """The head of x^steps = sum_k c_k T_k(x) that keeps a walk within the tolerance.

    All c_k >= 0: c_k = 2^(1 - steps) binomial(steps, (steps - k) / 2) where k has the parity of
    steps (half of it at k = 0), else 0; they sum to 1. The terms beyond degree d have the sum
    delta = sum_{k > d} c_k, which T_0 = 1 gets, so that the error is E = sum_{k > d} c_k
    (T_k(P) - 1) m, P the averaging m -> m T.

    The bound: let D be the diagonal of degrees (column sums of W^beta). D^(1/2) P D^(-1/2) is
    symmetric with its spectrum in [-1, 1], so T_k(P) does not grow the norm |v|_D^2 = sum_i d_i
    v_i^2. Maps in [0, 1] are 1/2 + s/2 with |s| <= 1, and T_k(P) 1 = 1. Hence for every pixel

        |E_i| <= delta/2 |s|_D / sqrt(d_i) + delta/2 |s_i| <= delta/2 (sqrt(N d_max / d_min) + 1).

    With W in [0, 1] and a unit diagonal degrees lie in [1, 2 P + 1], whatever the affinities are.
    The square root costs few steps, since c_k falls like exp(-k^2 / (2 steps)).

    Args:
      steps: the power.
      spread: N d_max / d_min, pixels times the largest ratio of degrees.
      tolerance: half of it for the truncation, the other half for rounding.

    Returns:
      (d + 1,) float64, d >= 1 the smallest degree within the tolerance.
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
    def walk(affinity: Array, maps: Array) -> Array:
        flow = partial(_flow, *_transition(affinity, beta))
        maps = jnp.swapaxes(maps, -3, -2)  # (..., H, K, W)
        walked = (
            _power(flow, maps, steps) if coefficients is None else _series(flow, maps, coefficients)
        )
        return jnp.swapaxes(walked, -3, -2)

    def in_turn(affinity: Array, maps: Array) -> Array:
        images = (x.reshape(-1, *x.shape[-3:]) for x in (affinity, maps))
        return lax.map(lambda image: walk(*image), tuple(images)).reshape(maps.shape)

    if affinity.ndim == 3:
        return walk(affinity, maps)
    # An image's weights stay in a CPU's cache for all of its steps; other devices have more to fill.
    return lax.platform_dependent(affinity, maps, cpu=in_turn, default=walk)


def _power(flow: Callable[[Array], Array], maps: Array, steps: int) -> Array:
    """Step by step with Kahan's summation: what rounding loses in a step is added to the next.

    Otherwise every step would lose changes far below a map's own size.
    """

    def body(_: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        now, lost = state
        # Half of the change, as in _series: XLA's CPU backend compiles a sum alone to a slow loop.
        half = 0.5 * flow(now) + lost
        after = now + 2 * half
        return after, half - 0.5 * (after - now)

    return lax.fori_loop(0, steps, body, (maps, jnp.zeros_like(maps)))[0]


def _series(flow: Callable[[Array], Array], maps: Array, coefficients: tuple[float, ...]) -> Array:
    """sum_k c_k T_k(P) m; T_0 gets what the coefficients lack to 1.

    Summed over the changes C_k = T_k(P) m - T_{k-1}(P) m, which obey C_1 = (P - 1) m and C_{k+1} =
    C_k + 2 (P - 1) T_k(P) m: constant maps stay what they are, and where P is near 1, rounding
    errors grow slower than in T_{k+1} = 2 P T_k - T_{k-1}.
    """
    tails = np.cumsum(coefficients[:0:-1])[::-1]  # sum_{j >= k} c_j for k = 1, 2, ..., d
    factors = np.where(np.arange(len(tails)), 1, 0.5)  # the first change lacks the 2

    def body(
        state: tuple[Array, Array, Array], terms: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array, Array], None]:
        now, half, total = state  # half of C_k
        factor, tail = terms
        half += factor * flow(now)
        return (now + 2 * half, half, total + 2 * tail * half), None

    terms = jnp.asarray(factors, maps.dtype), jnp.asarray(tails, maps.dtype)
    (_, _, total), _ = lax.scan(body, (maps, jnp.zeros_like(maps), maps), terms)
    return total


def _flow(weights: Array, rates: Array, maps: Array) -> Array:
    """The change of the maps (..., H, K, W) in one step: (P - 1) m, P the averaging m -> m T.

    A sum of differences w_ij (m_j - m_i): weights that sum to 1 up to rounding would let the level
    of the maps drift over thousands of steps. Each pair's two terms are added first: one long
    chain of additions would wait for each of them.
    """
    reach = (weights.shape[-1] - maps.shape[-1]) // 2
    wide = _pad(maps, reach)

    def pair(p: int, dy: int, dx: int) -> Array:
        weight = weights[..., p : p + 1, :]
        forth = _shifted(weight, reach, 0, 0) * (_shifted(wide, reach, dy, dx) - maps)
        back = _shifted(weight, reach, -dy, -dx) * (_shifted(wide, reach, -dy, -dx) - maps)
        return forth + back

    moves = offsets(reach + 1).tolist()
    return rates * reduce(operator.add, (pair(p, *move) for p, move in enumerate(moves)))


def _transition(affinity: Array, beta: float) -> tuple[Array, Array]:
    """W^beta of all pairs, (..., H + 2 reach, P, W + 2 reach), and 1 / degrees, (..., H, 1, W).

    W is symmetric, so each pair's weight is stored once and read from both ends; zeros surround the
    image. Rows come first: the weights of a row of pixels lie together, and are still in the cache
    for the next maps and rows, for images of any size.
    """
    count, height, width = affinity.shape[-3:]
    moves = offsets(_radius(count))
    reach = int(moves.max())
    both = inside((height, width), reach + 1).swapaxes(0, 1)  # (H, P, W)
    power = int(beta) if beta == int(beta) else beta  # whole powers are products
    weights = jnp.swapaxes(affinity, -3, -2) ** power
    weights = _pad(jnp.where(jnp.broadcast_to(both, weights.shape), weights, 0), reach)
    seen = (
        _shifted(weights[..., p : p + 1, :], reach, *end)
        for p, (dy, dx) in enumerate(moves.tolist())
        for end in ((0, 0), (-dy, -dx))
    )
    return weights, 1 / (1 + reduce(operator.add, seen))


def _pad(x: Array, reach: int) -> Array:
    """Zeros around rows and columns: (..., H, C, W) -> (..., H + 2 reach, C, W + 2 reach)."""
    around = (reach, reach)
    return jnp.pad(x, ((0, 0),) * (x.ndim - 3) + (around, (0, 0), around))


def _shifted(wide: Array, reach: int, dy: int, dx: int) -> Array:
    """Values at an offset from each pixel: (..., H + 2 reach, C, W + 2 reach) -> (..., H, C, W)."""
    bottom, right = wide.shape[-3] - reach + dy, wide.shape[-1] - reach + dx
    return wide[..., reach + dy : bottom, :, reach + dx : right]


def _radius(pairs: int) -> int:
    """The radius with this number of pairs."""
    radius = 2
    while len(offsets(radius)) < pairs:
        radius += 1
    if len(offsets(radius)) != pairs:
        raise ValueError(f"no radius has {pairs} pairs; 2 has 4, 3 has 12, 5 has 34")
    return radius
