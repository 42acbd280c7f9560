"""Every method on every family of models: shapes, independence, many classes, one forward, conservation, precision."""

from collections.abc import Iterator
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vitx
from tests.small_models import FAMILIES, USUAL_METHODS, images_for, small_family
from vitx.relevance.registry import REGISTRY, methods_of
from vitx.relevance.rulesets import EXACT, UNIFORM

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("float64")]
USUAL = ("dinov2 registers", "dinov3 gated", "clip", "siglip", "pooled+best")  # every part once
each_family = pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[] if f in USUAL else pytest.mark.exhaustive) for f in FAMILIES],
)
GRID, PIXELS = (2, 3), (8, 12)


@pytest.fixture(autouse=True)
def programs_of_one_test() -> Iterator[None]:
    """Every test compiles programs of its own, which would fill the memory."""
    yield
    jax.clear_caches()


@cache
def model_of(family):
    return small_family(family)


def explained(family, images, classes, method):
    logits, maps = vitx.explain(model_of(family), images, classes, method)
    return np.asarray(logits), np.asarray(maps)


@each_family
def test_every_method_on_every_family(family):
    """Finite maps of the right shape; the logits are the model's; an image's map does not depend on the others."""
    model = model_of(family)
    images, classes = images_for(model, 2), np.array([[0, 2], [1, 0]])
    expected = np.asarray(predict(model, images))
    for method in USUAL_METHODS if family in USUAL else methods_of(model):
        logits, maps = explained(family, images, classes, method)
        np.testing.assert_allclose(logits, expected, rtol=1e-11, err_msg=method)
        assert maps.shape == (2, 2, *(PIXELS if REGISTRY[method].pixels else GRID)), method
        assert np.isfinite(maps).all(), method
        if method not in ("gradcam", "attention_gradient"):  # whose positive part may be empty
            assert np.abs(maps).max() > 0, method
        _, others = explained(family, images.at[1].multiply(-3), classes, method)
        size = 1e-12 * np.abs(maps).max()
        np.testing.assert_allclose(others[0], maps[0], rtol=0, atol=size, err_msg=method)


@each_family
def test_many_classes_in_one_call_are_many_calls(family):
    images, classes = images_for(model_of(family), 2), np.array([[0, 2], [1, 0]])
    _, together = explained(family, images, classes, "transformer_attribution")
    for column in range(2):
        _, alone = explained(family, images, classes[:, column], "transformer_attribution")
        size = 1e-12 * np.abs(alone).max()
        np.testing.assert_allclose(together[:, column], alone, rtol=0, atol=size)


@jax.jit
def predict(model, images):
    return model(images)


@jax.jit
def encoded_by(model, images):
    encoded, _ = model.encode(model.embed(model.features(images)))
    return encoded, model.normed(encoded), model.pooling_weights(encoded), model.pooled(encoded)


@each_family
def test_uniform_totals_are_one_at_the_tokens(family):
    model = model_of(family)

    @jax.jit
    def total(images):
        tokens = model.embed(model.features(images))
        output, pullback = jax.vjp(
            lambda t: model.classify(model.encode(t, UNIFORM)[0], UNIFORM), tokens
        )
        (relevance,) = pullback(jnp.zeros_like(output).at[:, 1].set(1.0))
        return relevance.sum((1, 2))

    np.testing.assert_allclose(total(images_for(model, 2)), 1, rtol=0, atol=1e-12)


@each_family
def test_gradient_and_relevance_share_one_forward(family):
    """Each softmax of a forward takes one maximum over its rows, and a pass back none: counted in the programs."""
    model = model_of(family)
    images = images_for(model, 1)

    def softmaxes(function):
        return str(jax.make_jaxpr(function)(images)).count("reduce_max[")

    forward = softmaxes(lambda x: model(x, EXACT))
    assert forward == len(model.blocks) + (family == "siglip")
    for classes in ([0], [[0, 1, 2]]):
        found = softmaxes(lambda x, c=classes: vitx.explain(model, x, jnp.array(c)))
        assert found == forward + (family == "siglip")  # whose row of attention is computed apart


