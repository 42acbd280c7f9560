"""Each rule against loops or matrix forms in NumPy float64; hand-worked fractions; conservation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitx import ops
from vitx.relevance import rules

pytestmark = pytest.mark.usefixtures("float64")

KINDS = {
    "normal": lambda x: x,
    "positive": lambda x: np.abs(x) + 0.1,
    "negative": lambda x: -np.abs(x) - 0.1,
    "sparse": lambda x: np.where(x > 0.3, x, 0.0),
}
SEEDS = st.integers(0, 2**31)
KIND = st.sampled_from(sorted(KINDS))


def compiled(rule):
    """The two calls of a rule as one, compiled once for each shape."""
    return jax.jit(lambda inputs, output, relevance: rule(inputs, output)(relevance))


ADD = compiled(rules.z_rule(ops.add))
NORMALISED_ADD = compiled(rules.normalised(rules.z_rule(ops.add)))
STABILISED_ADD = compiled(rules.stabilised(ops.add))
SCORES = compiled(rules.z_rule(ops.attention_scores))
HALVED_SCORES = compiled(rules.halved(rules.z_rule(ops.attention_scores)))
APPLY_ATTENTION = compiled(rules.z_rule(ops.apply_attention))
STABILISED_APPLY_ATTENTION = compiled(rules.stabilised(ops.apply_attention, strength=0.01))
ALPHA1_BETA0 = compiled(rules.alpha1_beta0(ops.linear))
ALPHA1_BETA0_SPLIT = compiled(rules.alpha1_beta0_split(ops.linear))
Z_BOX = compiled(rules.z_box(ops.linear))
SUM_BRANCHES_PUBLISHED = compiled(rules.sum_branches_published)
UNIFORM_ADD = compiled(rules.uniform(ops.add))
UNIFORM_LINEAR = compiled(rules.only_first(rules.uniform(ops.linear)))
UNIFORM_SCORES = compiled(rules.uniform(ops.attention_scores))

TOKENS = st.sampled_from([(1, 1, 1), (2, 3, 4), (3, 1, 5)])
LAYERS = st.sampled_from([(1, 1, 1, 1), (2, 3, 4, 5), (3, 2, 7, 1)])  # images, tokens, in, out
HEADS = st.sampled_from([(1, 1, 1, 1, 1), (2, 2, 1, 3, 4), (2, 1, 3, 3, 2)])  # B, H, Q, N, D


ROTATE = compiled(rules.only_first(rules.z_rule(ops.rotate)))
MEAN = compiled(rules.z_rule(ops.mean_tokens))
BEST = compiled(rules.only_first(rules.z_rule(ops.best_tokens)))
POOL_VALUES = compiled(rules.only_last(rules.z_rule(ops.pool_values)))


def draw(seed, kind, *shape):
    return KINDS[kind](np.random.default_rng(seed).standard_normal(shape))


def apply(rule, inputs, output, relevance):
    inputs = [jnp.asarray(x) for x in inputs]
    return rule(inputs, jnp.asarray(output), jax.tree.map(jnp.asarray, relevance))


def divide(a, b):
    """The published division, one number at a time."""
    out = np.zeros(np.broadcast_shapes(np.shape(a), np.shape(b)))
    for i, (x, y) in enumerate(np.broadcast(a, b)):
        if y != 0:
            out.flat[i] = x / (y + 1e-9 if y + 1e-9 != 0 else 1e-9)
    return out


def assert_close(found, expected, tolerance=1e-12):
    """Equal up to `tolerance` of the largest value: quotients come in all sizes."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.dtype == np.float64 and found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max() + 1e-30


def test_inverse():
    x = jnp.array([0.0, -0.0, 1.0, -1e-9, 4.0, 1e-9, -2.0])
    expected = [0, 0, 1 / (1 + 1e-9), 1 / 1e-9, 1 / (4 + 1e-9), 1 / 2e-9, 1 / (-2 + 1e-9)]
    np.testing.assert_array_equal(rules.inverse(x), expected)
    assert_close(rules.inverse(x), divide(np.ones(7), np.asarray(x)))


# The z-rule, and what changes one thing in it.


