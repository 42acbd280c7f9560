"""Every operation under every rule set: values, linearity, permutations, conservation, pairs.

Whole models under UNIFORM, which shows an operation without a rule.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small_models import images_for, small_hybrid, small_vit
from vitx.models.vit import Block
from vitx.ops import PLAIN, Ops
from vitx.relevance import rulesets
from vitx.relevance.rulesets import EXACT, UNIFORM, Pair, twice

pytestmark = pytest.mark.usefixtures("float64")

RELEVANCE = {name: getattr(rulesets, name) for name in ("CHEFER", "LRP", "STABLE", "STABLE_LRP")}
RELEVANCE["UNIFORM"] = UNIFORM
PAIRS = {"CHEFER": rulesets.CHEFER_PAIRS, "STABLE": rulesets.STABLE_PAIRS}

# Operation -> shapes of what carries relevance, shapes of the parameters, constants.
TOKENS, HEADS, MATRIX = (2, 3, 4), (2, 2, 3, 4), (2, 2, 3, 3)  # B 2, H 2, N 3, D 4
SHAPES = {
    "linear": ([TOKENS], [(4, 5)], {}),
    "pixels": ([TOKENS], [(4, 5)], {}),
    "bias": ([TOKENS], [(4,)], {}),
    "add": ([TOKENS, TOKENS], [], {}),
    "clone": ([TOKENS], [], {}),
    "attention_scores": ([HEADS, HEADS], [], {}),
    "apply_attention": ([MATRIX, HEADS], [], {}),
    "scale": ([MATRIX], [], {"factor": 0.5}),
    "scale_channels": ([TOKENS], [(4,)], {}),
    "multiply": ([TOKENS, TOKENS], [], {}),
    "rotate": ([HEADS], [(3, 4), (3, 4)], {}),
    "concatenate": ([TOKENS, TOKENS], [], {}),
    "mean_tokens": ([TOKENS], [], {}),
    "best_tokens": ([TOKENS], [()], {}),
    "pool_values": ([MATRIX, HEADS], [], {}),
    "softmax": ([MATRIX], [], {}),
    "gelu": ([TOKENS], [], {}),
    "quick_gelu": ([TOKENS], [], {}),
    "tanh_gelu": ([TOKENS], [], {}),
    "silu": ([TOKENS], [], {}),
    "layer_norm": ([TOKENS], [(4,), (4,)], {"epsilon": 1e-6}),
}
STEM = ("conv", "group_norm", "relu", "max_pool")
SEEDS = st.integers(0, 2**31)
each_operation = pytest.mark.parametrize("name", SHAPES)


def normal(generator, *shape):
    return jnp.asarray(generator.standard_normal(shape))


def values_of(name, seed=0):
    """An operation's values and parameters."""
    generator = np.random.default_rng(seed)
    shapes, parameters, _ = SHAPES[name]
    values = [normal(generator, *s) for s in shapes]
    if name == "best_tokens":
        return values, [jnp.asarray(2.0)]
    return values, [normal(generator, *s) for s in parameters]


def call(rule_set, name, values, parameters):
    return getattr(rule_set, name)(*values, *parameters, **SHAPES[name][2])


def cotangent_of(name, seed=9):
    generator = np.random.default_rng(seed)
    shapes = jax.eval_shape(partial(call, PLAIN, name), *values_of(name))
    return jax.tree.map(lambda s: normal(generator, *s.shape), shapes)


@partial(jax.jit, static_argnums=0)
def relevances(name, values, parameters, cotangent):
    """What comes out below an operation, under each rule set."""
    return {
        label: jax.vjp(lambda *v, b=rule_set: call(b, name, v, parameters), *values)[1](cotangent)
        for label, rule_set in RELEVANCE.items()
    }


@partial(jax.jit, static_argnums=0)
def pairs_below(name, values, parameters, cotangents):
    return {
        label: jax.vjp(lambda *v, b=rule_set: call(b, name, v, parameters), *twice(values))[1](
            cotangents
        )
        for label, rule_set in PAIRS.items()
    }


@partial(jax.jit, static_argnums=0)
def gradients(name, values, parameters, cotangent):
    return jax.vjp(lambda *v: call(PLAIN, name, v, parameters), *values)[1](cotangent)


