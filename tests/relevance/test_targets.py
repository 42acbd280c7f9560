"""Targets of explanations: gradients against autodiff and finite differences, maps, traces, errors."""

import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.tree_util import Partial

import vitx
from tests.small_models import CLASS_TOKEN_METHODS, each_method, images_for, small_vit
from vitx.models.design import Design
from vitx.relevance import explain as module
from vitx.relevance import targets
from vitx.relevance.methods import gradcam, last_block
from vitx.relevance.registry import REGISTRY
from vitx.relevance.rulesets import EXACT

pytestmark = pytest.mark.usefixtures("float64")

WIDTH, IMAGES = 12, 3
seeds = st.integers(0, 2**32 - 1)
with_classes = [m for m in CLASS_TOKEN_METHODS if REGISTRY[m].by_class]

of_embeddings = pytest.mark.parametrize(
    "method", each_method([m for m in CLASS_TOKEN_METHODS if not REGISTRY[m].of_probability])
)


@cache
def classifier():
    return small_vit(depth=1)


@cache
def backbone():
    return small_vit(depth=1, num_classes=0)


def embeddings(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal((*shape, WIDTH))


def explained(target, method="gradcam", model=None, **options):
    model = model or classifier()
    _, maps = vitx.explain(model, images_for(model, IMAGES), None, method, target=target, **options)
    return np.asarray(maps)


def assert_close(found, expected, tolerance=1e-9):
    assert found.shape == expected.shape and np.abs(expected).max() > 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def cosine(x, y):
    return (x * y).sum(-1) / jnp.sqrt((x**2).sum(-1) * (y**2).sum(-1))


# Gradients at the output.


def by_differences(value, output, step=1e-6):
    """Central differences of value((B, C)) -> (B,): of each output in turn."""
    columns = []
    for channel in range(output.shape[1]):
        shift = step * np.eye(output.shape[1])[channel][None]
        columns.append((value(output + shift) - value(output - shift)) / (2 * step))
    return np.stack(columns, 1)


def softmax(y):
    powers = np.exp(y - y.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 3), seeds)
def test_gradients_are_those_of_finite_differences(batch, channels, values, seed):
    random = np.random.default_rng(seed)
    output = random.normal(0, 2, (batch, channels))
    a, b = random.integers(0, channels, (2, batch, values))
    vectors = random.standard_normal((batch, values, channels))
    every = np.arange(batch)

    def similarity(y, k):
        norms = np.linalg.norm(y, axis=-1) * np.linalg.norm(vectors[:, k], axis=-1)
        return (y * vectors[:, k]).sum(-1) / norms

    cases = [
        (targets.parse(None, a, batch, channels), lambda y, k: y[every, a[:, k]]),
        (
            targets.parse(None, ("difference", a, b), batch, channels),
            lambda y, k: y[every, a[:, k]] - y[every, b[:, k]],
        ),
        (
            targets.parse(None, ("probability", a), batch, channels),
            lambda y, k: softmax(y)[every, a[:, k]],
        ),
        (targets.parse(None, vectors, batch, 0), similarity),
    ]
    for gradient, value in cases:
        found = gradient(jnp.asarray(output))
        assert found.shape == (batch, values, channels)
        for k in range(values):
            expected = by_differences(lambda y, k=k, value=value: value(y, k), output)
            np.testing.assert_allclose(found[:, k], expected, rtol=1e-5, atol=1e-6)


@given(seeds)
def test_what_sums_to_zero_and_what_is_orthogonal(seed):
    """docs/explain.md says so of relevance's start."""
    random = np.random.default_rng(seed)
    output = jnp.asarray(random.standard_normal((IMAGES, WIDTH)))
    for target in (("difference", 0, 5), ("probability", 3)):
        gradient = targets.parse(None, target, IMAGES, WIDTH)(output)
        np.testing.assert_allclose(gradient.sum(-1), np.zeros(IMAGES), atol=1e-12)
    gradient = targets.parse(None, embeddings(seed=seed), IMAGES, 0)(output)
    np.testing.assert_allclose((gradient * output).sum(-1), np.zeros(IMAGES), atol=1e-12)


