"""The random walk against powers of the dense transition matrix."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitx.pseudomasks.affinity import offsets
from vitx.pseudomasks.walk import chebyshev_coefficients, random_walk

GOLDEN = Path(__file__).parents[1] / "golden"


def dense_transition(affinity: np.ndarray, beta: float) -> np.ndarray:
    """T by loops: (P, H, W) -> (H W, H W), its columns sum to 1."""
    pairs, height, width = affinity.shape
    radius = next(r for r in range(2, 9) if len(offsets(r)) == pairs)
    matrix = np.eye(height * width)
    for p, (dy, dx) in enumerate(offsets(radius).tolist()):
        for i in range(height):
            for j in range(width):
                if i + dy < height and 0 <= j + dx < width:
                    here, there = i * width + j, (i + dy) * width + j + dx
                    matrix[here, there] = matrix[there, here] = affinity[p, i, j]
    matrix = matrix**beta
    return matrix / matrix.sum(0)


def dense_walk(affinity: np.ndarray, maps: np.ndarray, beta: float, log2_steps: int) -> np.ndarray:
    matrix = dense_transition(affinity.astype(np.float64), beta)
    for _ in range(log2_steps):
        matrix = matrix @ matrix
    flat = maps.astype(np.float64).reshape(len(maps), -1) @ matrix
    return flat.reshape(maps.shape)


def random_affinity(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Affinities (P, H, W) anywhere in the image, entries that point out of it included."""
    pairs, _, width = shape
    values = rng.uniform(size=shape)
    if kind == "strong":
        return 1 - 0.02 * values
    if kind == "patchy":  # degrees from 1 to the largest
        return np.where(rng.uniform(size=shape[1:]) < 0.3, 1.0, 0.05 * values)
    if kind in ("none", "full"):
        return np.full(shape, float(kind == "full"))
    radius = next(r for r in range(2, 9) if len(offsets(r)) == pairs)
    dy, dx = offsets(radius).T[:, :, None, None]
    column = np.arange(width)
    apart = (column < width // 2) != (column + dx < width // 2)  # the halves of the image
    change = (dy + dx) % 2 == 1  # of the square's colour on a chessboard
    chosen = {
        "any": values,
        "blocks": np.where(apart, 0.0, 1.0),
        "bridge": np.where(apart, 0.8, 1.0),
        "board": np.where(change, 0.0, 1.0),  # two walks that never meet
        "bipartite": np.where(change, 1.0, 0.0),  # the spectrum's lower end
    }
    return np.broadcast_to(chosen[kind], shape)


KINDS = ("any", "strong", "patchy", "none", "full", "blocks", "bridge", "board", "bipartite")


@pytest.mark.slow
def test_walk_equals_the_published_code(x64):
    with np.load(GOLDEN / "affinity.npz") as file:
        golden = dict(file)
    affinity = np.zeros((34, 14, 14))
    affinity[:, :10, 4:10] = golden["affinity"].reshape(34, 10, 6)
    cam = jnp.asarray(golden["cam"])
    for log2_steps, expected in zip(golden["walk_log2"], golden["walk"], strict=True):
        exact = random_walk(jnp.asarray(affinity), cam, int(golden["beta"]), int(log2_steps))
        np.testing.assert_allclose(exact, expected, atol=1e-13)
    near = random_walk(affinity, cam, 16, 8, "chebyshev", tolerance=1e-12)
    np.testing.assert_allclose(near, golden["walk"][-1], atol=1e-12)


@pytest.mark.slow
@settings(max_examples=8)
@given(
    st.sampled_from([(2, 1, 7), (3, 6, 2), (3, 5, 5), (5, 7, 8), (5, 3, 4)]),
    st.sampled_from([1, 8, 16]) | st.floats(0.25, 20),
    st.integers(0, 11),
    st.sampled_from([1e-2, 1e-5, 1e-9]),
    st.integers(0, 99),
)
def test_tolerance_is_kept(sizes, beta, log2_steps, tolerance, seed):
    """Of any affinities at once, in float64 and in float32."""
    radius, height, width = sizes
    rng = np.random.default_rng(seed)
    shape = (len(offsets(radius)), height, width)
    affinity = np.stack([random_affinity(rng, shape, kind) for kind in KINDS])
    maps = rng.uniform(size=(len(KINDS), 3, height, width))
    maps[:, 1] = maps[:, 1] < 0.5
    maps[:, 2] = np.indices((height, width)).sum(0) % 2

    def errors(dtype, *methods):
        values = affinity.astype(dtype), maps.astype(dtype)
        truth = [dense_walk(*pair, beta, log2_steps) for pair in zip(*values, strict=True)]
        for method in methods:
            found = random_walk(*values, beta, log2_steps, method, tolerance)
            assert found.dtype == dtype
            yield np.abs(np.asarray(found) - np.stack(truth)).max()

    with jax.enable_x64(True):
        exact, near = errors(np.float64, "exact", "chebyshev")
    assert exact < 1e-13
    assert near <= tolerance
    if tolerance >= 1e-5:
        exact, near = errors(np.float32, "exact", "chebyshev")
        assert exact < 3e-6  # the powers of the affinities are rounded, too
        assert near <= tolerance


@pytest.mark.slow
def test_single_precision_does_not_drift():
    """4096 steps in float32: on a larger grid, and along a chain whose links are mostly weak."""
    rng = np.random.default_rng(0)
    for shape in ((34, 14, 15), (4, 1, 40)):
        affinity = np.stack([random_affinity(rng, shape, kind) for kind in KINDS])
        affinity = affinity.astype(np.float32)
        maps = (rng.uniform(size=(len(KINDS), 2, *shape[1:])) < 0.3).astype(np.float32)
        truth = [dense_walk(*pair, 16, 12) for pair in zip(affinity, maps, strict=True)]
        exact = random_walk(affinity, maps, 16, 12)
        assert np.abs(np.asarray(exact) - np.stack(truth)).max() < 1e-6
        near = random_walk(affinity, maps, 16, 12, "chebyshev", tolerance=2e-5)
        assert np.abs(np.asarray(near) - np.stack(truth)).max() < 2e-5


def test_worst_maps_stay_below_the_bound(x64):
    """The map that one pixel's error is worst for: the signs of the left-out part's row."""
    rng = np.random.default_rng(1)
    affinity = random_affinity(rng, (12, 6, 6), "patchy")
    transition = dense_transition(affinity, 1)
    tolerance = 1e-3
    coefficients = chebyshev_coefficients(64, 36 * 25, tolerance)
    power = np.linalg.matrix_power(transition, 64)
    terms = [np.eye(36), transition]
    for _ in coefficients[2:]:
        terms.append(2 * terms[-1] @ transition - terms[-2])
    used = sum(c * t for c, t in zip(coefficients, terms, strict=True))
    left = power - used - (1 - coefficients.sum()) * np.eye(36)
    worst = np.maximum(left, 0).sum(0).max()  # over maps in [0, 1]
    maps = (left[:, np.maximum(left, 0).sum(0).argmax()] > 0).reshape(1, 6, 6)
    found = random_walk(affinity, maps, 1, 6, "chebyshev", tolerance)
    error = np.abs(np.asarray(found).ravel() - maps.ravel() @ power).max()
    assert error == pytest.approx(worst, rel=1e-6)
    assert 0 < error <= tolerance / 2


@given(st.integers(0, 12), st.sampled_from([1e-3, 1e-6, 1e-12]), st.integers(1, 10**6))
def test_coefficients_are_the_power(log2_steps, tolerance, spread):
    steps = 2**log2_steps
    found = chebyshev_coefficients(steps, spread, tolerance)
    exact = np.zeros(steps + 1)
    for k in range(steps % 2, steps + 1, 2):
        ways = math.comb(steps, (steps - k) // 2)
        exact[k] = math.ldexp(ways / 2**steps, 1 if k else 0)
    np.testing.assert_allclose(found, exact[: len(found)], rtol=1e-10)
    factor = (1 + math.sqrt(spread)) / 2
    assert exact[len(found) :].sum() * factor <= tolerance / 2 * (1 + 1e-6)
    assert len(found) <= 1 + steps
    if len(found) > 2:  # one degree less would not do
        assert exact[len(found) - 1 :].sum() * factor > tolerance / 2 * (1 - 1e-6)


def test_degree_grows_with_the_root_of_the_steps():
    degrees = [len(chebyshev_coefficients(2**n, 3136 * 69, 1e-5)) - 1 for n in (8, 10, 12)]
    assert degrees[0] < 90
    assert degrees[2] < 4.2 * degrees[0]


def test_one_step_by_hand(x64):
    """Two pixels of affinity 1/2 at beta 1: each keeps 2/3 and takes 1/3."""
    affinity = np.zeros((4, 1, 2))
    affinity[0, 0, 0] = 0.5  # offset (0, 1)
    affinity[1:] = 0.7  # points outside the image everywhere
    affinity[0, 0, 1] = 0.7
    found = random_walk(affinity, np.array([[[1.0, 0.0]]]), beta=1, log2_steps=0)
    np.testing.assert_allclose(found, [[[2 / 3, 1 / 3]]], atol=1e-15)


def test_without_affinities_nothing_moves():
    maps = np.random.default_rng(0).uniform(size=(2, 5, 6)).astype(np.float32)
    for method in ("exact", "chebyshev"):
        found = random_walk(np.zeros((12, 5, 6), np.float32), maps, method=method)
        np.testing.assert_array_equal(found, maps)


@pytest.mark.slow
def test_constant_maps_stay():
    affinity = np.random.default_rng(0).uniform(size=(34, 7, 9)).astype(np.float32)
    maps = np.full((1, 7, 9), 0.7, np.float32)
    for method in ("exact", "chebyshev"):
        np.testing.assert_array_equal(random_walk(affinity, maps, method=method), maps)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["exact", "chebyshev"])
def test_images_of_a_batch_walk_alone(method):
    rng = np.random.default_rng(0)
    affinity = rng.uniform(size=(2, 3, 12, 6, 7)).astype(np.float32)
    maps = rng.uniform(size=(2, 3, 4, 6, 7)).astype(np.float32)
    together = random_walk(affinity, maps, log2_steps=4, method=method)
    alone = random_walk(affinity[1, 2], maps[1, 2], log2_steps=4, method=method)
    np.testing.assert_allclose(together[1, 2], alone, atol=1e-6)
    several = jax.jit(lambda a, m: random_walk(a, m, log2_steps=4, method=method))(affinity, maps)
    np.testing.assert_allclose(several, together, atol=1e-6)


def test_a_call_inside_another_jit_may_close_over_arrays():
    rng = np.random.default_rng(0)
    affinity = jnp.asarray(rng.uniform(size=(12, 6, 7)), jnp.float32)
    maps = jnp.asarray(rng.uniform(size=(2, 6, 7)), jnp.float32)
    expected = random_walk(affinity, maps, log2_steps=2)
    found = jax.jit(lambda: random_walk(affinity, maps, log2_steps=2))()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    looped = jax.lax.map(lambda m: random_walk(affinity, m[None], log2_steps=2)[0], maps)
    np.testing.assert_allclose(looped, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": np.zeros((2, 4, 4), object)}, "maps must be real numbers, not object"),
        ({"affinity": np.zeros((12, 4, 4), object)}, "affinity must be floats"),
        ({"method": "fast"}, "exact, chebyshev"),
        ({"beta": 0}, "beta"),
        ({"beta": math.inf}, "beta"),
        ({"log2_steps": -1}, "log2_steps"),
        ({"log2_steps": 1.5}, "log2_steps"),
        ({"log2_steps": math.inf}, "log2_steps"),
        ({"tolerance": math.nan}, "tolerance"),
        ({"maps": np.zeros((2, 4, 4), np.complex64)}, "maps must be real numbers"),
        ({"affinity": np.full((12, 4, 4), -0.1)}, r"affinity must be in \[0, 1\], found -0.1"),
        ({"affinity": np.full((12, 4, 4), 1.5)}, r"affinity must be in \[0, 1\], found 1.5"),
        ({"affinity": np.full((12, 4, 4), np.nan)}, r"affinity must be in \[0, 1\], found nan"),
        (
            {"affinity": np.full((12, 64, 64), np.nan), "maps": np.zeros((1, 64, 64))},
            r"affinity must be in \[0, 1\], found nan",
        ),
        ({"method": "chebyshev", "tolerance": 1e-7}, "256 steps in float32"),
        ({"method": "chebyshev", "log2_steps": 12}, r"tolerance must be in \[1.5e-05, 1\)"),
        ({"method": "chebyshev", "tolerance": 2}, "tolerance"),
        ({"affinity": np.zeros((5, 4, 4), np.float32)}, "no radius has 5 pairs"),
        ({"affinity": np.zeros((12, 4, 4), np.int32)}, "floats"),
        ({"maps": np.zeros((2, 4, 5), np.float32)}, "do not fit"),
        ({"maps": np.zeros((1, 2, 4, 4), np.float32)}, "do not fit"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {
        "affinity": np.zeros((12, 4, 4), np.float32),
        "maps": np.zeros((2, 4, 4), np.float32),
    }
    with pytest.raises(ValueError, match=message):
        random_walk(**(arguments | change))