@each_family
def test_stable_maps_in_float32_are_those_in_float64(family):
    model = small_family(family, depth=3)
    images, classes = images_for(model, 3), np.array([0, 1, 2])
    _, exact = vitx.explain(model, images, classes, rules="stable")
    with jax.enable_x64(False):
        low = small_family(family, depth=3)
        _, maps = vitx.explain(low, images.astype(jnp.float32), classes, rules="stable")
    assert maps.dtype == jnp.float32 and exact.dtype == jnp.float64
    for a, b in zip(exact.reshape(3, -1), maps.reshape(3, -1), strict=True):
        assert np.corrcoef(a, b)[0, 1] >= 0.9999


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[] if f == "mae" else pytest.mark.exhaustive) for f in FAMILIES],
)
def test_stable_maps_of_many_patches_and_blocks_keep_float32(family):
    """A 14 x 14 grid, 12 blocks: what is explained must stand out from what every token gets."""
    changes = {"depth": 12, "size": (56, 56), "width": 48, "hidden": 96}
    model = small_family(family, **changes)
    images = images_for(model, 1)
    _, exact = vitx.explain(model, images, [1], rules="stable", memory="lean")
    with jax.enable_x64(False):
        low = small_family(family, **changes)
        images = images.astype(jnp.float32)
        _, maps = vitx.explain(low, images, [1], rules="stable", memory="lean")
    assert np.corrcoef(exact.ravel(), maps.ravel())[0, 1] >= 0.9999
    assert len(np.unique(maps)) > 180


@pytest.mark.parametrize("family", ["siglip", "mae", "pooled+best", "clip"])
def test_maps_follow_the_target_and_not_the_pooling(family):
    model = small_family(family).without_head()
    images = images_for(model, 1)
    *_, weights, output = encoded_by(model, images)
    query = np.random.default_rng(3).standard_normal(output.shape)
    maps = [np.asarray(vitx.explain(model, images, target=q)[1]).ravel() for q in (query, -query)]
    for found in maps:
        assert found.max() > 0 and found.std() > 1e-3 * found.max()
    assert np.corrcoef(*maps)[0, 1] < 0.99
    if family == "siglip":  # whose weights differ from patch to patch
        assert np.corrcoef(maps[0], np.asarray(weights)[0])[0, 1] < 0.99


@pytest.mark.parametrize("family", ["siglip", "mae", "clip"])
def test_a_value_that_every_output_lowers_has_a_map_of_zeros(family):
    model = model_of(family)
    _, maps = vitx.explain(model, images_for(model, 1), target=less)
    np.testing.assert_array_equal(maps, 0)


def less(logits):
    return -logits.sum(-1)


@each_family
def test_tokens(family):
    model = model_of(family)
    images = images_for(model, 2)
    tokens = vitx.tokens(model, images)
    assert tokens.shape == (2, model.prefix_tokens + 6, 16)
    encoded, read, weights, _ = encoded_by(model, images)
    np.testing.assert_allclose(tokens[:, : read.shape[1]], read, rtol=0, atol=1e-12)
    assert weights.shape == encoded.shape[:2]
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-12)


@pytest.mark.parametrize("family", ["dinov3 gated", "siglip", "pooled+best"])
def test_lean_memory_gives_the_same_maps(family):
    model = model_of(family)
    images = images_for(model, 2)
    for method in ("lrp", "transformer_attribution"):
        fast, lean = (
            vitx.explain(model, images, None, method, memory=m)[1] for m in ("fast", "lean")
        )
        np.testing.assert_allclose(lean, fast, rtol=0, atol=1e-9 * np.abs(fast).max())


@pytest.mark.parametrize("family", ["dinov2", "clip", "siglip", "mae", "distilled"])
def test_without_a_head_the_output_is_the_pooled_one(family):
    model = small_family(family, num_classes=0)
    images = images_for(model, 2)
    *_, pooled = encoded_by(model, images)
    output = predict(model, images)
    assert output.shape == (2, 10 if family == "clip" else 16)
    np.testing.assert_allclose(output, pooled, rtol=1e-12)


def test_tokens_want_images_of_the_model_s_size():
    with pytest.raises(ValueError, match=r"images must be \(B, 8, 12, 3\), not \(1, 8, 8, 3\)"):
        vitx.tokens(model_of("vit"), np.zeros((1, 8, 8, 3)))
