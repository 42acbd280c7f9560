"""Gaussian filtering on the permutohedral lattice (Adams, Baek & Davis, Eurographics 2010), as array operations.

Points with features f, d numbers in standard deviations, are splatted onto the d + 1 vertices of the simplex around
E f, E a multiple of an isometry of R^d onto the plane of R^(d+1) whose coordinates sum to 0; values are blurred with
(1/2, 1, 1/2) along each of d + 1 axes, among the vertices that some point lies next to; and the points read them back.
Scales, order and constants are those of Kraehenbuehl & Koltun's published CRF, up to a factor of all that is filtered.

A vertex is (d + 1) a + k with k in 0..d, its residue, and whole a_0..a_d that sum to -k. E is triangular, so that for
j = 1..d the number u_j = a_j + (sum_{i > j} a_i + k) / (j + 1) depends on feature j alone, up to a deviation of at
most j / (j + 1), and for a neighbour at most twice that. Hence the digits floor(u_j) of the points fill a small box,
and with k they number its vertices: a table of bits takes the place of a hash table, and nothing is sorted.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array


MAX_CODES = 1 << 30  # a table of 1 GiB while it is built, of 256 MiB afterwards


def round_up(number: int, steps: int = 1) -> int:
    """The least size from `number` up, of `steps` between a power of two and the next."""
    octave = 1 << max((number - 1).bit_length() - 1, 0)
    step = max(octave // steps, 1)
    return -(-number // step) * step


class Box(NamedTuple):
    """Least digit and number of digits along each feature, int32 (d,)."""

    low: np.ndarray
    size: np.ndarray

    @classmethod
    def of(cls, largest: Sequence[float]) -> "Box":
        """The box of features in [0, largest]: each vertex next to them, and each neighbour of one, is inside.

        Raises:
          OverflowError: where it has more than MAX_CODES codes.
        """
        j = np.arange(1, len(largest) + 1)
        # Both deviations, and a little for float32's rounding.
        reach = 2 * j / (j + 1) + 1e-3 + 1e-6 * np.asarray(largest)
        low = np.floor(-np.sqrt(2 / 3 * j / (j + 1)) * largest - reach)
        size = np.floor(reach) - low + 1
        if (len(low) + 1) * size.prod() > MAX_CODES:
            raise OverflowError
        return cls(low.astype(np.int32), size.astype(np.int32))

    @property
    def codes(self) -> int:
        """The number of codes, of a residue and a digit for each feature, rounded up to a multiple of 32."""
        return round_up(max((len(self.size) + 1) * math.prod(map(int, self.size)), 256), 4)


class Simplices(NamedTuple):
    """The simplex around each of N points. Vertices next to some point are numbered from 1; 0 means any other.

    Attributes:
      vertices: int32 (d + 1, N), the numbers of its corners; 0 where padding.
      weights: float32 (d + 1, N), the point's barycentric coordinates; 0 where padding.
      codes: int32 (d + 1, N), of `vertices`.
      table: uint32 (codes / 32,), a bit for every code, set where it is a vertex.
      before: int32 (codes / 32,), for each word the number of bits set in those before it.
    """

    vertices: Array
    weights: Array
    codes: Array
    table: Array
    before: Array

    @property
    def rows(self) -> Array:
        """The number of vertices and of row 0, int32; of many where there are many."""
        return 1 + self.before[..., -1] + lax.population_count(self.table[..., -1]).astype(np.int32)


class Lattice(NamedTuple):
    """A lattice of up to `capacity` - 1 vertices; row 0 means a vertex that is absent, and has the value 0.

    Attributes:
      vertices, weights: see `Simplices`.
      neighbours: int32 (d + 1, 2, capacity), of each vertex along each axis; 0 where none.
    """

    vertices: Array
    weights: Array
    neighbours: Array


def locate(features: Array, valid: Array, box: Box, codes: int) -> Simplices:
    """Finds the vertices next to points.

    Args:
      features: float32 (d, N), in the box where valid.
      valid: bool (N,), False where padding.
      box: of the features.
      codes: box.codes, static where jitted.

    Returns:
      the simplex around each point.
    """
    axes, n = len(features) + 1, len(valid)
    base, rank, weights = _embed(features)

    def encode(k: Array) -> Array:
        return _encode(base - (rank > axes - 1 - k).astype(jnp.int32), jnp.full(n, k), box)

    # In a loop, since XLA would compute a code again for each use of it.
    code = lax.map(encode, np.arange(axes, dtype=np.int32))  # (d + 1, N)
    code = jnp.where(valid[None], code, codes)
    taken = jnp.zeros(codes, bool).at[code].set(True, mode="drop")
    powers = jnp.left_shift(np.uint32(1), np.arange(32, dtype=np.uint32))[None]
    table = jnp.where(taken.reshape(-1, 32), powers, 0).sum(1, dtype=jnp.uint32)
    ones = lax.population_count(table).astype(jnp.int32)
    before = jnp.cumsum(ones, dtype=jnp.int32) - ones
    code = jnp.where(valid[None], code, 0)
    vertices = jnp.where(valid[None], _find(code, table, before), 0)
    return Simplices(vertices, jnp.where(valid[None], weights, 0), code, table, before)


def link(simplices: Simplices, box: Box, capacity: int) -> Lattice:
    """Finds the neighbours of the vertices.

    Args:
      simplices: around the points.
      box: of the features.
      capacity: at least simplices.rows; static where jitted.

    Returns:
      the lattice, on which values can be smoothed.
    """
    axes = len(simplices.vertices)
    code = jnp.zeros(capacity, jnp.int32).at[simplices.vertices].set(simplices.codes)
    a, k = _decode(code, box)
    row = jnp.arange(capacity, dtype=jnp.int32)
    real = (row > 0) & (row < simplices.rows)

    def along(way: Array) -> Array:
        # The residue moves by one, and the axis' own coordinate makes up for it.
        axis, step = way[0], way[1]
        turn = (k + step < 0).astype(jnp.int32) - (k + step >= axes).astype(jnp.int32)
        own = step * (np.arange(axes, dtype=np.int32) == axis).astype(jnp.int32)
        beside = _encode(a - turn[None] - own[:, None], k + step + axes * turn, box)
        return jnp.where(real, beside, 0)

    ways = np.array([(axis, step) for axis in range(axes) for step in (-1, 1)], np.int32)
    codes = lax.map(along, ways)
    found = jnp.where(real[None], _find(codes, simplices.table, simplices.before), 0)
    return Lattice(simplices.vertices, simplices.weights, found.reshape(axes, 2, capacity))


def smooth(lattice: Lattice, x: Array) -> Array:
    """Splats, blurs and slices: float32 (N, C) -> (N, C).

    Each step is a loop over residues or axes, which keeps XLA from computing it again for every use. On a GPU the
    order in which points are added to a vertex is not fixed, unless XLA runs with --xla_gpu_deterministic_ops.
    """

    def splat(values: Array, to: tuple[Array, Array]) -> tuple[Array, None]:
        vertices, weights = to
        return values.at[vertices].add(weights[:, None] * x, mode="promise_in_bounds"), None

    def blur(values: Array, beside: Array) -> tuple[Array, None]:
        return values + 0.5 * (_gather(values, beside[0]) + _gather(values, beside[1])), None

    def slice_(y: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
        vertices, weights = at
        return y + weights[:, None] * _gather(values, vertices), None

    values = jnp.zeros((lattice.neighbours.shape[-1], x.shape[1]), x.dtype)
    simplices = (lattice.vertices, lattice.weights)
    values = lax.scan(splat, values, simplices)[0]
    values = lax.scan(blur, values, lattice.neighbours)[0]
    return lax.scan(slice_, jnp.zeros_like(x), simplices)[0]


def _embed(features: Array) -> tuple[Array, Array, Array]:
    """The simplex around each of N points (d, N): a of its 0th vertex, ranks, and barycentric coordinates (d + 1, N).

    The vertex of residue k has 1 less in a where the rank is above d - k.
    """
    d = len(features)
    elevated, total = [], jnp.zeros_like(features[0])
    for j in range(d, 0, -1):
        scaled = features[j - 1] * np.float32(math.sqrt(2 / 3) * (d + 1) / math.sqrt(j * (j + 1)))
        elevated.append(total - j * scaled)
        total = total + scaled
    point = jnp.stack([total, *elevated[::-1]])  # (d + 1, N)
    nearest = jnp.round(point * np.float32(1 / (d + 1)))
    rest, base = point - (d + 1) * nearest, nearest.astype(jnp.int32)
    # Coordinates ranked by the remainder of rounding, largest first; ranks rotate where base does not sum to 0.
    earlier = np.tri(d + 1, k=-1, dtype=bool)
    rank = jnp.broadcast_to(base.sum(0, dtype=jnp.int32)[None], base.shape)
    for j in range(d + 1):
        ahead = (rest[j : j + 1] > rest) | earlier[:, j, None] & (rest[j : j + 1] == rest)
        rank = rank + ahead.astype(jnp.int32)
    turn = (rank < 0).astype(jnp.int32) - (rank > d).astype(jnp.int32)
    rank, base = rank + (d + 1) * turn, base + turn
    rest = rest * np.float32(1 / (d + 1)) - turn.astype(jnp.float32)
    last = np.arange(d, -1, -1, dtype=np.int32)[:, None]
    ranked = jnp.zeros_like(rest)  # smallest first
    for j in range(d + 1):
        ranked = ranked + jnp.where(rank[j : j + 1] == last, rest[j : j + 1], 0)
    weights = ranked - jnp.roll(ranked, 1, 0) + (last == d).astype(np.float32)
    return base, rank, weights


def _encode(a: Array, k: Array, box: Box) -> Array:
    """Codes of vertices: a (d + 1, N), k (N,)."""
    code, above = k, jnp.zeros_like(k)
    for j in range(len(a) - 1, 0, -1):
        code = code * box.size[j - 1] + a[j] + (above + k) // (j + 1) - box.low[j - 1]
        above = above + a[j]
    return code


def _decode(code: Array, box: Box) -> tuple[Array, Array]:
    """Of codes (N,): a (d + 1, N) and k (N,)."""
    digits = []
    for j in range(len(box.size)):
        digits.append(code % box.size[j] + box.low[j])
        code = code // box.size[j]
    k, above, a = code, jnp.zeros_like(code), []
    for j in range(len(digits), 0, -1):
        a.append(digits[j - 1] - (above + k) // (j + 1))
        above = above + a[-1]
    return jnp.stack([-k - above, *a[::-1]]), k


def _find(code: Array, table: Array, before: Array) -> Array:
    """The number of the vertex of each code, 0 where it is none."""
    word, bit = code >> 5, jnp.left_shift(np.uint32(1), (code & 31).astype(jnp.uint32))
    found = _gather(table, word)
    number = 1 + _gather(before, word) + lax.population_count(found & (bit - 1)).astype(jnp.int32)
    return jnp.where((found & bit) != 0, number, 0)


def _gather(table: Array, index: Array) -> Array:
    return table.at[index].get(mode="promise_in_bounds")