def assert_same(found, expected, tolerance=0.0):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(jnp.abs(b).max()))


def test_every_operation_is_here():
    assert {*SHAPES, *STEM, "probe"} == {field.name for field in dataclasses.fields(Ops)}


# Values.


@each_operation
def test_values_are_the_plain_ones_to_the_bit(name):
    values, parameters = values_of(name)
    expected = call(PLAIN, name, values, parameters)
    for rule_set in (EXACT, *RELEVANCE.values()):
        assert_same(call(rule_set, name, values, parameters), expected)
        value, _ = jax.vjp(lambda *v, b=rule_set: call(b, name, v, parameters), *values)
        assert_same(value, expected)
    for rule_set in PAIRS.values():
        value, _ = jax.vjp(lambda *v, b=rule_set: call(b, name, v, parameters), *twice(values))
        assert_same(value, twice(expected))


@pytest.mark.slow
def test_values_of_a_whole_model_are_the_plain_ones_in_float32():
    with jax.enable_x64(False):
        model = small_vit(depth=1)
        images = images_for(model, 2)
        expected = model(images)
        assert expected.dtype == jnp.float32
        np.testing.assert_array_equal(model(images, rulesets.CHEFER), expected)
        tokens = twice(model.embed(images))
        encoded, _ = model.encode(tokens, rulesets.CHEFER_PAIRS)
        logits = model.classify(encoded, rulesets.CHEFER_PAIRS)
        np.testing.assert_array_equal(logits.gradient, expected)
        np.testing.assert_array_equal(logits.relevance, expected)


@pytest.mark.parametrize("name", [name for name in SHAPES if SHAPES[name][1]])
def test_parameters_take_no_relevance(name):
    values, parameters = values_of(name)
    for rule_set in (rulesets.CHEFER, rulesets.LRP, UNIFORM):
        output, pullback = jax.vjp(lambda *p, b=rule_set: call(b, name, values, p), *parameters)
        for taken in pullback(jnp.ones_like(output)):
            np.testing.assert_array_equal(taken, np.zeros(taken.shape))


# Gradients.


@pytest.mark.parametrize("factor", [0.1, 1.0, 30.0])
@pytest.mark.parametrize(
    ("name", "written_out"),
    [
        ("softmax", lambda x: jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True)),
        ("gelu", lambda x: x * (1 + jax.lax.erf(x / np.sqrt(2))) / 2),
    ],
)
def test_gradients_with_a_derivative_of_their_own(name, written_out, factor):
    (x,), _ = values_of(name)
    cotangent = cotangent_of(name)
    (expected,) = jax.vjp(written_out, factor * x)[1](cotangent)
    for rule_set in (PLAIN, EXACT):
        (found,) = jax.vjp(getattr(rule_set, name), factor * x)[1](cotangent)
        assert_same(found, expected, 1e-13)


# Properties of the relevance.


@each_operation
@settings(max_examples=8)
@given(seed=SEEDS, factor=st.sampled_from([-3.0, -0.5, 0.25, 2.0]))
def test_relevance_is_linear_in_what_comes_in(name, seed, factor):
    inputs = values_of(name, seed)
    first, second = (cotangent_of(name, s) for s in (1, 2))
    of_first, of_second = (relevances(name, *inputs, c) for c in (first, second))
    scaled = relevances(name, *inputs, jax.tree.map(lambda a: factor * a, first))
    both = relevances(name, *inputs, jax.tree.map(lambda a, b: factor * a + b, first, second))
    for label in RELEVANCE:
        if name == "add" and label in ("CHEFER", "STABLE"):
            # The normalised add looks at the branches' totals: homogeneous, and that up to 1e-9.
            assert_same(scaled[label], [factor * a for a in of_first[label]], 1e-6)
            continue
        for found, a, b in zip(both[label], of_first[label], of_second[label], strict=True):
            size = float(jnp.abs(a).max() + jnp.abs(b).max())
            np.testing.assert_allclose(found, factor * a + b, rtol=0, atol=1e-12 * size)


def permuted(arrays, order):
    """Tokens in another order: axis 1 of (B, N, D), 2 of (B, H, N, D), both of (B, H, N, N)."""

    def permute(x):
        if x.ndim == 3:
            return x if x.shape[1] == 1 else x[:, order]
        return x[:, :, order][..., order] if x.shape[-1] == len(order) else x[:, :, order]

    return jax.tree.map(permute, arrays)