@given(TOKENS, SEEDS, KIND, KIND)
def test_z_rule_of_add(shape, seed, kind, other):
    x, y = draw(seed, kind, *shape), draw(seed + 1, other, *shape)
    relevance = draw(seed + 2, "normal", *shape)
    share = divide(relevance, x + y)
    found = apply(ADD, (x, y), x + y, relevance)
    for part, expected in zip(found, (x * share, y * share), strict=True):
        assert_close(part, expected)


def scores_by_loops(query, key, relevance):
    out_q, out_k = np.zeros(query.shape), np.zeros(key.shape)
    for b, h, q, n in np.ndindex(relevance.shape):
        products = query[b, h, q] * key[b, h, n]
        part = products * divide(relevance[b, h, q, n], products.sum())
        out_q[b, h, q] += part
        out_k[b, h, n] += part
    return out_q, out_k


def apply_attention_by_loops(attention, value, relevance):
    out_a, out_v = np.zeros(attention.shape), np.zeros(value.shape)
    for b, h, q, d in np.ndindex(relevance.shape):
        products = attention[b, h, q] * value[b, h, :, d]
        part = products * divide(relevance[b, h, q, d], products.sum())
        out_a[b, h, q] += part
        out_v[b, h, :, d] += part
    return out_a, out_v


@given(HEADS, SEEDS, KIND)
def test_z_rule_of_the_two_products_by_loops_over_tokens(sizes, seed, kind):
    b, h, q, n, d = sizes
    left, right = draw(seed, kind, b, h, q, d), draw(seed + 1, "positive", b, h, n, d)
    relevance = draw(seed + 2, "normal", b, h, q, n)
    output = np.einsum("bhqd,bhnd->bhqn", left, right)
    found = apply(SCORES, (left, right), output, relevance)
    for part, expected in zip(found, scores_by_loops(left, right, relevance), strict=True):
        assert_close(part, expected, 1e-11)

    attention, relevance = draw(seed + 3, "positive", b, h, q, n), draw(seed + 4, kind, b, h, q, d)
    output = np.einsum("bhqn,bhnd->bhqd", attention, right)
    found = apply(APPLY_ATTENTION, (attention, right), output, relevance)
    for part, expected in zip(
        found, apply_attention_by_loops(attention, right, relevance), strict=True
    ):
        assert_close(part, expected, 1e-11)


def test_halved():
    query, key = np.array([1.0, 2.0]), np.array([3.0, -1.0])  # products 3 and -2, sum 1
    inputs = [query.reshape(1, 1, 1, 2), key.reshape(1, 1, 1, 2)]
    found = apply(HALVED_SCORES, inputs, np.ones((1, 1, 1, 1)), 4 * np.ones((1, 1, 1, 1)))
    for part in found:
        np.testing.assert_allclose(part.ravel(), [6, -4], rtol=1e-8)


def test_add_by_hand():
    x, y, relevance = np.array([[3.0, 1.0]]), np.array([[-1.0, 3.0]]), np.array([[4.0, 8.0]])
    shares = apply(ADD, (x, y), x + y, relevance)
    np.testing.assert_allclose(shares[0], [[6, 2]], rtol=1e-8)
    np.testing.assert_allclose(shares[1], [[-2, 6]], rtol=1e-8)
    # Sums 8 and 4 of 12: nothing to rescale. The first column alone: 6 and -2 become 3 and 1.
    for found, expected in zip(
        apply(NORMALISED_ADD, (x, y), x + y, relevance), shares, strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-8)
    found = apply(NORMALISED_ADD, (x[:, :1], y[:, :1]), (x + y)[:, :1], relevance[:, :1])
    np.testing.assert_allclose(np.concatenate(found), [[3], [1]], rtol=1e-8)


