"""Affinities of all pairs, and the walk along them, against NumPy in float64 and against those of near pairs."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitx.pseudomasks.affinity import affinities, inside, offsets
from vitx.pseudomasks.similarity import all_affinities, cosine_affinities, near_pairs
from vitx.pseudomasks.walk import dense_walk, random_walk

pytestmark = pytest.mark.usefixtures("float64")


SIZES = {
    "radius": st.integers(2, 4),
    "more_rows": st.integers(1, 5),
    "more_columns": st.integers(1, 5),
    "seed": st.integers(0, 2**31),
}


def drawn(
    radius: int, more_rows: int, more_columns: int, seed: int
) -> tuple[np.ndarray, np.random.Generator]:
    """Features (2, H, W, 3) of a grid that has pairs."""
    generator = np.random.default_rng(seed)
    reach = radius - 1
    return generator.normal(size=(2, reach + more_rows, 2 * reach + more_columns, 3)), generator


def distances(grid: tuple[int, int]) -> np.ndarray:
    """Squared distances (N, N) between the pixels of a grid."""
    places = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1).reshape(-1, 2)
    return np.square(places[:, None] - places).sum(-1)


@given(**SIZES)
@settings(deadline=None, max_examples=3)
def test_affinities_of_all_pairs(radius, more_rows, more_columns, seed):
    features, _ = drawn(radius, more_rows, more_columns, seed)
    flat = features.reshape(2, -1, 3)
    expected = np.exp(-np.abs(flat[:, :, None] - flat[:, None]).mean(-1))
    np.testing.assert_allclose(all_affinities(jnp.asarray(features)), expected, rtol=1e-12)
    norms = np.linalg.norm(flat, axis=-1)
    cosine = np.einsum("bic,bjc->bij", flat, flat) / norms[:, :, None] / norms[:, None]
    found = np.asarray(cosine_affinities(jnp.asarray(features)))
    np.testing.assert_allclose(found, np.clip(cosine, 0, 1), atol=1e-12)
    assert np.all(np.diagonal(found, axis1=1, axis2=2) == 1)


def test_a_pixel_without_features_is_like_no_other():
    features = np.ones((1, 2, 2, 3))
    features[0, 0, 0] = 0
    expected = np.ones((4, 4))
    expected[0, 1:] = expected[1:, 0] = 0
    found = cosine_affinities(jnp.asarray(features))[0]
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("everywhere", [False, True])
@given(**SIZES)
@settings(deadline=None, max_examples=3)
def test_near_pairs_of_all_are_the_near_affinities(
    radius, more_rows, more_columns, seed, everywhere
):
    features, _ = drawn(radius, more_rows, more_columns, seed)
    features = jnp.asarray(features)
    near = near_pairs(all_affinities(features), features.shape[1:3], radius, everywhere)
    np.testing.assert_allclose(near, affinities(features, radius, everywhere), rtol=1e-12)


@given(**SIZES)
@settings(deadline=None, max_examples=3)
def test_everywhere_has_every_pair_inside_the_image(radius, more_rows, more_columns, seed):
    features, _ = drawn(radius, more_rows, more_columns, seed)
    height, width = features.shape[1:3]
    found = np.asarray(affinities(jnp.asarray(features), radius, everywhere=True))
    counted = 0
    for p, (dy, dx) in enumerate(offsets(radius).tolist()):
        for i in range(height):
            for j in range(width):
                is_pair = i + dy < height and 0 <= j + dx < width
                assert is_pair == inside((height, width), radius)[p, i, j]
                expected = np.zeros(2)
                if is_pair:
                    apart = np.abs(features[:, i, j] - features[:, i + dy, j + dx]).mean(-1)
                    expected = np.exp(-apart)
                    counted += 1
                np.testing.assert_allclose(found[:, p, i, j], expected, rtol=1e-12)
    near = distances((height, width)) < radius**2
    assert 2 * counted == near.sum() - height * width


@pytest.mark.slow
@given(beta=st.sampled_from([1, 2.5, 8]), log2_steps=st.integers(0, 4), **SIZES)
@settings(deadline=None, max_examples=3)
def test_dense_walk(radius, more_rows, more_columns, seed, beta, log2_steps):
    features, generator = drawn(radius, more_rows, more_columns, seed)
    grid = features.shape[1:3]
    maps = generator.uniform(size=(2, 3, *grid))
    affinity = np.asarray(all_affinities(jnp.asarray(features)))
    walked = np.asarray(dense_walk(jnp.asarray(affinity), jnp.asarray(maps), beta, log2_steps))
    for image in range(2):
        weights = affinity[image] ** beta
        transition = np.linalg.matrix_power(weights / weights.sum(0), 2**log2_steps)
        expected = maps[image].reshape(3, -1) @ transition
        np.testing.assert_allclose(walked[image].reshape(3, -1), expected, rtol=1e-9)
    # Without the far pairs it is the walk along the near ones.
    masked = jnp.asarray(np.where(distances(grid) < radius**2, affinity, 0))
    near = affinities(jnp.asarray(features), radius, everywhere=True)
    np.testing.assert_allclose(
        dense_walk(masked, jnp.asarray(maps), beta, log2_steps),
        random_walk(near, maps, beta, log2_steps),
        rtol=1e-9,
    )


def test_dense_walk_refuses_maps_of_another_grid():
    with pytest.raises(ValueError, match=r"affinity \(4, 4\) and maps \(1, 2, 3\) do not fit"):
        dense_walk(jnp.ones((4, 4)), jnp.ones((1, 2, 3)))