def test_a_class_is_its_one_hot_row_to_the_bit():
    output = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4)))
    for classes in (np.array([3, 0], np.uint8), [3, 0], jnp.array([3, 0])):
        for parsed in (
            targets.parse(classes, None, 2, 4),
            targets.parse(None, classes, 2, 4),
        ):
            np.testing.assert_array_equal(parsed(output), np.eye(4)[[3, 0]])
    np.testing.assert_array_equal(targets.parse(None, 3, 2, 4)(output), np.eye(4)[[3, 3]])


# Forms of embeddings.


def rows(target, batch=IMAGES):
    (array,) = targets.parse(None, target, batch, 0).args
    return np.asarray(array)


def test_embeddings_are_of_images_or_of_all_images():
    np.testing.assert_array_equal(rows(embeddings()), np.tile(embeddings(), (IMAGES, 1)))
    np.testing.assert_array_equal(rows(embeddings(IMAGES)), embeddings(IMAGES))
    for k in (1, 2, 4):
        np.testing.assert_array_equal(rows(embeddings(k)), embeddings(k)[None])
    for batch in (1, IMAGES):
        np.testing.assert_array_equal(rows(embeddings(batch, IMAGES)), embeddings(batch, IMAGES))


@pytest.mark.slow
@of_embeddings
def test_many_embeddings_in_one_call_are_as_many_calls(method):
    queries = embeddings(2)
    maps = explained(queries, method, backbone())
    assert maps.shape[:2] == (IMAGES, 2)
    for k, query in enumerate(queries):
        one = explained(np.tile(query, (IMAGES, 1)), method, backbone())
        np.testing.assert_allclose(maps[:, k], one, rtol=1e-9, atol=1e-9 * np.abs(one).max())


# Maps.


def gradient_at_last_attention(model, images, value):
    """Of value(model's output) at the last block's attention (B, heads, patches), by autodiff through the model."""
    shapes = model.attention_shapes()
    probe = jnp.zeros((len(images), *shapes[-1]))

    def forward(probe):
        tokens = model.embed(model.features(images))
        tokens, attentions = model.encode(tokens, EXACT, [*[None] * (len(shapes) - 1), probe])
        return value(model.classify(tokens)).sum(), attentions[-1]

    gradient, attention = jax.grad(forward, has_aux=True)(probe)
    return attention[:, :, 0, 1:], gradient[:, :, 0, 1:]


def first_minus_square(y):
    return y[:, 0] - jnp.square(y[:, 1])


def square_minus_first(y):
    return -first_minus_square(y)


@pytest.mark.slow
def test_gradcam_of_values_is_that_of_autodiff_through_the_model():
    queries = jnp.asarray(embeddings(IMAGES, seed=2))
    cases = [
        (classifier(), first_minus_square, first_minus_square),
        (classifier(), ("difference", 1, [0, 2, 2]), lambda y: y[:, 1] - y[[0, 1, 2], [0, 2, 2]]),
        (classifier(), ("probability", 2), lambda y: jax.nn.softmax(y)[:, 2]),
        (backbone(), queries, lambda y: cosine(y, queries)),
        (backbone(), square_minus_first, square_minus_first),
    ]
    for model, target, value in cases:
        images = images_for(model, IMAGES)
        attention, gradient = gradient_at_last_attention(model, images, value)
        expected = np.asarray(gradcam(attention, gradient)).reshape(IMAGES, 2, 3)
        assert_close(explained(target, model=model), expected)


@pytest.mark.slow
def test_a_function_s_map_by_hand():
    images = images_for(classifier(), IMAGES)
    logits, attention, pullback = last_block(classifier(), images, EXACT)
    start = np.stack([np.ones(IMAGES), -2 * np.asarray(logits)[:, 1], np.zeros(IMAGES)], 1)
    expected = gradcam(attention, pullback(jnp.asarray(start))).reshape(IMAGES, 2, 3)
    assert_close(explained(first_minus_square), np.asarray(expected))