@given(TOKENS, SEEDS, KIND, KIND)
def test_normalised_add_is_per_image(shape, seed, kind, other):
    x, y = draw(seed, kind, *shape), draw(seed + 1, other, *shape)
    relevance = draw(seed + 2, "normal", *shape)
    found = apply(NORMALISED_ADD, (x, y), x + y, relevance)
    for b in range(shape[0]):
        share = divide(relevance[b], x[b] + y[b])
        parts = x[b] * share, y[b] * share
        sums = [part.sum() for part in parts]
        size = abs(sums[0]) + abs(sums[1])
        for part, total, result in zip(parts, sums, found, strict=True):
            kept = float(divide(abs(total), size)) * relevance[b].sum()
            expected = part * divide(kept, total)
            # A sum that nearly cancels has few digits left, and it is divided by.
            digits = 1e-13 * np.abs(part).sum() / max(abs(total), 1e-300)
            assert_close(result[b], expected, 1e-11 + digits)


@given(TOKENS, SEEDS, KIND, KIND)
def test_stabilised_add(shape, seed, kind, other):
    x, y = draw(seed, kind, *shape), draw(seed + 1, other, *shape)
    relevance = draw(seed + 2, "normal", *shape)
    z = x + y
    below = z + np.where(z < 0, -1e-3, 1e-3) * (np.abs(x) + np.abs(y))
    share = divide(relevance, below)
    found = apply(STABILISED_ADD, (x, y), z, relevance)
    for part, expected in zip(found, (x * share, y * share), strict=True):
        assert_close(part, expected)
        assert np.all(np.abs(part) <= 1001 * np.abs(relevance))


def test_stabilised_is_bounded_where_summands_cancel():
    x = jnp.array([[2.0, 1.0, 0.0]])
    y = jnp.array([[-1.0, -1.0, 0.0]])
    found = apply(STABILISED_ADD, (x, y), x + y, jnp.array([[1.003, 0.002, 1.0]]))
    np.testing.assert_allclose(found[0], [[2, 1, 0]], rtol=1e-6)
    np.testing.assert_allclose(found[1], [[-1, -1, 0]], rtol=1e-6)


@given(HEADS, SEEDS)
def test_stabilised_products(sizes, seed):
    b, h, q, n, d = sizes
    attention, value = draw(seed, "positive", b, h, q, n), draw(seed + 1, "normal", b, h, n, d)
    relevance = draw(seed + 2, "normal", b, h, q, d)
    output = np.einsum("bhqn,bhnd->bhqd", attention, value)
    out_a, out_v = np.zeros(attention.shape), np.zeros(value.shape)
    for i, j, k, c in np.ndindex(relevance.shape):
        products = attention[i, j, k] * value[i, j, :, c]
        sign = -1 if products.sum() < 0 else 1
        below = products.sum() + 0.01 * sign * np.abs(products).sum()
        out_a[i, j, k] += products * relevance[i, j, k, c] / below
        out_v[i, j, :, c] += products * relevance[i, j, k, c] / below
    for part, expected in zip(
        apply(STABILISED_APPLY_ATTENTION, (attention, value), output, relevance),
        (out_a, out_v),
        strict=True,
    ):
        assert_close(part, expected, 1e-5)  # the reference leaves out the 1e-9


# Linear layers.


def positive_parts(x, w):
    """(x+, w+) and (x-, w-): the two pairs whose products are positive."""
    return [(np.maximum(sign * x, 0), np.maximum(sign * w, 0)) for sign in (1, -1)]


def four_products(x, w, relevance):
    """Alpha 1, beta 0 as the published code has it: two products forward and two backward."""
    pairs = positive_parts(x, w)
    share = divide(relevance, sum(px @ pw for px, pw in pairs))
    return sum(px * (share @ pw.T) for px, pw in pairs)


def draw_layer(sizes, seed, kind, other):
    """Inputs, weights and relevance of a linear layer."""
    images, tokens, inputs, outputs = sizes
    x, w = draw(seed, kind, images, tokens, inputs), draw(seed + 1, other, inputs, outputs)
    return x, w, draw(seed + 2, "normal", images, tokens, outputs)


