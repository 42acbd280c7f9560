"""The random walk against powers of the dense transition matrix, and how its time grows with pixels and maps.

256 steps, float32. The dense side squares the H W x H W matrix eight times and applies it; making the matrix is not
timed. The walk is timed as a whole. Targets: at least 100 times as fast as the dense side for four maps on 56 x 56; at
most 1.5 times the time a pixel on 224 x 224.

python -m benchmarks.walk [--sizes 56,28,112,224] [--maps 1,4,16] [--batch 8] [--runs 5]
"""

import argparse
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.targets import limit_of
from benchmarks.timing import alternate, median_ratio
from vitx.pseudomasks.affinity import offsets
from vitx.pseudomasks.walk import METHODS, random_walk

SIZES = (56, 28, 112, 224)
MAPS = (1, 4, 16)
DENSE_MAPS = 4
LOG2_STEPS = 8
BETA = 16


def figures(
    sizes: Sequence[int] = SIZES, maps: Sequence[int] = MAPS, batch: int = 8, runs: int = 5
) -> dict[str, float]:
    """Both methods of the walk.

    Args:
      sizes: sides of the square grids. Dense and batched walks are timed on the first, which the others are held
        against.
      maps: how many walk at once.
      batch: images a call, against as many calls.
      runs: of each side.

    Returns:
      dense_over_exact and dense_over_chebyshev, and the lesser as dense_over_walk, four maps on the first grid, and
      difference, the largest of a pixel;
      <method>_nanoseconds_<size>_<maps>, its time a pixel and map over the 256 steps ("chebyshev" takes fewer), and
      <method>_growth_<size>_<maps>, that over the first grid's; growth, the largest of the last grid's;
      <method>_batched, an image's time in a batch over that in a call of its own.
    """
    found = _against_dense(sizes[0], runs)
    for count in maps:
        found |= _by_size(sizes, count, runs)
    growths = [
        found[f"{method}_growth_{sizes[-1]}_{count}"] for method in METHODS for count in maps
    ]
    return found | {"growth": max(growths)} | _batched(sizes[0], batch, runs)


def _against_dense(size: int, runs: int) -> dict[str, float]:
    affinity, maps = _problem(size, DENSE_MAPS)
    matrix = jnp.asarray(dense_transition(affinity, BETA))
    sides = {method: partial(_walk, method, affinity, maps) for method in METHODS}
    dense = partial(_dense, matrix, maps)
    seconds = alternate(sides | {"dense": dense}, runs)
    ratios = {
        f"dense_over_{method}": median_ratio(seconds["dense"], seconds[method])
        for method in METHODS
    }
    differences = [jnp.abs(sides[method]() - dense()).max() for method in METHODS]
    return ratios | {
        "dense_over_walk": min(ratios.values()),
        "difference": float(max(differences)),
        **{f"{name}_seconds": float(np.median(times)) for name, times in seconds.items()},
    }


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
        first = np.array(seconds[f"{method} {sizes[0]}"]) / sizes[0] ** 2
        for size in sizes:
            pixel = np.array(seconds[f"{method} {size}"]) / size**2
            work = count * 2**LOG2_STEPS
            found[f"{method}_nanoseconds_{size}_{count}"] = float(np.median(pixel)) * 1e9 / work
            found[f"{method}_growth_{size}_{count}"] = median_ratio(pixel, first)
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
    """Prints the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=_numbers, default=SIZES, help="sides of the grids")
    parser.add_argument("--maps", type=_numbers, default=MAPS, help="how many maps walk at once")
    parser.add_argument("--batch", type=int, default=8, help="images a call")
    parser.add_argument("--runs", type=int, default=5, help="of each side")
    options = parser.parse_args()
    found = figures(**vars(options))
    first = options.sizes[0]
    print(f"{2**LOG2_STEPS} steps, {jax.devices()[0].device_kind}\n")
    print(f"| walk | dense over it | a batch of {options.batch} over single calls |")
    print("|---|---|---|")
    for method in METHODS:
        print(
            f"| {method} | {found[f'dense_over_{method}']:.0f} | {found[f'{method}_batched']:.2f} |"
        )
    print(f"\nns a pixel, map and step, and in brackets over that on {first} x {first}:\n")
    print("| walk | maps |", *(f"{size}^2 |" for size in sorted(options.sizes)))
    print("|---" * (2 + len(options.sizes)) + "|")
    for method in METHODS:
        for count in options.maps:
            cells = [
                f"{found[f'{method}_nanoseconds_{size}_{count}']:.2f} "
                f"({found[f'{method}_growth_{size}_{count}']:.2f}) |"
                for size in sorted(options.sizes)
            ]
            print(f"| {method} | {count} |", *cells)
    print(
        f"\nlargest difference to dense {found['difference']:.0e}; targets: dense over walk at least "
        f"{limit_of('walk')}, growth to {options.sizes[-1]}^2 at most {limit_of('walk-growth')}"
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


if __name__ == "__main__":
    main()