@pytest.mark.parametrize("method", each_method())
@pytest.mark.slow
def test_a_class_is_explained_alike_however_it_is_given(method):
    images, classes = images_for(classifier(), IMAGES), [2, 0, 1]
    _, expected = vitx.explain(classifier(), images, classes, method)
    np.testing.assert_array_equal(explained(classes, method), expected)
    both = explained(np.stack([classes, classes], 1), method)
    np.testing.assert_allclose(both[:, 1], expected, rtol=1e-9, atol=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lrp", "partial_lrp", "transformer_attribution"])
def test_relevance_starts_at_the_gradient(method):
    """LRP is linear in its start; attribution's relevance starts at the positive part, since the sum may be 0."""
    both = [
        np.stack([explained(c, method), explained(("difference", c, 2), method)]) for c in (0, 1)
    ]
    other = explained(2, method)
    for alone, difference in both:
        if method == "lrp":
            assert_close(difference, alone - other)
        else:
            assert np.abs(difference).max() > 1e-3 * np.abs(alone).max()
    assert np.all(np.isfinite(explained(("probability", 1), method)))


@pytest.mark.slow
def test_attribution_of_a_difference_is_no_rounding():
    """Of a start that sums to 0 the normalised adds would leave about 1e-16 of a class's map."""
    model, images = classifier(), images_for(classifier(), IMAGES)
    found = explained(("difference", 0, 1), "transformer_attribution")
    with jax.enable_x64(False):
        single = jax.tree.map(lambda x: x.astype(jnp.float32), model)
        _, maps = vitx.explain(single, images.astype(jnp.float32), target=("difference", 0, 1))
    np.testing.assert_allclose(maps, found, rtol=0, atol=1e-3 * np.abs(found).max())
    swapped = explained(("difference", 1, 0), "transformer_attribution")
    assert np.abs(swapped - found).max() > 1e-2 * np.abs(found).max()


@pytest.mark.parametrize(
    "method", each_method([m for m in CLASS_TOKEN_METHODS if m not in with_classes])
)
def test_maps_that_depend_on_no_class_depend_on_no_target(method):
    expected = explained(0, method)
    for target in (first_minus_square, ("difference", 0, 1), ("probability", [1, 2, 0])):
        np.testing.assert_array_equal(explained(target, method), expected)
    np.testing.assert_array_equal(
        explained(("difference", [[0, 1]] * 3, 2), method), np.stack([expected] * 2, 1)
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gradcam", "transformer_attribution"])
def test_an_image_s_map_does_not_depend_on_its_companions(method):
    for model, target in (
        (backbone(), embeddings(IMAGES)),
        (backbone(), embeddings(2)),
        (classifier(), ("probability", [0, 1, 2])),
        (classifier(), first_minus_square),
    ):
        images = images_for(model, IMAGES)
        others = (3 * images_for(model, IMAGES, seed=5)).at[1].set(images[1])
        _, found = vitx.explain(model, others, None, method, target=target)
        expected = explained(target, method, model)
        scale = np.abs(expected[1]).max()
        np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=1e-9 * scale)


def test_mixed_shapes_of_a_difference():
    expected = np.stack([explained(("difference", 2, b)) for b in ([0, 1, 0], [1, 1, 2])], 1)
    found = explained(("difference", 2, np.array([[0, 1], [1, 1], [0, 2]])))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)


def test_of_a_headless_model_the_output_is_returned():
    model = backbone()
    images = images_for(model, IMAGES)
    output, maps = vitx.explain(model, images, method="gradcam", target=embeddings())
    np.testing.assert_allclose(output, model(images), rtol=1e-9)
    assert maps.shape == (IMAGES, 2, 3)