@given(LAYERS, SEEDS, KIND, KIND)
def test_alpha1_beta0_is_the_four_product_form(sizes, seed, kind, other):
    x, w, relevance = draw_layer(sizes, seed, kind, other)
    found, nothing = apply(ALPHA1_BETA0, (x, w), x @ w, relevance)
    assert nothing is None
    expected = four_products(x, w, relevance)
    # Where the positive part is small against the products, the short form cancels digits away.
    sizes_of = np.abs(x) @ np.abs(w)
    parts = sum(px @ pw for px, pw in positive_parts(x, w))
    lost = (sizes_of / np.where(parts > 0, parts, np.inf)).max()
    assert_close(found, expected, 1e-12 + 1e-15 * lost)


@given(LAYERS, SEEDS, KIND, KIND)
def test_alpha1_beta0_split_divides_each_half_by_itself(sizes, seed, kind, other):
    x, w, relevance = draw_layer(sizes, seed, kind, other)
    found, nothing = apply(ALPHA1_BETA0_SPLIT, (x, w), x @ w, relevance)
    assert nothing is None
    expected = sum(px * (divide(relevance, px @ pw) @ pw.T) for px, pw in positive_parts(x, w))
    assert_close(found, expected)


def test_linear_rules_by_hand():
    x, w = np.array([[1.0, -2.0, 3.0]]), np.array([[2.0], [-1.0], [-4.0]])  # products 2, 2, -12
    relevance = np.array([[8.0]])
    found, _ = apply(ALPHA1_BETA0, (x, w), x @ w, relevance)
    np.testing.assert_allclose(found, [[4, 4, 0]], rtol=1e-8)
    found, _ = apply(ALPHA1_BETA0_SPLIT, (x, w), x @ w, relevance)
    np.testing.assert_allclose(found, [[8, 8, 0]], rtol=1e-8)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("sign", [1, -1])
def test_alpha1_beta0_without_positive_products_gives_zero(dtype, sign):
    generator = np.random.default_rng(0)
    x = (sign * np.exp(generator.normal(0, 3, (2, 4, 300)))).astype(dtype)
    w = (-sign * np.exp(generator.normal(0, 3, (300, 5)))).astype(dtype)
    relevance = generator.normal(size=(2, 4, 5)).astype(dtype)
    z = x @ w
    # Off by some rounding, as when another backend sums in another order.
    for output in (
        z,
        z * dtype(1 + 8 * np.finfo(dtype).eps),
        z * dtype(1 - 8 * np.finfo(dtype).eps),
    ):
        found, _ = apply(ALPHA1_BETA0, (x, w), output, relevance)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, np.zeros_like(x))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_alpha1_beta0_with_one_output_without_positive_products(dtype):
    generator = np.random.default_rng(1)
    x, w = np.abs(generator.normal(size=(2, 3, 64))), generator.normal(size=(64, 4))
    w[:, 2] = -np.abs(w[:, 2])
    x, w, relevance = (a.astype(dtype) for a in (x, w, generator.normal(size=(2, 3, 4))))
    found, _ = apply(ALPHA1_BETA0, (x, w), x @ w, relevance)
    others = [0, 1, 3]
    expected = four_products(
        *(a.astype(np.float64) for a in (x, w[:, others], relevance[..., others]))
    )
    np.testing.assert_allclose(found, expected, atol=50 * np.finfo(dtype).eps)


def test_a_dead_input_takes_nothing_and_an_empty_output_gives_nothing():
    x, w = np.array([[0.0, 1.0], [0.0, 0.0]]), np.array([[5.0, 0.0], [1.0, 0.0]])
    found, _ = apply(ALPHA1_BETA0, (x, w), x @ w, np.ones((2, 2)))
    np.testing.assert_allclose(found, [[0, 1], [0, 0]], rtol=1e-8)