@each_operation
@pytest.mark.parametrize("order", [[2, 0, 1], [1, 0, 2]])
def test_relevance_follows_a_permutation_of_the_tokens(name, order):
    (values, parameters), cotangent, order = values_of(name), cotangent_of(name), np.array(order)
    expected = permuted(relevances(name, values, parameters, cotangent), order)
    if name == "rotate":
        parameters = [table[order] for table in parameters]
    found = relevances(name, permuted(values, order), parameters, permuted(cotangent, order))
    assert_same(found, expected, 1e-9)


@each_operation
def test_images_share_nothing(name):
    (values, parameters), cotangent = values_of(name), cotangent_of(name)
    expected = relevances(name, values, parameters, cotangent)
    # Another second image, and other relevance on it.
    values, cotangent = jax.tree.map(lambda x: x.at[1].multiply(-7.0), (values, cotangent))
    found = relevances(name, values, parameters, cotangent)
    assert_same(*(jax.tree.map(lambda x: x[:1], r) for r in (found, expected)))


def total(tree):
    return sum(float(x.sum()) for x in jax.tree.leaves(tree))


@each_operation
@settings(max_examples=8)
@given(seed=SEEDS)
def test_conservation(name, seed):
    """UNIFORM keeps each total exactly, CHEFER and LRP up to the 1e-9 in their divisions."""
    values, parameters = values_of(name, seed)
    values = [jnp.abs(v) + 0.1 for v in values]  # nothing cancels
    if name == "rotate":
        parameters = [jnp.abs(p) for p in parameters]
    cotangent = cotangent_of(name, seed + 1)
    found = relevances(name, values, parameters, cotangent)
    size = sum(float(jnp.abs(c).sum()) for c in jax.tree.leaves(cotangent))
    assert abs(total(found["UNIFORM"]) - total(cotangent)) <= 1e-13 * size
    if name not in ("linear", "pixels"):  # a layer's positive parts may all be zero: see below
        for label in ("CHEFER", "LRP"):
            assert abs(total(found[label]) - total(cotangent)) <= 1e-7 * size


@given(seed=SEEDS)
@settings(max_examples=5)
def test_linear_layers_conserve_in_chefer_and_double_in_lrp(seed):
    generator = np.random.default_rng(seed)
    x = jnp.concatenate([normal(generator, *TOKENS), jnp.ones((2, 3, 1)), -jnp.ones((2, 3, 1))], -1)
    weight = jnp.concatenate([normal(generator, 4, 5), jnp.ones((1, 5)), -jnp.ones((1, 5))])
    relevance = jnp.abs(normal(generator, 2, 3, 5))
    found = relevances("linear", [x], [weight], relevance)
    for label, factor in {"CHEFER": 1, "STABLE": 1, "LRP": 2, "STABLE_LRP": 2}.items():
        np.testing.assert_allclose(total(found[label]), factor * total(relevance), rtol=1e-8)


