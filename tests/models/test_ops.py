"""The plain operations against NumPy, written out by loops where it matters, in float64."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from tests.small_models import filled
from vitx import ops, parallel
from vitx.models.blocks import Block
from vitx.models.fused import attend
from vitx.ops import PLAIN, Ops
from vitx.relevance.rulesets import EXACT

pytestmark = pytest.mark.usefixtures("float64")


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def same_padding(size, window, stride):
    """TensorFlow's 'SAME': outputs, and cells before and after; the odd one goes after."""
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + window - size, 0)
    return outputs, total // 2, total - total // 2


def windows(x, side, stride, fill):
    """x (B, H, W, C) -> (B, h, w, side, side, C): what each output of a 'SAME' window reads."""
    rows, top, bottom = same_padding(x.shape[1], side, stride)
    columns, left, right = same_padding(x.shape[2], side, stride)
    padding = ((0, 0), (top, bottom), (left, right), (0, 0))
    padded = np.pad(x, padding, constant_values=fill)
    out = np.empty((len(x), rows, columns, side, side, x.shape[3]))
    for i, j in itertools.product(range(rows), range(columns)):
        y, z = i * stride, j * stride
        out[:, i, j] = padded[:, y : y + side, z : z + side]
    return out


def assert_close(found, expected, tolerance=1e-13):
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_linear_bias_add_and_scale():
    x, w, b = normal(0, 2, 3, 4), normal(1, 4, 5), normal(2, 5)
    product = np.array([[[row @ w[:, o] for o in range(5)] for row in image] for image in x])
    assert_close(ops.linear(x, w), product)
    assert_close(ops.bias(jnp.asarray(product), b), product + b)
    assert_close(ops.add(jnp.asarray(x), 2 * x), 3 * x)
    assert_close(ops.scale(jnp.asarray(x), factor=0.25), x / 4)


def test_clone_gives_the_value_twice():
    x = jnp.ones((2, 3))
    first, second = ops.clone(x)
    assert first is x and second is x


@pytest.mark.parametrize("queries", [1, 3])
def test_attention_by_loops_over_tokens(queries):
    query, key, value = normal(0, 2, 2, queries, 4), normal(1, 2, 2, 3, 4), normal(2, 2, 2, 3, 4)
    scores = np.empty((2, 2, queries, 3))
    for b, h, q, n in np.ndindex(scores.shape):
        scores[b, h, q, n] = sum(query[b, h, q, d] * key[b, h, n, d] for d in range(4))
    assert_close(ops.attention_scores(query, key), scores)
    mixed = np.empty(query.shape)
    for b, h, q, d in np.ndindex(mixed.shape):
        mixed[b, h, q, d] = sum(scores[b, h, q, n] * value[b, h, n, d] for n in range(3))
    assert_close(ops.apply_attention(jnp.asarray(scores), value), mixed)


def test_softmax_and_gelu():
    x = 3 * normal(0, 2, 5)
    weights = np.exp(x)
    assert_close(ops.softmax(jnp.asarray(x)), weights / weights.sum(-1, keepdims=True))
    gelu = np.vectorize(lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2))))(x)
    assert_close(ops.gelu(jnp.asarray(x)), gelu)
    assert_close(ops.relu(jnp.asarray(x)), np.where(x > 0, x, 0))


def test_softmax_survives_large_logits():
    np.testing.assert_array_equal(ops.softmax(jnp.array([1e4, 0.0])), [1, 0])


@pytest.mark.parametrize("epsilon", [1e-12, 1e-6, 0.1])
def test_layer_norm(epsilon):
    x, weight, shift = 2 + normal(0, 2, 3, 6), normal(1, 6), normal(2, 6)
    expected = np.empty(x.shape)
    for b, n in np.ndindex(2, 3):
        row = x[b, n]
        variance = sum((v - row.mean()) ** 2 for v in row) / 6
        expected[b, n] = (row - row.mean()) / math.sqrt(variance + epsilon) * weight + shift
    assert_close(ops.layer_norm(jnp.asarray(x), weight, shift, epsilon=epsilon), expected, 1e-12)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm_takes_neighbouring_channels_of_one_image(groups):
    x, weight, shift = 1 + normal(0, 2, 3, 2, 6), normal(1, 6), normal(2, 6)
    expected, size = np.empty(x.shape), 6 // groups
    for b, g in np.ndindex(2, groups):
        part = slice(g * size, (g + 1) * size)
        cells = x[b, :, :, part]
        normalised = (cells - cells.mean()) / math.sqrt(cells.var() + 1e-5)
        expected[b, :, :, part] = normalised * weight[part] + shift[part]
    found = ops.group_norm(jnp.asarray(x), weight, shift, groups=groups, epsilon=1e-5)
    assert_close(found, expected, 1e-12)