@given(LAYERS.filter(lambda sizes: sizes != (1, 1, 1, 1)), SEEDS, KIND)
def test_z_box_by_loops_over_tokens(sizes, seed, kind):
    images, tokens, inputs, outputs = sizes
    x, w = draw(seed, kind, images, tokens, inputs), draw(seed + 1, "normal", inputs, outputs)
    relevance = draw(seed + 2, "normal", images, tokens, outputs)
    found, nothing = apply(Z_BOX, (x, w), x @ w, relevance)
    assert nothing is None
    expected, size = np.zeros(x.shape), 0.0
    for b, n, o in np.ndindex(relevance.shape):
        low, high = x[b].min(), x[b].max()
        bound = np.where(w[:, o] > 0, low, high)
        parts = x[b, n] * w[:, o] - bound * w[:, o]
        share = relevance[b, n, o] / (parts.sum() + 1e-9)
        expected[b, n] += parts * share
        # Both terms of a part carry its rounding, and the sum's comes back through the division.
        terms = (np.abs(x[b, n]) + np.abs(bound)) @ np.abs(w[:, o])
        size = max(size, terms * abs(share) * (1 + terms / (parts.sum() + 1e-9)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14 * size)


def test_z_box_by_hand():
    # Bounds 0 and 1: x w = (1, -1, 0), less L w+ = 0 and H w- = (0, -1, 0), leaves (1, 0, 0).
    x, w = np.array([[0.5, 1.0, 0.0]]), np.array([[2.0], [-1.0], [1.0]])
    found, _ = apply(Z_BOX, (x, w), x @ w, np.ones((1, 1)))
    np.testing.assert_allclose(found, [[1, 0, 0]], atol=1e-8)


# Pass-through, fan-out, uniform.


def test_identity_gives_all_to_the_first_input():
    relevance = jnp.arange(6.0).reshape(2, 3)
    x, parameter = jnp.ones((2, 3)), jnp.ones(3)
    found = rules.identity((x, parameter, parameter), x)(relevance)
    assert found[0] is relevance and found[1:] == (None, None)
    assert len(rules.identity((x,), x)(relevance)) == 1


@given(TOKENS, SEEDS, KIND)
def test_fan_out(shape, seed, kind):
    x, first = draw(seed, kind, *shape), draw(seed + 1, "normal", *shape)
    second = draw(seed + 2, "normal", *shape)
    (plain,) = rules.sum_branches((x,), x)((first, second))
    np.testing.assert_array_equal(plain, first + second)
    (published,) = apply(SUM_BRANCHES_PUBLISHED, (x,), x, (first, second))
    assert_close(published, x * (divide(first, x) + divide(second, x)))


def test_published_fan_out_by_hand():
    x = np.array([2.0, 0.0])
    (found,) = apply(SUM_BRANCHES_PUBLISHED, (x,), x, (np.array([3.0, 3.0]), np.array([5.0, 5.0])))
    np.testing.assert_allclose(found, [8, 0], rtol=1e-8)  # a value of zero takes nothing


@given(LAYERS, SEEDS)
def test_uniform_shares_evenly(sizes, seed):
    images, tokens, inputs, outputs = sizes
    x, w = draw(seed, "normal", images, tokens, inputs), draw(seed + 1, "sparse", inputs, outputs)
    relevance = draw(seed + 2, "normal", images, tokens, outputs)
    found, nothing = apply(UNIFORM_LINEAR, (x, w), x @ w, relevance)
    assert nothing is None
    even = relevance.sum(-1, keepdims=True) / inputs
    assert_close(found, np.broadcast_to(even, x.shape), 1e-13)
    first, second = apply(UNIFORM_ADD, (x, x), 2 * x, x)
    np.testing.assert_array_equal(first, x / 2)
    np.testing.assert_array_equal(second, x / 2)


def test_uniform_products_give_each_input_everything_so_they_are_halved():
    query, key = np.zeros((1, 1, 2, 4)), np.ones((1, 1, 3, 4))
    relevance = np.arange(6.0).reshape(1, 1, 2, 3)
    found = apply(UNIFORM_SCORES, (query, key), np.zeros((1, 1, 2, 3)), relevance)
    np.testing.assert_allclose(
        found[0], np.broadcast_to(relevance.sum(-1)[..., None] / 4, query.shape)
    )
    np.testing.assert_allclose(
        found[1], np.broadcast_to(relevance.sum(2)[..., None] / 4, key.shape)
    )


# Rules of the newer families.


@given(st.sampled_from([(1, 1, 1, 2), (2, 3, 2, 8)]), SEEDS, KIND)
def test_rotation_is_the_z_rule_of_its_matrix(sizes, seed, kind):
    *_, tokens, width = sizes
    x, relevance = draw(seed, kind, *sizes), draw(seed + 1, "normal", *sizes)
    angles = np.random.default_rng(seed + 2).uniform(0, 6, (tokens, width // 2))
    cosine, sine = np.tile(np.cos(angles), 2), np.tile(np.sin(angles), 2)
    sine[:, : width // 2] *= -1
    expected = np.zeros(sizes)
    for n in range(tokens):
        c, s = np.diag(np.cos(angles[n])), np.diag(np.sin(angles[n]))
        matrix = np.block([[c, -s], [s, c]])  # y = matrix x
        z = x[:, :, n] @ matrix.T
        expected[:, :, n] = x[:, :, n] * (divide(relevance[:, :, n], z) @ matrix)
    output = ops.rotate(*map(jnp.asarray, (x, cosine, sine)))
    found, *parameters = apply(ROTATE, [x, cosine, sine], output, relevance)
    assert_close(found, expected, 1e-9)
    assert parameters == [None, None]


@given(TOKENS, SEEDS, KIND)
def test_a_mean_is_shared_in_proportion(shape, seed, kind):
    x, relevance = draw(seed, kind, *shape), draw(seed + 1, "normal", shape[0], 1, shape[2])
    (found,) = apply(MEAN, [x], x.mean(1, keepdims=True), relevance)
    count = shape[1]
    assert_close(found, x / count * divide(relevance, x.sum(1, keepdims=True) / count))


@given(SEEDS, st.integers(1, 5))
def test_a_mean_of_the_best_is_shared_among_them(seed, count):
    x, relevance = draw(seed, "normal", 2, 5, 3), draw(seed + 1, "normal", 2, 1, 3)
    output = ops.best_tokens(jnp.asarray(x), jnp.asarray(float(count)))
    found, _ = apply(BEST, [x, np.asarray(float(count))], output, relevance)
    expected = np.zeros_like(x)
    for b in range(2):
        for c in range(3):
            best = np.argsort(-x[b, :, c])[:count]
            np.testing.assert_allclose(output[b, 0, c], x[b, best, c].mean(), rtol=1e-13)
            share = divide(relevance[b, 0, c], x[b, best, c].mean())
            expected[b, best, c] = x[b, best, c] / count * share
    assert_close(found, expected, 1e-9)


def test_the_stable_mean_of_the_best_is_bounded_by_the_size_of_those_chosen():
    x = jnp.array([[[0.02], [0.01], [-20.0], [-30.0]]])
    rule = rules.stabilised(ops.best_tokens, magnitude_of=ops.best_tokens_magnitude)
    count = jnp.asarray(2.0)
    found, _ = rule((x, count), ops.best_tokens(x, count))(jnp.ones((1, 1, 1)))
    np.testing.assert_allclose(found[0, :, 0], np.array([2, 1, 0, 0]) / 3 / 1.001, rtol=1e-6)


@given(SEEDS, KIND)
def test_pooled_values_take_everything_and_their_attention_nothing(seed, kind):
    attention, value = draw(seed, "positive", 2, 2, 1, 3), draw(seed + 1, kind, 2, 2, 3, 4)
    relevance = draw(seed + 2, "normal", 2, 2, 1, 4)
    output = np.einsum("bhqn,bhnd->bhqd", attention, value)
    none, found = apply(POOL_VALUES, [attention, value], output, relevance)
    np.testing.assert_array_equal(none, np.zeros_like(attention))
    shares = attention.transpose(0, 1, 3, 2) * value  # (B, H, N, d): the summands of the output
    assert_close(found, shares * divide(relevance, output), 1e-9)


def test_products_and_channels_by_hand():
    relevance = jnp.array([[6.0, -2.0]])
    x, y = jnp.array([[1.0, 2.0]]), jnp.array([[3.0, -4.0]])
    halves = rules.halved(rules.to_both)((x, y), x * y)(relevance)
    for half in halves:
        np.testing.assert_array_equal(half, [[3, -1]])
    first, second = rules.split((x, y[:, :1]), None)(jnp.array([[1.0, 2.0, 3.0]]))
    np.testing.assert_array_equal(first, [[1, 2]])
    np.testing.assert_array_equal(second, [[3]])
