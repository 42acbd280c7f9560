"""The CRF on permutohedral lattices: against a lattice in plain loops, the published C++ code and the exact kernels."""

import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from PIL import Image

from vitx.pseudomasks import crf, crf_lattice, permutohedral
from vitx.pseudomasks.crf import (
    BACKENDS,
    CRFParameters,
    background_channel,
    dense_crf,
    require_size,
)
from vitx.pseudomasks.permutohedral import Box, Lattice, Simplices, link, locate, round_up, smooth

LOCATE = jax.jit(locate, static_argnames="codes")
LINK = jax.jit(link, static_argnames="capacity")
SMOOTH = jax.jit(smooth)
CODES, POINTS = 1 << 20, 313
SIZE = (41, 52)  # one size for most, whose programs they share
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


def photograph(name: str, height: int, width: int) -> np.ndarray:
    """A photograph of scikit-image's, uint8 (1, H, W, 3)."""
    image = Image.fromarray(getattr(skimage.data, name)())
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))[None]


def probabilities_of(seed: int, labels: int, height: int, width: int) -> np.ndarray:
    """Background at two alphas beside broad blobs: float32 (1, 2, L, H, W)."""
    generator = np.random.default_rng(seed)
    centres = generator.uniform(0, 1, (labels - 1, 2, 1, 1)) * np.reshape(
        (height, width), (2, 1, 1)
    )
    distance = np.square(np.mgrid[:height, :width] - centres).sum(1)
    seed_maps = np.exp(-distance / 2 / (0.25 * height) ** 2) * generator.uniform(
        0.7, 1, (labels - 1, 1, 1)
    )
    sets = [
        np.concatenate([background_channel(seed_maps, alpha)[None], seed_maps])
        for alpha in (4.0, 32.0)
    ]
    return np.stack(sets)[None].astype(np.float32)


def elevation(d: int) -> np.ndarray:
    """E (d + 1, d), from features to the plane of the lattice."""
    e = np.zeros((d + 1, d))
    for j in range(1, d + 1):
        e[:j, j - 1], e[j, j - 1] = 1, -j
        e[:, j - 1] *= np.sqrt(2 / 3) * (d + 1) / np.sqrt(j * (j + 1))
    return e