@pytest.mark.slow
def test_a_classifier_is_compared_without_its_head():
    model = classifier()
    images = images_for(model, IMAGES)
    tokens, _ = model.encode(model.embed(model.features(images)))
    output, maps = vitx.explain(model, images, method="gradcam", target=embeddings())
    np.testing.assert_allclose(output, model.norm(tokens[:, 0]), rtol=1e-9)
    assert np.abs(maps).max() > 0
    alone = vitx.explain(model.without_head(), images, method="gradcam", target=embeddings())
    np.testing.assert_array_equal(alone[1], maps)


@pytest.mark.slow
@of_embeddings
def test_other_designs_are_compared(method):
    """Mean pooling after a projection: the output has another width than the tokens."""
    design = Design(pooling="mean", projection=7, registers=2)
    model = small_vit(depth=1, num_classes=0, design=design)
    images, query = images_for(model, IMAGES), np.arange(7.0) - 3
    output, maps = vitx.explain(model, images, method=method, target=query)
    assert output.shape == (IMAGES, 7) and maps.shape[0] == IMAGES
    assert np.all(np.isfinite(maps)) and np.abs(maps).max() > 0


# What is compiled.


def test_only_another_kind_or_function_compiles():
    explain_again = Partial(lambda w, y: y @ w, jnp.ones(3))
    pairs = [
        (classifier(), 1, np.array([0, 2, 1])),
        (classifier(), ("difference", 0, 1), ("difference", [2, 1, 0], 0)),
        (classifier(), ("probability", 0), ("probability", np.array([1, 1, 2]))),
        (classifier(), first_minus_square, first_minus_square),
        (classifier(), explain_again, Partial(explain_again.func, jnp.arange(3.0))),
        (backbone(), embeddings(2), jnp.asarray(embeddings(1, 2, seed=1))),
        (backbone(), embeddings(), embeddings(IMAGES, seed=1)),
    ]
    for model, first, second in pairs:
        explained(first, "raw_attention", model)
        before = module._explain._cache_size()
        explained(second, "raw_attention", model)
        assert module._explain._cache_size() == before, first


def test_there_is_one_forward():
    def products(target, model):
        parsed = targets.parse(None, target, IMAGES, model.num_classes)
        lowered = module._explain.lower(
            model, images_for(model, IMAGES), parsed, "gradcam", 0, "published", 1, "fast"
        )
        return lowered.as_text().count("stablehlo.dot_general")

    one = products(0, classifier())
    for target in (("difference", 0, 1), ("probability", 0), first_minus_square):
        assert products(target, classifier()) == one
    # A head, and its transposed product, less.
    assert products(embeddings(4), backbone()) == one - 2


def test_targets_may_be_traced():
    model = classifier()
    images = images_for(model, IMAGES)

    def difference(a, b):
        return vitx.explain(model, images, method="gradcam", target=("difference", a, b))[1]

    def weighted(w):
        return vitx.explain(model, images, method="gradcam", target=lambda y: y @ w)[1]

    b = jnp.array([0, 1, 1])
    expected = explained(("difference", 2, [0, 1, 1]))
    assert_close(np.asarray(jax.jit(difference)(2, b)), expected)
    weights = jnp.array([1.0, 0.0, -1.0])
    assert_close(np.asarray(jax.jit(weighted)(weights)), explained(("difference", 0, 2)))

    def similar(queries):
        images = images_for(backbone(), IMAGES)
        return vitx.explain(backbone(), images, method="gradcam", target=queries)[1]

    queries = jnp.asarray(embeddings(2))
    assert_close(np.asarray(jax.jit(similar)(queries)), explained(queries, model=backbone()))


# Errors.

