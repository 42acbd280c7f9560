"""Affinities, pair labels and loss against loops over pixels and the published code's numbers."""

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitx.pseudomasks.affinity import affinities, affinity_loss, offsets, pair_labels

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "affinity.npz") as file:
        return dict(file)


def pairs(height: int, width: int, radius: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Every pair as (p, i, j, i', j'), by loops over the window of from-pixels."""
    reach = radius - 1
    for p, (dy, dx) in enumerate(offsets(radius).tolist()):
        for i in range(height - reach):
            for j in range(reach, width - reach):
                yield p, i, j, i + dy, j + dx


def window(x: np.ndarray, reach: int = 4) -> np.ndarray:
    return np.asarray(x)[..., : x.shape[-2] - reach, reach : x.shape[-1] - reach]


def assert_zero_outside_window(x: np.ndarray) -> None:
    outside = np.asarray(x).copy()
    window(outside)[...] = 0
    assert not outside.any()


def test_offsets_are_half_a_disc_in_order():
    found = offsets(5).tolist()
    assert len(found) == 34
    assert found[:6] == [[0, 1], [0, 2], [0, 3], [0, 4], [1, -4], [1, -3]]
    assert found == sorted(found)
    both = {(y, x) for y, x in found} | {(-y, -x) for y, x in found}
    disc = {(y, x) for y in range(-9, 10) for x in range(-9, 10) if 0 < y * y + x * x < 25}
    assert both == disc
    assert len(both) == 68


@pytest.mark.parametrize(("radius", "count"), [(2, 4), (3, 12), (4, 22), (6, 54)])
def test_offsets_of_other_radii(radius, count):
    assert len(offsets(radius)) == count


def test_affinities_equal_the_published_code(golden, x64):
    features = jnp.asarray(golden["features"].transpose(0, 2, 3, 1))
    found = np.asarray(affinities(features, 5))[0]
    np.testing.assert_allclose(window(found).reshape(34, -1), golden["affinity"], rtol=1e-13)
    assert_zero_outside_window(found)


@pytest.mark.slow
@settings(max_examples=8)
@given(
    st.integers(2, 4),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 99),
)
def test_affinities_and_their_gradient_equal_loops(radius, more_rows, more_columns, channels, seed):
    rng = np.random.default_rng(seed)
    shape = (2, radius - 1 + more_rows, 2 * radius - 2 + more_columns, channels)
    features = rng.standard_normal(shape)
    weights = rng.standard_normal((2, len(offsets(radius)), *shape[1:3]))
    value, gradient = np.zeros(weights.shape), np.zeros(shape)
    for p, i, j, k, m in pairs(*shape[1:3], radius):
        difference = features[:, i, j] - features[:, k, m]  # (2, C)
        value[:, p, i, j] = np.exp(-np.abs(difference).mean(-1))
        slope = (weights * value)[:, p, i, j, None] * np.sign(difference) / channels
        gradient[:, i, j] -= slope
        gradient[:, k, m] += slope
    with jax.enable_x64(True):
        np.testing.assert_allclose(affinities(features, radius=radius), value, atol=1e-13)
        total = jax.jit(jax.grad(lambda x: jnp.vdot(affinities(x, radius=radius), weights)))
        np.testing.assert_allclose(total(jnp.asarray(features)), gradient, atol=1e-13)


def test_alike_features_have_affinity_one_and_no_gradient():
    features = jnp.ones((9, 10, 3))
    assert (window(affinities(features)) == 1).all()
    assert not jax.jit(jax.grad(lambda x: affinities(x).sum()))(features).any()


@pytest.mark.slow
def test_affinities_take_any_leading_axes_and_jit():
    features = jax.random.normal(jax.random.key(0), (2, 3, 9, 10, 4))
    together = jax.jit(affinities)(features)
    assert together.shape == (2, 3, 34, 9, 10)
    np.testing.assert_array_equal(together[1, 2], affinities(features[1, 2]))


def test_memory_stays_near_the_features():
    """Neither direction holds the differences of all 34 pairs of every pixel."""
    shape = jax.ShapeDtypeStruct((2, 32, 32, 128), jnp.float32)
    gradient = jax.jit(jax.grad(lambda x: affinities(x).sum()))
    used = gradient.lower(shape).compile().memory_analysis().temp_size_in_bytes
    assert used < 8 * 4 * np.prod(shape.shape)


def test_labels_equal_the_published_code(golden):
    found = pair_labels(jnp.asarray(golden["label"].astype(np.int32)))
    for kind, name in zip(found, ("bg_pos", "fg_pos", "neg"), strict=True):
        np.testing.assert_array_equal(window(kind).reshape(34, -1), golden[name])
        assert_zero_outside_window(kind)


@pytest.mark.slow
@settings(max_examples=8)
@given(
    st.integers(2, 5),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(0, 99),
    st.sampled_from([np.uint8, np.int32]),
)
def test_labels_equal_loops(radius, more_rows, more_columns, seed, dtype):
    height, width = radius - 1 + more_rows, 2 * radius - 2 + more_columns
    labels = np.random.default_rng(seed).choice([0, 0, 1, 2, 255], (height, width)).astype(dtype)
    expected = np.zeros((3, len(offsets(radius)), height, width), bool)
    for p, i, j, k, m in pairs(height, width, radius):
        here, there = labels[i, j], labels[k, m]
        if 255 not in (here, there):
            expected[2 if here != there else int(here > 0), p, i, j] = True
    found = jax.jit(pair_labels, static_argnums=1)(jnp.asarray(labels), radius)
    np.testing.assert_array_equal(np.stack(found), expected)


def on_grid(pairs: np.ndarray, side: int) -> jax.Array:
    """Golden pairs (34, n) to (34, H, W)."""
    inner = pairs.reshape(34, side - 4, side - 8)
    return jnp.asarray(np.pad(inner, ((0, 0), (0, 4), (4, 4))))


@pytest.mark.slow
@given(
    radius=st.integers(2, 4),
    more_rows=st.integers(1, 4),
    more_columns=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=3)
def test_labels_and_gradient_of_all_near_pairs_equal_loops(radius, more_rows, more_columns, seed):
    generator = np.random.default_rng(seed)
    grid = (radius - 1 + more_rows, 2 * radius - 2 + more_columns)
    labels = generator.choice([0, 1, 2, 255], grid)
    features, cotangent = generator.normal(size=(*grid, 3)), generator.normal(size=(99, *grid))
    background, foreground, negative = map(np.asarray, pair_labels(labels, radius, everywhere=True))
    gradient, counted = np.zeros_like(features), 0
    for p, (dy, dx) in enumerate(offsets(radius).tolist()):
        for i, j in np.ndindex(*grid):
            k, m = i + dy, j + dx
            if not (k < grid[0] and 0 <= m < grid[1]):
                assert not (background | foreground | negative)[p, i, j]
                continue
            one, other = labels[i, j], labels[k, m]
            known = one != 255 and other != 255
            assert background[p, i, j] == (known and one == other == 0)
            assert foreground[p, i, j] == (known and one == other != 0)
            assert negative[p, i, j] == (known and one != other)
            apart = features[i, j] - features[k, m]
            slope = -cotangent[p, i, j] * np.exp(-np.abs(apart).mean()) * np.sign(apart) / 3
            gradient[i, j] += slope
            gradient[k, m] -= slope
            counted += 1
    assert counted > 0
    with jax.enable_x64(True):
        _, pullback = jax.vjp(
            lambda x: affinities(x, radius, everywhere=True), jnp.asarray(features)
        )
        (found,) = pullback(jnp.asarray(cotangent[: len(offsets(radius))]))
    np.testing.assert_allclose(found, gradient, rtol=1e-9, atol=1e-12)


def test_loss_equals_the_published_code(golden, x64):
    side = len(golden["label"])
    kinds = [on_grid(golden[name], side) for name in ("bg_pos", "fg_pos", "neg")]
    found = affinity_loss(on_grid(golden["pred_affinity"], side), *kinds)
    for name, stored in {
        "loss": "loss",
        "background": "loss_bg",
        "foreground": "loss_fg",
        "negative": "loss_neg",
    }.items():
        np.testing.assert_allclose(found[name], golden[stored], rtol=1e-12)


def test_loss_by_hand(x64):
    """Pairs of one kind each: -log of 1/2 twice, of 1/4, and of 1 - 3/4."""
    affinity = jnp.asarray([0.5, 0.5, 0.25, 0.75, 0.9]).reshape(5, 1, 1)
    kind = jnp.asarray([0, 0, 1, 2, 3]).reshape(5, 1, 1)
    found = affinity_loss(affinity, kind == 0, kind == 1, kind == 2, eps=1e-12)
    terms = np.log([2, 4, 4])
    assert float(found["background"]) == pytest.approx(terms[0])
    assert float(found["foreground"]) == pytest.approx(terms[1])
    assert float(found["negative"]) == pytest.approx(terms[2])
    assert float(found["loss"]) == pytest.approx(terms @ [0.25, 0.25, 0.5])


@pytest.mark.slow
def test_loss_is_finite_at_the_ends_and_without_pairs():
    ends = jnp.asarray([0.0, 1.0]).reshape(2, 1, 1)
    yes, no = jnp.ones((2, 1, 1), bool), jnp.zeros((2, 1, 1), bool)
    assert np.isfinite(affinity_loss(ends, yes, yes, yes)["loss"])
    assert np.isfinite(jax.grad(lambda a: affinity_loss(a, yes, no, yes)["loss"])(ends)).all()
    assert float(affinity_loss(ends, no, no, no)["loss"]) == 0


@pytest.mark.slow
def test_training_on_the_loss_parts_unlike_pixels():
    """Gradient steps from noise make affinities high within two halves and low between them."""
    labels = jnp.asarray(np.repeat([1, 2], 8)[None].repeat(12, 0))  # (12, 16)
    background, foreground, negative = pair_labels(labels)
    features = jax.random.normal(jax.random.key(0), (12, 16, 8))

    @jax.jit
    def step(x):
        loss = lambda x: affinity_loss(affinities(x), background, foreground, negative)["loss"]  # noqa: E731
        value, slope = jax.value_and_grad(loss)(x)
        return x - 50 * slope, value

    losses = []
    for _ in range(60):
        features, loss = step(features)
        losses.append(float(loss))
    found = np.asarray(affinities(features))
    assert losses[-1] < 0.75 * losses[0]
    assert found[np.asarray(foreground)].mean() > found[np.asarray(negative)].mean() + 0.2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: offsets(1), "radius"),
        (lambda: affinities(jnp.ones((4, 9, 2))), "larger than 4 x 8"),
        (lambda: affinities(jnp.ones((9, 8, 2))), "larger than 4 x 8"),
        (lambda: affinities(jnp.ones((9, 9, 2), jnp.int32)), "floats"),
        (lambda: pair_labels(jnp.ones((9, 9))), "ints"),
        (lambda: pair_labels(jnp.ones((4, 9), jnp.int32)), "larger than 4 x 8"),
        (
            lambda: affinity_loss(jnp.ones((4, 2, 2)), *[jnp.ones((4, 2, 3), bool)] * 3),
            "background pairs",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