def looped(features: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Filters (C, N) on the lattice of points (N, d) in float64, with a dictionary of vertices."""
    d, e = features.shape[1], elevation(features.shape[1])
    values: dict[tuple[int, ...], np.ndarray] = {}
    simplices = []
    for point, value in zip(features @ e.T, x.T, strict=True):
        # The vertex of residue 0 is the nearest of those whose coordinates are multiples of d + 1 and sum to 0.
        base = (d + 1) * np.round(point / (d + 1))
        order = np.argsort(base - point, kind="stable")
        excess = round(base.sum() / (d + 1))
        chosen = order[::-1][:excess] if excess > 0 else order[: -excess or 0]
        base[chosen] -= (d + 1) * np.sign(excess)
        falling = np.argsort(-(point - base), kind="stable")
        gap = (point - base)[falling]
        shares = [1 - (gap[0] - gap[-1]) / (d + 1)]
        shares += [(gap[d - k] - gap[d - k + 1]) / (d + 1) for k in range(1, d + 1)]
        for k, share in enumerate(shares):
            vertex = base + k
            vertex[falling[d + 1 - k :]] -= d + 1
            key = tuple(vertex.astype(int))
            values[key] = values.get(key, 0) + share * value
            simplices.append((key, share))
    for axis in range(d + 1):
        step = np.full(d + 1, -1)
        step[axis] = d
        around = {key: (tuple(np.add(key, step)), tuple(np.subtract(key, step))) for key in values}
        values = {
            key: value + 0.5 * sum(values.get(other, 0) for other in around[key])
            for key, value in values.items()
        }
    read = [share * values[key] for key, share in simplices]
    return np.stack([sum(read[i : i + d + 1]) for i in range(0, len(read), d + 1)], axis=1)


def on_lattice(features: np.ndarray, largest: list[float]) -> tuple[Box, Simplices, Lattice]:
    """The lattice of points (N, d), with points of padding to POINTS."""
    box, n = Box.of(largest), len(features)
    padded = np.pad(features, ((0, POINTS - n), (0, 0)), constant_values=1e6).astype(np.float32)
    simplices = LOCATE(padded.T, np.arange(POINTS) < n, box, CODES)
    return box, simplices, LINK(simplices, box, 2000)


@pytest.mark.slow
@pytest.mark.parametrize("largest", [(9.0, 4.0), (2.0, 1.0, 6.0, 5.0, 7.0)])
def test_filter_equals_loops(largest):
    generator = np.random.default_rng(0)
    features = generator.uniform(0, 1, (300, len(largest))) * largest
    x = generator.normal(size=(2, 300))
    _, _, lattice = on_lattice(features, list(largest))
    values = np.pad(x, ((0, 0), (0, POINTS - 300)), constant_values=1).astype(np.float32)
    found = np.asarray(SMOOTH(lattice, values.T))[:300].T
    np.testing.assert_allclose(found, looped(features, x), atol=2e-4)


@pytest.mark.slow
@hypothesis.given(st.integers(0, 1000), st.sampled_from([2, 5]), st.floats(0.01, 1))
def test_vertices_surround_their_points_and_neighbours_are_those_of_the_lattice(seed, d, scale):
    generator = np.random.default_rng(seed)
    largest = generator.uniform(0, scale, d) * (400 if d == 2 else 8)
    corners = generator.integers(0, 2, (40, d)) * largest  # where codes might leave the box
    features = np.concatenate([corners, generator.uniform(0, 1, (160, d)) * largest])
    box, simplices, lattice = on_lattice(features, [*largest])
    codes, weights = (np.asarray(x)[:, :200] for x in (simplices.codes, simplices.weights))
    a, k = permutohedral._decode(jnp.asarray(codes.ravel()), box)
    corner = ((d + 1) * np.asarray(a) + np.asarray(k)).reshape(d + 1, d + 1, 200)  # (., vertex, .)
    np.testing.assert_allclose(weights.sum(0), 1, atol=1e-4)
    assert weights.min() > -1e-4
    elevated = elevation(d) @ features.T
    np.testing.assert_allclose((weights * corner).sum(1), elevated, atol=2e-3)
    assert np.abs(corner - elevated[:, None]).max() < d + 1 + 2e-3

    numbers = np.asarray(simplices.vertices)[:, :200].ravel().tolist()
    rows = dict(zip(map(tuple, corner.reshape(d + 1, -1).T), numbers, strict=True))
    assert sorted(rows.values()) == list(range(1, int(simplices.rows)))
    neighbours = np.asarray(lattice.neighbours)
    for vertex, row in rows.items():
        for axis, step in itertools.product(range(d + 1), (-1, 1)):
            there = np.add(vertex, step)
            there[axis] -= (d + 1) * step
            assert neighbours[axis, (step + 1) // 2, row] == rows.get(tuple(there), 0)
            residue = there[0] % (d + 1)
            whole = there // (d + 1)
            above = np.cumsum(whole[::-1])[::-1][1:]  # a_j + ... + a_d
            j = np.arange(1, d + 1)
            digits = whole[1:] + (above - whole[1:] + residue) // (j + 1) - box.low
            assert (digits >= 0).all() and (digits < box.size).all()


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    return float((a.argmax(2) == b.argmax(2)).mean())


def both(image: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Posteriors in JAX and by the published code."""
    found = dense_crf(image, probabilities, backend="jax")
    return found, dense_crf(image, probabilities, backend="pydensecrf")


@pytest.mark.slow
@pytest.mark.parametrize("labels", [2, 7, 21])
def test_equals_the_published_code(labels):
    """On photographs and noise. Pixels are a multiple of four: see below."""
    noise = np.random.default_rng(0).integers(0, 256, (1, *SIZE, 3), np.uint8)
    images = [noise, *(photograph(name, *SIZE) for name in PHOTOGRAPHS[:2])]
    for seed, image in enumerate(images):
        probabilities = probabilities_of(seed, labels, *SIZE)
        found, published = both(image, probabilities)
        assert np.abs(found - published).max() < 1e-3
        assert np.abs(found - published).mean() < 1e-5
        assert agreement(found, published) > 0.999
        assert np.mean(found.argmax(2) != probabilities.argmax(2)) > 0.05  # the CRF does something


@pytest.mark.slow
@pytest.mark.parametrize(
    "parameters",
    [
        CRFParameters(3, 1.5, 2, 5, 40, 4),
        CRFParameters(2, 13, 1, 120, 25, 0),
    ],
)
def test_equals_the_published_code_with_other_parameters(parameters):
    image, probabilities = photograph("coffee", *SIZE), probabilities_of(6, 3, *SIZE)
    found, published, usual = (
        dense_crf(image, probabilities, backend=backend, parameters=chosen)
        for backend, chosen in [("jax", parameters), ("pydensecrf", parameters), ("jax", None)]
    )
    np.testing.assert_allclose(found, published, atol=1e-4, rtol=0)
    assert np.abs(found - usual).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 2132), (2132, 1)])