def test_pixels_conserve_by_their_bounds():
    cotangent = cotangent_of("pixels")
    found = relevances("pixels", *values_of("pixels"), cotangent)
    for relevance in found.values():
        np.testing.assert_allclose(total(relevance), total(cotangent), atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("rule_set", [rulesets.CHEFER, UNIFORM, rulesets.STABLE_PAIRS])
def test_operations_of_the_stem_have_no_rule_and_say_so(rule_set):
    x, one = jnp.ones((1, 4, 4, 2)), jnp.ones(2)
    calls = {
        "conv": lambda v: rule_set.conv(v, jnp.ones((1, 1, 2, 2)), stride=1),
        "group_norm": lambda v: rule_set.group_norm(v, one, one, groups=1, epsilon=1e-5),
        "relu": rule_set.relu,
        "max_pool": rule_set.max_pool,
    }
    assert set(calls) == set(STEM)
    for name, call in calls.items():
        value = twice(x) if rule_set is rulesets.STABLE_PAIRS else x
        output, pullback = jax.vjp(call, value)
        with pytest.raises(NotImplementedError, match=f"^{name} has no relevance rule"):
            pullback(output)


# Pairs.


@each_operation
def test_a_pair_carries_the_gradient_and_the_relevance(name):
    inputs = values_of(name)
    g, r = (cotangent_of(name, s) for s in (1, 2))
    found = pairs_below(name, *inputs, jax.tree.map(Pair, g, r))
    expected, relevance = gradients(name, *inputs, g), relevances(name, *inputs, r)
    for label in PAIRS:
        assert_same([p.gradient for p in found[label]], expected, 1e-14)
        assert_same([p.relevance for p in found[label]], relevance[label], 1e-13)


def test_pairs_change_shape_as_arrays_do():
    x, y = jnp.arange(6.0).reshape(1, 2, 3), -jnp.arange(6.0).reshape(1, 2, 3)
    pair = Pair(x, y)
    assert pair.shape == (1, 2, 3)
    for found, change in (
        (pair.reshape(3, 2), lambda a: a.reshape(3, 2)),
        (pair.transpose(2, 0, 1), lambda a: a.transpose(2, 0, 1)),
        (pair[:, :1], lambda a: a[:, :1]),
    ):
        np.testing.assert_array_equal(found.gradient, change(x))
        np.testing.assert_array_equal(found.relevance, change(y))


def test_taps_see_relevance_or_the_mean_positive_product():
    attention = jnp.ones((1, 2, 1, 3))
    gradient = jnp.array([[1.0, -2.0, 3.0], [2.0, 2.0, 2.0]]).reshape(1, 2, 1, 3)
    relevance = jnp.array([[1.0, 1.0, -1.0], [3.0, 0.0, 1.0]]).reshape(1, 2, 1, 3)
    output, pullback = jax.vjp(rulesets.CHEFER.probe, attention, jnp.zeros_like(attention))
    np.testing.assert_array_equal(output, attention)
    for seen in pullback(relevance):
        np.testing.assert_array_equal(seen, relevance)
    probe = jnp.zeros((1, 1, 3))
    _, pullback = jax.vjp(rulesets.CHEFER_PAIRS.probe, twice(attention), probe)
    passed, seen = pullback(Pair(gradient, relevance))
    # Head by head: (1, -2, -3) and (6, 0, 2); their positive parts' mean.
    np.testing.assert_array_equal(seen, [[[3.5, 0, 1]]])
    np.testing.assert_array_equal(passed.relevance, relevance)


# Whole models under UNIFORM: the total stays the same between the logits and the tokens.


@jax.jit
def relevance_at_tokens(model, images):
    tokens = model.embed(model.features(images))
    logits, pullback = jax.vjp(
        lambda t: model.classify(model.encode(t, UNIFORM)[0], UNIFORM), tokens
    )
    return pullback(jnp.zeros_like(logits).at[:, 1].set(1.0))[0].sum((1, 2))


# Blocks with one operation written bare.


def bare_scale(self, x, ops, probe, queries, rotate=None):
    x, attention = Block.__call__(self, x, ops, probe, queries)
    return x * 2, attention


def bare_add(self, x, ops, probe, queries, rotate=None):
    skip, branch = ops.clone(x)
    mixed, attention = self.attn(self.norm1(branch, ops), ops, probe, queries)
    x = skip[:, :queries] + mixed
    skip, branch = ops.clone(x)
    return ops.add(skip, self.mlp(self.norm2(branch, ops), ops)), attention


def bare_norm(self, x, ops, probe, queries, rotate=None):
    skip, branch = ops.clone(x)
    mixed, attention = self.attn(self.norm1(branch, PLAIN), ops, probe, queries)
    return ops.add(skip[:, :queries], mixed), attention


@pytest.mark.slow
@pytest.mark.parametrize("make", [small_vit, small_hybrid])
def test_uniform_relevance_at_the_tokens_is_exactly_one(make):
    model = make()
    totals = relevance_at_tokens(model, images_for(model, 2))
    np.testing.assert_allclose(totals, 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("plant", [bare_scale, bare_add, bare_norm])
def test_uniform_catches_an_operation_without_a_rule(plant):
    class Planted(Block):
        __call__ = plant

    model = small_vit(depth=1)
    images = images_for(model, 2)
    model.blocks[0].__class__ = Planted
    totals = relevance_at_tokens(model, images)
    assert np.abs(totals - 1).min() > 1e-3
