"""The random walk against powers of the dense transition matrix, and how its time grows with pixels and maps.

256 steps, float32. The dense side squares the H W x H W matrix eight times and applies it; building the matrix is not
timed. The walk is timed as a whole.

python -m benchmarks.walk [--sizes 56,28,112,224] [--maps 1,4,16] [--batch 8] [--runs 5]
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.command import parse_options
from benchmarks.tables import print_table, print_targets
from benchmarks.timing import alternate, median_ratio
from vitx.pseudomasks.affinity import offsets
from vitx.pseudomasks.walk import METHODS, random_walk

DENSE_MAPS = 4
LOG2_STEPS = 8
BETA = 16


def figures(
    sizes: Sequence[int] = (56, 28, 112, 224),
    maps: Sequence[int] = (1, 4, 16),
    batch: int = 8,
    runs: int = 5,
) -> dict[str, float]:
    """Both methods of the walk, on square grids of the sides `sizes`, with as many maps at once as `maps` lists.

    Dense and batched walks are timed on the first grid, which growth is relative to.

    Returns:
      dense_over_exact and dense_over_chebyshev, and the lesser as dense_over_walk, four maps on the first grid, and
      difference, the largest of a pixel;
      <method>_nanoseconds_<size>_<maps>, its time a pixel and map over the 256 steps ("chebyshev" takes fewer), and
      <method>_growth_<size>_<maps>, its ratio to the first grid's; growth, the largest of the last grid's;
      <method>_batched, an image's time in a batch over that in a call of its own.
    """
    found = _against_dense(sizes[0], runs)
    for count in maps:
        found |= _by_size(sizes, count, runs)
    growths = [found[f"{method}_growth_{sizes[-1]}_{n}"] for method in METHODS for n in maps]
    return found | {"growth": max(growths)} | _batched(sizes[0], batch, runs)


def _against_dense(size: int, runs: int) -> dict[str, float]:
    affinity, maps = _problem(size, DENSE_MAPS)
    matrix = jnp.asarray(dense_transition(affinity, BETA))
    sides = {method: partial(_walk, method, affinity, maps) for method in METHODS}
    dense = partial(_dense, matrix, maps)
    seconds = alternate(sides | {"dense": dense}, runs)
    found = {f"dense_over_{name}": median_ratio(seconds["dense"], seconds[name]) for name in sides}
    found["dense_over_walk"] = min(found.values())
    found["difference"] = max(float(abs(side() - dense()).max()) for side in sides.values())
    return found | {f"{name}_seconds": np.median(times) for name, times in seconds.items()}


def _by_size(sizes: Sequence[int], count: int, runs: int) -> dict[str, float]:
    problems = {size: _problem(size, count) for size in sizes}
    sides = {
        f"{method} {size}": partial(_walk, method, *problem)
        for method in METHODS
        for size, problem in problems.items()
    }
    seconds = alternate(sides, runs, at_least=0.05)
    found = {}
    for method in METHODS:
        a_pixel = {size: seconds[f"{method} {size}"] / size**2 for size in sizes}
        for size, times in a_pixel.items():
            nanoseconds = np.median(times) * 1e9 / (count * 2**LOG2_STEPS)
            found[f"{method}_nanoseconds_{size}_{count}"] = nanoseconds
            found[f"{method}_growth_{size}_{count}"] = median_ratio(times, a_pixel[sizes[0]])
    return found


def _batched(size: int, batch: int, runs: int) -> dict[str, float]:
    problems = [_problem(size, DENSE_MAPS, seed) for seed in range(batch)]
    together = [jnp.stack(arrays) for arrays in zip(*problems, strict=True)]

    def alone(method: str) -> list[jax.Array]:
        return [_walk(method, *problem) for problem in problems]

    found = {}
    for method in METHODS:
        sides = {"alone": partial(alone, method), "together": partial(_walk, method, *together)}
        seconds = alternate(sides, runs, at_least=0.05)
        found[f"{method}_batched"] = median_ratio(seconds["together"], seconds["alone"])
    return found


def _problem(size: int, count: int, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """Affinities (34, size, size), most of them strong, and maps (count, size, size) in [0, 1]."""
    generator = np.random.default_rng(seed)
    affinity = np.exp(-0.3 * generator.random((len(offsets()), size, size), np.float32))
    return jnp.asarray(affinity), jnp.asarray(generator.random((count, size, size), np.float32))


def _walk(method: str, affinity: jax.Array, maps: jax.Array) -> jax.Array:
    return random_walk(affinity, maps, BETA, LOG2_STEPS, method)


@jax.jit
def _dense(matrix: jax.Array, maps: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        for _ in range(LOG2_STEPS):
            matrix = matrix @ matrix
        return (maps.reshape(len(maps), -1) @ matrix).reshape(maps.shape)


def dense_transition(affinity: jax.Array, beta: float) -> np.ndarray:
    """T as a matrix: affinities (P, H, W) -> (H W, H W), float32, its columns sum to 1."""
    _, height, width = affinity.shape
    here = np.arange(height * width).reshape(height, width)
    y, x = np.indices((height, width))
    matrix = np.eye(height * width, dtype=np.float32)
    for values, (dy, dx) in zip(np.asarray(affinity), offsets().tolist(), strict=True):
        inside = (y + dy < height) & (x + dx >= 0) & (x + dx < width)
        pair = here[inside], here[inside] + dy * width + dx
        matrix[pair] = matrix[pair[::-1]] = values[inside] ** beta
    return matrix / matrix.sum(0)


def main() -> None:
    """Prints two tables, and the targets."""
    options = parse_options(figures)
    found, sizes = figures(**options), sorted(options["sizes"])
    print(f"{2**LOG2_STEPS} steps, {jax.devices()[0].device_kind}\n")
    print_table(
        ("walk", "dense over it", f"a batch of {options['batch']} over single calls"),
        ((m, f"{found[f'dense_over_{m}']:.0f}", f"{found[f'{m}_batched']:.2f}") for m in METHODS),
    )
    print("\nns a pixel, map and step, and in brackets over that on the first grid:\n")
    rows = []
    for method in METHODS:
        for count in options["maps"]:
            keys = [f"{size}_{count}" for size in sizes]
            times = [found[f"{method}_nanoseconds_{key}"] for key in keys]
            growths = [found[f"{method}_growth_{key}"] for key in keys]
            cells = [f"{t:.2f} ({g:.2f})" for t, g in zip(times, growths, strict=True)]
            rows.append([method, str(count), *cells])
    print_table(["walk", "maps", *(f"{size}^2" for size in sizes)], rows)
    print(f"\nlargest difference to dense: {found['difference']:.0e}")
    print_targets("walk", found)


if __name__ == "__main__":
    main()