def test_probe_returns_the_attention_and_shows_its_gradient():
    attention = jnp.asarray(normal(0, 1, 2, 3, 3))
    assert ops.probe(attention, None) is attention
    probe = jnp.zeros_like(attention)
    value, pullback = jax.vjp(lambda t: ops.probe(attention, t), probe)
    np.testing.assert_array_equal(value, attention)
    np.testing.assert_array_equal(pullback(2 * attention)[0], 2 * attention)


SIDES = st.sampled_from([1, 2, 5, 6])


@pytest.mark.slow
@given(SIDES, SIDES, st.sampled_from([1, 3, 7]), st.sampled_from([1, 2]), st.integers(0, 99))
def test_conv_pads_as_tensorflow_does(height, width, side, stride, seed):
    x, kernel = normal(seed, 2, height, width, 2), normal(seed + 1, side, side, 2, 3)
    expected = np.einsum("bhwyxc,yxco->bhwo", windows(x, side, stride, 0.0), kernel)
    found = ops.conv(jnp.asarray(x), jnp.asarray(kernel), stride=stride)
    assert_close(found, expected, 1e-12)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [None, 0, 1])
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16])
def test_a_convolution_of_single_pixels_is_the_general_one(stride, padding, dtype):
    x, kernel = normal(0, 2, 5, 6, 3), normal(1, 1, 1, 3, 4)

    def general(x, kernel):
        sides = "SAME" if padding is None else [(padding, padding)] * 2
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), sides, dimension_numbers=dimensions
        )

    def own(x, kernel):
        return ops.conv(x, kernel, stride=stride, padding=padding)

    arrays = [jnp.asarray(array, dtype) for array in (x, kernel)]
    expected, expected_back = jax.vjp(general, *arrays)
    found, back = jax.vjp(own, *arrays)
    assert found.dtype == expected.dtype
    tolerance = 1e-12 if dtype == jnp.float64 else 0.05
    start = jnp.ones_like(expected)
    for one, other in zip((found, *back(start)), (expected, *expected_back(start)), strict=True):
        np.testing.assert_allclose(
            np.float64(one), np.float64(other), rtol=tolerance, atol=tolerance
        )


@given(SIDES, SIDES, st.integers(0, 99))
def test_max_pool_pads_with_nothing(height, width, seed):
    x = normal(seed, 2, height, width, 2) - 5  # negative: padding by zeros would win
    expected = windows(x, 3, 2, -np.inf).max((3, 4))
    np.testing.assert_array_equal(ops.max_pool(jnp.asarray(x)), expected)


@pytest.mark.slow
def test_operations_keep_float32():
    x = jnp.ones((1, 4, 4, 4), jnp.float32)
    one, c = jnp.ones((4, 4), jnp.float32), jnp.ones(4, jnp.float32)
    results = {
        "linear": ops.linear(x, one),
        "bias": ops.bias(x, c),
        "attention_scores": ops.attention_scores(x, x),
        "apply_attention": ops.apply_attention(x, x),
        "scale": ops.scale(x, factor=0.1),
        "softmax": ops.softmax(x),
        "gelu": ops.gelu(x),
        "layer_norm": ops.layer_norm(x, c, c, epsilon=1e-6),
        "conv": ops.conv(x, jnp.ones((3, 3, 4, 4), jnp.float32), stride=2),
        "group_norm": ops.group_norm(x, c, c, groups=2, epsilon=1e-5),
        "relu": ops.relu(x),
        "max_pool": ops.max_pool(x),
    }
    assert {name for name, value in results.items() if value.dtype != jnp.float32} == set()


def test_plain_is_the_module_s_own_functions():
    for field in dataclasses.fields(Ops):
        name = "linear" if field.name == "pixels" else field.name
        assert getattr(PLAIN, field.name) is getattr(ops, name)


def test_rule_sets_compare_and_hash_by_their_functions():
    assert Ops() == PLAIN and hash(Ops()) == hash(PLAIN)
    assert Ops(add=lambda x, y: x + y) != PLAIN