FORMS = "target must be an int, ints .* or a function, not "
ZERO = np.eye(2, WIDTH) - np.eye(2, WIDTH)[[0]]
UNNAMED = "the names of the model's classes are not known: give numbers instead of 'cat'"
HEADED = {
    "give classes or target, not both": {"classes": [0, 1, 2], "target": 1},
    re.escape("target must be in [0, 3), found 3 to 3"): {"target": 3},
    re.escape("target must be in [0, 3), found -1 to 2"): {"target": [0, 2, -1]},
    re.escape("target must be an int, (3,) or (3, K), not (2,)"): {"target": [0, 1]},
    re.escape("target must be an int, (3,) or (3, K), not (3, 0)"): {
        "target": np.zeros((3, 0), int)
    },
    UNNAMED: {"target": "cat"},
    FORMS + "True": {"target": True},
    FORMS + r"array\(None, dtype=object\)": {"target": np.array(None)},
    FORMS + r"\[\[1\], \[1, 2\], \[0\]\]": {"target": [[1], [1, 2], [0]]},
    FORMS + r"\('similarity', 1\)": {"target": ("similarity", 1)},
    FORMS + r"\('difference', 1\)": {"target": ("difference", 1)},
    FORMS + r"\('probability', 1, 2\)": {"target": ("probability", 1, 2)},
    re.escape("target[2] must be in [0, 3), found 5 to 5"): {"target": ("difference", 0, 5)},
    re.escape("target[1] must be integers, not float64"): {"target": ("difference", 0.5, 1)},
    UNNAMED + ", or set model.class_names": {"target": ("probability", "cat")},
    re.escape("target[1] must be an int, (3,) or (3, K), not (4,)"): {
        "target": ("probability", [0] * 4)
    },
    re.escape("target[1] and target[2] must have one shape, not (3,) and (3, 2)"): {
        "target": ("difference", [0, 1, 2], [[0, 1]] * 3)
    },
    r"target must return floats \(3,\), a value of each image, not float64 \(3, 3\)": {
        "target": lambda y: y
    },
    r"target must return floats \(3,\), a value of each image, not float64 \(\)": {
        "target": lambda y: y.sum()
    },
    r"target must return floats \(3,\), a value of each image, not int64 \(3,\)": {
        "target": lambda y: y.argmax(-1)
    },
    r"target must return floats \(3,\), a value of each image, not a tuple": {
        "target": lambda y: (y, y)
    },
}
HEADLESS = {
    r"the model has no classes.*give an embedding or a function as target.*num_classes=\)": [
        {},
        {"classes": [0, 1, 2]},
        {"target": 0},
        {"target": ("probability", 0)},
        {"target": ("difference", 0, 1)},
    ],
    r"target must be an embedding of 12 channels, as the model's output, not 5": [
        {"target": np.ones((IMAGES, 5))},
        {"target": np.ones(5)},
    ],
    r"target must be an embedding \(D,\), \(3, D\).*, not \(2, 2, 12\)": [
        {"target": embeddings(2, 2)}
    ],
    r"target must be an embedding .*, not \(0, 12\)": [{"target": embeddings(0)}],
    r"target must be an embedding .*, not \(\)": [{"target": 0.5}],
    r"target must be an embedding .*, not \(1, 1, 1, 12\)": [{"target": embeddings(1, 1, 1)}],
    "target has an embedding that is zero or not finite": [
        {"target": ZERO},
        {"target": np.full(WIDTH, np.nan)},
        {"target": np.full(WIDTH, np.inf)},
    ],
}


@pytest.mark.parametrize("message", HEADED)
def test_wrong_targets_are_named(message):
    model = classifier()
    with pytest.raises(ValueError, match=f"^{message}"):
        vitx.explain(model, images_for(model, IMAGES), method="raw_attention", **HEADED[message])


@pytest.mark.parametrize("message", HEADLESS)
def test_wrong_targets_of_a_headless_model_are_named(message):
    model = backbone()
    for given_ in HEADLESS[message]:
        with pytest.raises(ValueError, match=f"^{message}"):
            vitx.explain(model, images_for(model, IMAGES), method="raw_attention", **given_)


def test_a_function_that_cannot_be_hashed_is_named():
    class Unhashable:
        __hash__ = None

        def __call__(self, y):
            return y[:, 0]

    with pytest.raises(ValueError, match=r"^target must be a function that can be hashed"):
        explained(Unhashable())