def test_equals_the_published_code_on_lines(size):
    image, probabilities = photograph("chelsea", *size), probabilities_of(7, 3, *size)
    found, published = both(image, probabilities)
    np.testing.assert_allclose(found, published, atol=1e-3, rtol=0)
    np.testing.assert_array_equal(found.argmax(2), published.argmax(2))


@pytest.mark.slow
def test_odd_numbers_of_pixels_differ_by_empty_vertices_of_the_published_code(monkeypatch):
    """Where pixels are no multiple of four, it has the vertices next to a black pixel at (0, 0) as well, empty."""
    image, probabilities = 255 - photograph("astronaut", 41, 51), probabilities_of(1, 3, 41, 51)
    found, published = both(image, probabilities)
    assert 0.1 < np.abs(found - published).max() < 0.3
    np.testing.assert_array_equal(found.argmax(2), published.argmax(2))

    def locate_one_more(features, valid, box, codes):
        # The first pixel of the padding, at 0, whose weights are 0.
        first = jnp.arange(len(valid)) == valid.sum()
        simplices = locate(jnp.where(first, 0, features), valid | first, box, codes)
        return simplices._replace(weights=jnp.where(valid, simplices.weights, 0))

    jax.clear_caches()
    monkeypatch.setattr(crf_lattice, "locate", locate_one_more)
    with_vertices = dense_crf(image, probabilities, backend="jax")
    jax.clear_caches()
    np.testing.assert_allclose(with_vertices, published, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_equals_the_published_code_at_the_size_of_voc():
    image, probabilities = photograph("coffee", 375, 500), probabilities_of(1, 3, 375, 500)
    found, published = both(image, probabilities)
    np.testing.assert_allclose(found, published, atol=1e-3, rtol=0)
    np.testing.assert_array_equal(found.argmax(2), published.argmax(2))


@pytest.mark.slow
def test_is_near_to_the_exact_kernels_as_the_published_code_is():
    for name in PHOTOGRAPHS:
        image, probabilities = photograph(name, *SIZE), probabilities_of(2, 3, *SIZE)
        exact, found, published = (
            dense_crf(image, probabilities, backend=backend) for backend in BACKENDS
        )
        assert agreement(found, exact) > max(0.9, agreement(published, exact) - 1e-3)
        assert np.abs(found - exact).mean() < np.abs(published - exact).mean() + 1e-5


@pytest.mark.slow
def test_padding_changes_nothing_but_rounding(monkeypatch):
    image, probabilities = photograph("astronaut", *SIZE), probabilities_of(3, 3, *SIZE)
    found = dense_crf(image, probabilities, backend="jax")
    monkeypatch.setattr(crf_lattice, "LEAST_ROWS", 1)
    monkeypatch.setattr(crf_lattice, "round_up", lambda number, steps=1: number)
    # Codes come in words of 32 bits.
    monkeypatch.setattr(permutohedral, "round_up", lambda number, steps: -(-number // 32) * 32)
    bare = dense_crf(image, probabilities, backend="jax")
    np.testing.assert_allclose(found, bare, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_batch_equals_its_images_and_sizes_share_programs():
    image = photograph("astronaut", *SIZE)
    images = np.concatenate([image, image[:, ::-1]])
    probabilities = np.concatenate([probabilities_of(seed, 3, *SIZE) for seed in range(2)])
    found = dense_crf(images, jnp.asarray(probabilities), backend="jax")
    assert isinstance(found, jax.Array)
    np.testing.assert_allclose(found.sum(2), 1, atol=1e-6)
    alone = [
        dense_crf(image[None], p[None], backend="jax")
        for image, p in zip(images, probabilities, strict=True)
    ]
    assert isinstance(alone[0], np.ndarray) and alone[0].dtype == np.float32
    np.testing.assert_allclose(found, np.concatenate(alone), atol=1e-5)
    before = crf_lattice._locate._cache_size(), crf_lattice._infer._cache_size()
    turned = dense_crf(images[:1, :40], probabilities[:1, :, :, :40], backend="jax")
    assert np.isfinite(turned).all()
    assert (crf_lattice._locate._cache_size(), crf_lattice._infer._cache_size()) == before


@pytest.mark.parametrize(("height", "backend"), [(128, "crf_exact"), (129, "crf_lattice")])
def test_is_what_large_images_get(monkeypatch, height, backend):
    called = []
    for module in (crf.crf_exact, crf_lattice):
        name = module.__name__.rpartition(".")[2]
        monkeypatch.setattr(module, "mean_field", lambda _, p, *rest, n=name: called.append(n) or p)
    dense_crf(np.zeros((1, height, 128, 3), np.uint8), np.ones((1, 2, height, 128), np.float32))
    assert called == [backend]


@pytest.mark.slow
def test_constant_images_and_one_label():
    image = np.full((1, *SIZE, 3), 77, np.uint8)
    even = np.full((1, 2, 3, *SIZE), 0.3, np.float32)
    np.testing.assert_allclose(dense_crf(image, even, backend="jax"), 1 / 3, atol=1e-6)
    ahead = even + np.reshape([0, 0.2, 0], (3, 1, 1)).astype(np.float32)
    assert (dense_crf(image, ahead, backend="jax")[:, :, 1] > 0.99).all()
    present = np.array([[False, False, True]])
    found = dense_crf(image, ahead, backend="jax", present=present)
    np.testing.assert_array_equal(
        found, np.broadcast_to(present[:, None, :, None, None], found.shape)
    )


@pytest.mark.slow
def test_64_bit_types_change_nothing(x64):
    image, probabilities = photograph("astronaut", *SIZE), probabilities_of(4, 3, *SIZE)
    found = dense_crf(image, probabilities.astype(np.float64), backend="jax")
    assert found.dtype == np.float32
    with jax.enable_x64(False):
        np.testing.assert_allclose(found, dense_crf(image, probabilities, backend="jax"), atol=1e-6)


@pytest.mark.slow
def test_memory_for_21_labels_is_bounded():
    """At 500 x 375 with as many vertices as there could be at all."""
    pixels, labels, parameters = round_up(375 * 500, 4), 21, CRFParameters()
    boxes = crf_lattice.boxes(375, 500, parameters)
    codes = tuple(box.codes for box in boxes)
    image = jax.ShapeDtypeStruct((1, pixels, 3), np.uint8)
    size = np.array([375, 500], np.int32)
    features = crf_lattice._features(500, parameters, pixels)
    located = crf_lattice._locate.lower(image, size, features, boxes, codes)
    capacities = tuple(round_up(min((len(box.low) + 1) * pixels, box.codes) + 1) for box in boxes)
    linked = crf_lattice._link.lower(located.out_info[0], boxes, capacities)
    probabilities = jax.ShapeDtypeStruct((1, 2, labels, pixels), np.float32)
    present = jax.ShapeDtypeStruct((1, labels), bool)
    compat, ten = np.ones(2, np.float32), np.int32(10)
    inferred = crf_lattice._infer.lower(probabilities, present, size, linked.out_info, compat, ten)
    for program in (located, linked, inferred):
        used = program.compile().memory_analysis()
        total = used.temp_size_in_bytes + used.argument_size_in_bytes + used.output_size_in_bytes
        assert total < 0.6e9


def test_widths_that_are_too_small_are_named():
    require_size(2000, 2000, "jax", CRFParameters(srgb=2.5))
    with pytest.raises(ValueError, match=f"more than {2**30} lattice codes"):
        require_size(2000, 2000, "jax", CRFParameters(srgb=2.4))
    with pytest.raises(ValueError, match=r"2000 x 2000 .* srgb=1: use larger widths"):
        require_size(2000, 2000, "jax", CRFParameters(srgb=1))
    require_size(2000, 2000, "pydensecrf", CRFParameters(srgb=1))
    image = np.zeros((1, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="sxy_gaussian=1e-05"):
        dense_crf(
            image,
            np.ones((1, 2, 4, 4), np.float32),
            parameters=CRFParameters(sxy_gaussian=1e-5),
            backend="jax",
        )


def test_sizes_are_rounded_up_by_little():
    assert [round_up(n) for n in (1, 2, 3, 5, 1000, 1025)] == [1, 2, 4, 8, 1024, 2048]
    assert [round_up(n, 2) for n in (1, 2, 3, 4, 5, 7, 9)] == [1, 2, 3, 4, 6, 8, 12]
    for number, steps in itertools.product((5, 187_500, 250_000), (1, 2, 4, 8)):
        assert number <= round_up(number, steps) <= number * (1 + 1 / steps) + 1