def test_rotation_turns_pairs_of_channels_as_complex_numbers():
    x, angles = normal(0, 2, 3, 5, 6), normal(1, 5, 3)
    cosine, sine = np.tile(np.cos(angles), 2), np.tile(np.sin(angles), 2)
    sine[:, :3] *= -1
    turned = (np.asarray(x[..., :3]) + 1j * np.asarray(x[..., 3:])) * np.exp(1j * angles)
    expected = np.concatenate([turned.real, turned.imag], -1)
    assert_close(ops.rotate(x, jnp.asarray(cosine), jnp.asarray(sine)), expected)


def test_activations():
    x = normal(0, 4, 50) * 5
    sigmoid = 1 / (1 + np.exp(-np.asarray(x, np.float64)))
    assert_close(ops.silu(x), x * sigmoid)
    assert_close(ops.quick_gelu(x), x / (1 + np.exp(-1.702 * np.asarray(x))))
    inner = np.sqrt(2 / np.pi) * (np.asarray(x) + 0.044715 * np.asarray(x) ** 3)
    assert_close(ops.tanh_gelu(x), x * (1 + np.tanh(inner)) / 2)


def test_products_sums_and_choices_of_tokens():
    x, y = normal(0, 2, 4, 3), normal(1, 2, 4, 3)
    assert_close(ops.multiply(x, y), x * y)
    assert_close(ops.scale_channels(x, jnp.array([1.0, 2.0, -3.0])), x * np.array([1, 2, -3]))
    assert_close(ops.concatenate(x, y), np.concatenate([x, y], -1))
    assert_close(ops.mean_tokens(x), np.asarray(x).mean(1, keepdims=True))
    best = np.sort(x, axis=1)[:, ::-1]
    for count in (1, 2, 4):
        expected = best[:, :count].mean(1, keepdims=True)
        assert_close(ops.best_tokens(x, jnp.asarray(float(count))), expected)


def test_the_choice_of_the_best_has_no_gradient():
    x = jnp.array([[[1.0], [3.0], [2.0]]])
    (gradient,) = jax.vjp(lambda v: ops.best_tokens(v, jnp.asarray(2.0)), x)[1](jnp.ones((1, 1, 1)))
    np.testing.assert_array_equal(gradient[0, :, 0], [0, 0.5, 0.5])


@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 7), st.integers(0, 4), st.integers(0, 9)
)
def test_fused_attention_is_the_three_operations(batch, heads, queries, more, seed):
    query = jnp.asarray(normal(seed, batch, heads, queries, 8), jnp.float32)
    key, value = jnp.asarray(normal(seed + 1, 2, batch, heads, queries + more, 8), jnp.float32)
    scores = ops.scale(ops.attention_scores(query, key), factor=0.3)
    expected = ops.apply_attention(ops.softmax(scores), value)
    mixed = attend(query, key, value, factor=0.3, implementation="xla")
    np.testing.assert_allclose(mixed, expected, rtol=1e-5, atol=1e-5)


def test_the_model_attends_by_the_kernel_where_there_is_one(monkeypatch):
    """The block calls it in half precision on a GPU, where no probe sees the attention, and has the same output."""
    block = filled(lambda: Block(16, 2, 32, 1e-6, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(block)
    half = nnx.merge(graph, jax.tree.map(lambda x: x.astype(jnp.bfloat16), state))
    x = jnp.asarray(normal(0, 2, 5, 16), jnp.bfloat16)
    expected, attention = half(x)
    called = []

    def recorded(query, key, value, *, factor):
        called.append(query.shape)
        return attend(query, key, value, factor=factor, implementation="xla")

    monkeypatch.setattr("vitx.models.blocks.attend", recorded)
    for capability in (0.0, 7.5):
        monkeypatch.setattr(
            parallel, "compute_capability", lambda capability=capability: capability
        )
        half(x)
    monkeypatch.setattr(parallel, "compute_capability", lambda: 8.0)
    half(x, probe=jnp.zeros((2, 2, 5, 5), jnp.bfloat16))
    half(x, EXACT)
    block(x.astype(jnp.float64))
    assert called == []
    found, other = half(x)
    assert called == [(2, 2, 5, 8)]
    np.testing.assert_allclose(np.float64(found), np.float64(expected), atol=0.05)
    np.testing.assert_array_equal(np.float64(other), np.float64(attention))
