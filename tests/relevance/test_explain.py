"""Explanations: against separate passes and NumPy, batches and classes, traces, work, errors."""

import gc
import re
import weakref
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial

import vitx
from tests.small_models import (
    CLASS_TOKEN_METHODS,
    USUAL_METHODS,
    each_method,
    images_for,
    small_hybrid,
    small_vit,
)
from vitx.relevance import explain as module
from vitx.relevance import methods, rulesets, targets
from vitx.relevance.checks import RULES
from vitx.relevance.registry import REGISTRY
from vitx.relevance.rulesets import CHEFER, EXACT

# Nearly every test compiles a model.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("float64")]
CLASSES = np.array([[0, 2], [1, 1], [2, 0]])
IMAGES, GRID, PIXELS = 3, (2, 3), (8, 12)
by_class = pytest.mark.parametrize(
    "method", each_method([m for m in CLASS_TOKEN_METHODS if REGISTRY[m].by_class])
)
RULES_OF_PIXELS = ("lrp", "attn_lrp", "attn_lrp_gamma", "cp_lrp")
every_method = pytest.mark.parametrize("method", each_method())


@cache
def the_model():
    """One block, which compiles fast."""
    return small_vit(depth=1)


def shallow_hybrid():
    model = small_hybrid()
    model.blocks = nnx.List(model.blocks[:1])
    return model


@cache
def explained(method):
    """Logits and maps of `CLASSES` on three images."""
    model = the_model()
    logits, maps = vitx.explain(model, images_for(model, IMAGES), CLASSES, method)
    return np.asarray(logits), np.asarray(maps)


def assert_maps_equal(found, expected, tolerance=1e-9):
    assert found.shape == expected.shape
    atol = tolerance * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


# What the maps are.


@partial(jax.jit, static_argnums=2)
def observed(model, images, ops, hot):
    """Attention and its cotangent (B, H, N, N) in every block, with no queries left out."""
    tokens = model.embed(model.features(images))
    count = tokens.shape[1]
    probes = [jnp.zeros((len(images), b.attn.heads, count, count)) for b in model.blocks]

    def forward(probes):
        x, attentions = tokens, []
        for block, probe in zip(model.blocks, probes, strict=True):
            x, attention = block(x, ops, probe)
            attentions.append(attention)
        return model.classify(x, ops), attentions

    logits, pullback, attentions = jax.vjp(forward, probes, has_aux=True)
    return logits, attentions, pullback(hot)[0]


def row_of_product(matrices, normalised):
    """Class token's row of the product of (I + A), by whole matrices, without its own column."""
    out = []
    for image in range(IMAGES):
        product = np.eye(7)
        for matrix in matrices:
            layer = np.eye(7) + matrix[image]
            if normalised:
                layer /= layer.sum(-1, keepdims=True)
            product = layer @ product
        out.append(product[0, 1:].reshape(GRID))
    return np.array(out)


@pytest.mark.slow
def test_maps_are_those_of_two_separate_passes():
    model = small_vit(depth=2)
    images, classes = images_for(model, IMAGES), CLASSES[:, 0]
    hot = jnp.eye(3)[classes]
    logits, attentions, gradients = observed(model, images, EXACT, hot)
    _, _, relevances = observed(model, images, CHEFER, hot)
    attentions, gradients, relevances = (
        [np.asarray(x) for x in xs] for xs in (attentions, gradients, relevances)
    )
    pairs = zip(gradients, relevances, strict=True)
    attributions = [np.maximum(g * r, 0).mean(1) for g, r in pairs]
    found, maps = vitx.explain(model, images, classes)
    np.testing.assert_allclose(found, logits, rtol=1e-12)
    assert_maps_equal(maps, row_of_product(attributions, normalised=False))

    means = [a.mean(1) for a in attentions]
    for start_layer in (0, 1):
        _, maps = vitx.explain(model, images, classes, "rollout", start_layer)
        assert_maps_equal(maps, row_of_product(means[start_layer:], normalised=True))


@pytest.mark.slow
def test_maps_of_the_last_block():
    images, classes = images_for(the_model(), IMAGES), CLASSES[:, 0]
    _, attentions, gradients = observed(the_model(), images, EXACT, jnp.eye(3)[classes])
    attention, gradient = (np.asarray(x[0])[:, :, 0, 1:] for x in (attentions, gradients))
    raw = attention.mean(1).reshape(IMAGES, *GRID)
    assert_maps_equal(explained("raw_attention")[1][:, 0], raw)
    cam = np.maximum((attention * gradient.mean(-1, keepdims=True)).mean(1), 0)
    assert_maps_equal(explained("gradcam")[1][:, 0], cam.reshape(IMAGES, *GRID))
    _, _, relevances = observed(the_model(), images, rulesets.LRP, jnp.eye(3)[classes])
    partial_lrp = np.maximum(np.asarray(relevances[0])[:, :, 0, 1:], 0).mean(1)
    assert_maps_equal(explained("partial_lrp")[1][:, 0], partial_lrp.reshape(IMAGES, *GRID))


@pytest.mark.parametrize("make", [the_model, shallow_hybrid])
@every_method
@pytest.mark.parametrize("rules", RULES)
def test_shapes(make, method, rules):
    model = make()
    images = images_for(model, 2)
    rules_end_at_the_stem = model.stem is not None and method in RULES_OF_PIXELS
    of_pixels = REGISTRY[method].pixels and not rules_end_at_the_stem
    size = images.shape[1:3] if of_pixels else model.grid
    for classes, expected in ((None, ()), ((2,), ()), ((2, 3), (3,)), ((2, 1), (1,))):
        chosen = None if classes is None else np.ones(classes, np.int32)
        logits, maps = jax.eval_shape(
            lambda m, x, c=chosen: vitx.explain(m, x, c, method, rules=rules), model, images
        )
        assert logits.shape == (2, 3) and logits.dtype == jnp.float64
        assert maps.shape == (2, *expected, *size) and maps.dtype == jnp.float64


@pytest.mark.slow
def test_logits_are_the_model_s_and_maps_are_finite():
    expected = jax.jit(lambda m, x: m(x))(the_model(), images_for(the_model(), IMAGES))
    for method in USUAL_METHODS:
        logits, maps = explained(method)
        np.testing.assert_allclose(logits, expected, rtol=1e-12)
        assert np.all(np.isfinite(maps)) and np.abs(maps).max() > 0
        assert maps.shape == (IMAGES, 2, *(PIXELS if REGISTRY[method].pixels else GRID))


def test_stable_rules_change_the_maps_a_little():
    model = the_model()
    images = images_for(model, IMAGES)
    _, published = explained("partial_lrp")
    _, stable = vitx.explain(model, images, CLASSES, "partial_lrp", rules="stable")
    assert np.abs(stable - published).max() > 1e-6 * np.abs(published).max()
    assert np.corrcoef(stable.ravel(), published.ravel())[0, 1] > 0.9


# Images and classes.


@every_method
def test_an_image_s_maps_do_not_depend_on_its_companions(method):
    model = the_model()
    others = images_for(model, IMAGES, seed=5).at[1].set(images_for(model, IMAGES)[1])
    logits, maps = vitx.explain(model, 3 * others.at[1].divide(3), CLASSES, method)
    assert_maps_equal(maps[1], explained(method)[1][1])
    np.testing.assert_allclose(logits[1], explained(method)[0][1], rtol=1e-12)


@by_class
def test_many_classes_in_one_call_are_as_many_calls(method):
    model = the_model()
    images = images_for(model, IMAGES)
    for k in range(CLASSES.shape[1]):
        _, maps = vitx.explain(model, images, CLASSES[:, k], method)
        assert_maps_equal(maps, explained(method)[1][:, k])


def test_image_1_has_one_class_twice():
    for method in USUAL_METHODS:
        _, maps = explained(method)
        np.testing.assert_array_equal(maps[1, 0], maps[1, 1])
        same = np.array_equal(maps[0, 0], maps[0, 1])
        assert same == (not REGISTRY[method].by_class)


@pytest.mark.parametrize("class_chunk", [2, 3, 9])
def test_chunks_of_classes_make_no_difference(class_chunk):
    model = the_model()
    images = images_for(model, IMAGES)
    classes = np.tile([0, 1, 2], (IMAGES, 1))
    _, expected = vitx.explain(model, images, classes, "gradcam")
    _, maps = vitx.explain(model, images, classes, "gradcam", class_chunk=class_chunk)
    assert_maps_equal(maps, expected, 1e-12)


def test_without_classes_the_predicted_one_is_explained():
    model, method = the_model(), "gradcam"
    images = images_for(model, IMAGES)
    logits, maps = vitx.explain(model, images, method=method)
    _, expected = vitx.explain(model, images, logits.argmax(-1), method)
    assert_maps_equal(maps, expected, 1e-12)


@by_class
def test_a_padding_class_gives_zeros(method):
    """Traced classes are not checked: -1 fills up an image's row of classes."""
    model = the_model()
    padded = jnp.asarray(np.where(CLASSES == 0, -1, CLASSES))
    _, maps = module._explain(
        model,
        images_for(model, IMAGES),
        Partial(targets.of_classes, padded),
        *(method, 0, "published", 1, "fast"),
    )
    expected = np.where((CLASSES == 0)[..., None, None], 0, explained(method)[1])
    assert_maps_equal(maps, expected, 1e-12)


# Inside other programs, and what is compiled.


@pytest.mark.parametrize("constant", [np.asarray, jnp.asarray, np.ndarray.tolist])
def test_can_be_traced_with_classes_from_outside(constant):
    classes = constant(CLASSES[:, 0])
    _, maps = jax.eval_shape(
        lambda m, x: vitx.explain(m, x, classes, "gradcam"),
        the_model(),
        images_for(the_model(), IMAGES),
    )
    assert maps.shape == (IMAGES, *GRID)


def test_a_second_call_traces_nothing():
    explained("raw_attention")
    model = the_model()
    before = module._explain._cache_size()
    images = images_for(model, IMAGES, seed=7)
    vitx.explain(model, images, CLASSES, "raw_attention")
    vitx.explain(model, np.asarray(images), 2 - CLASSES, "raw_attention", 0, "published")
    another = jax.tree.map(lambda x: 2 * x, model)
    vitx.explain(another, images, jnp.asarray(CLASSES), "raw_attention")
    assert module._explain._cache_size() == before
    vitx.explain(model, images[:2], CLASSES[:2], "raw_attention")
    assert module._explain._cache_size() == before + 1


def test_no_rule_set_is_built_in_a_call(monkeypatch):
    def forbidden(*_):
        raise AssertionError("a rule set was built inside a call")

    for name in ("with_rule", "paired", "probing", "_rule_set"):
        monkeypatch.setattr(rulesets, name, forbidden)
    model = small_vit(depth=1, hidden=8)
    for method in USUAL_METHODS:
        for rules in RULES:
            jax.eval_shape(
                lambda m, x, a=method, b=rules: vitx.explain(m, x, None, a, rules=b),
                model,
                images_for(model, 5),
            )


def program(method, classes=None, start_layer=0, model=None, class_chunk=1):
    """The program handed to the compiler, without dead code."""
    model = model or small_vit(depth=2)
    images = images_for(model, IMAGES)
    target = targets.parse(classes, None, IMAGES, 3)
    lowered = module._explain.lower(
        model, images, target, method, start_layer, "published", class_chunk, "fast"
    )
    return lowered.as_text()


# By hand, for two blocks. Forward: patch embedding and head, and in a block query, key, value,
# attention scores, applying attention, projection and two MLP layers: 8. Passed backward, a linear layer costs 4 more
# (gradient, |x||w|, two transposed), and a product of two activations 4 (two gradients, two
# relevances). The lowest block that is looked at is passed only down to its attention:
# projection and MLP 3 * 4, applying attention 2. The class token's row takes one product a block.
FORWARD = 2 + 2 * 8
WHOLE_BLOCK, LOWEST_BLOCK, HEAD = 6 * 4 + 2 * 4, 3 * 4 + 2, 4
DOTS = {
    ("transformer_attribution", 0): FORWARD + HEAD + WHOLE_BLOCK + LOWEST_BLOCK + 2,
    ("transformer_attribution", 1): FORWARD + HEAD + LOWEST_BLOCK + 1,
    ("rollout", 0): FORWARD + 2,
    ("raw_attention", 0): FORWARD,
    ("gradcam", 0): FORWARD
    + 1
    + 3
    + 1,  # gradients alone: head, projection and MLP, applying attention
}


@pytest.mark.parametrize("method, start_layer", DOTS)
def test_the_program_has_one_forward(method, start_layer):
    text = program(method, None, start_layer)
    assert text.count("stablehlo.dot_general") == DOTS[method, start_layer]


@pytest.mark.parametrize(("class_chunk", "loops"), [(1, 1), (2, 0)])
def test_many_classes_share_the_forward(class_chunk, loops):
    text = program("transformer_attribution", jnp.asarray(CLASSES), class_chunk=class_chunk)
    assert text.count("stablehlo.dot_general") == DOTS["transformer_attribution", 0]
    assert text.count("stablehlo.while") == loops


@pytest.mark.parametrize("make", [the_model, shallow_hybrid])
@every_method
def test_every_product_has_full_precision(make, method):
    products = re.findall(
        r"stablehlo\.(?:dot_general|convolution).*", program(method, model=make())
    )
    assert len(products) >= 2 + 8
    # Backends with reduced float32 products use them by default.
    assert [p for p in products if p.count("HIGHEST") != 2] == []


# Memory.


@pytest.mark.parametrize(
    ("method", "start_layer", "rules"),
    [
        ("transformer_attribution", 0, "published"),
        pytest.param("transformer_attribution", 1, "stable", marks=pytest.mark.exhaustive),
        ("transformer_attribution", 2, "published"),
        ("lrp", 0, "published"),
    ],
)
def test_lean_maps_are_the_fast_ones(method, start_layer, rules):
    model = small_vit(depth=3)
    images, classes = images_for(model, IMAGES), CLASSES[:, 0]
    found, expected = (
        vitx.explain(model, images, classes, method, start_layer, rules, memory=memory)
        for memory in ("lean", "fast")
    )
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-12)
    assert_maps_equal(found[1], expected[1])


@pytest.mark.exhaustive
def test_lean_takes_less_memory_and_auto_chooses_it_for_many_tokens():
    def temporaries(memory):
        model = nnx.eval_shape(lambda: small_vit(depth=6, size=(80, 80)))  # 401 tokens
        images = jax.ShapeDtypeStruct((2, 80, 80, 3), np.float64)
        run = jax.jit(lambda model, images: vitx.explain(model, images, memory=memory)[1])
        return run.lower(model, images).compile().memory_analysis().temp_size_in_bytes

    fast, lean = temporaries("fast"), temporaries("lean")
    assert lean < 0.5 * fast
    assert temporaries("auto") == fast

    def is_lean(name, size):
        model = nnx.eval_shape(lambda: vitx.create(name, image_size=size))
        return module._kept_bytes(model) > module._LEAN_BYTES

    assert not is_lean("vit_base_patch16_224", 224)
    assert is_lean("vit_base_r50_s16_224", 448)


def test_when_memory_ends_the_error_says_what_takes_less(monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr(module, "_explain", full)
    with pytest.raises(MemoryError, match='3 images at 8 x 12: give memory="lean"'):
        vitx.explain(the_model(), images_for(the_model(), IMAGES))


def test_an_explained_model_is_not_kept():
    model = small_vit()
    images = images_for(model, 1)
    kept = weakref.ref(model)
    vitx.explain(model, images)
    with jax.checking_leaks():
        jax.jit(lambda model, images: vitx.explain(model, images)[1])(model, images)
    del model
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize("tokens", [10, 145, 197])
def test_what_is_not_finite_stays_so(tokens):
    """XLA's maximum on a CPU loses NaN where a loop is unrolled: not at every size."""
    array = np.ones((2, 12, tokens), np.float32)
    array[1, 3, 5] = np.nan
    for method in (methods.partial_lrp, lambda x: methods.gradcam(x, jnp.ones_like(x))):
        assert jnp.isnan(jax.jit(method)(array)).sum() == 1


def test_classes_of_any_width_are_the_same_classes():
    """A one-hot row of 8-bit classes wraps where there are more than 256."""
    model = small_vit(depth=1, num_classes=600)
    images = images_for(model, 2)
    _, expected = vitx.explain(model, images, np.array([5, 88], np.int32), "gradcam")
    for dtype in (np.uint8, np.int8, np.uint16, np.int64):
        _, maps = vitx.explain(model, images, np.array([5, 88], dtype), "gradcam")
        np.testing.assert_array_equal(maps, expected)


LEAN_METHODS = ("lrp", "transformer_attribution")


@pytest.mark.parametrize(
    ("method", "memory"), [(m, "fast") for m in USUAL_METHODS] + [(m, "lean") for m in LEAN_METHODS]
)
def test_logits_carry_the_gradient_of_the_model(method, memory):
    model = small_vit()
    images = images_for(model, 2)

    def loss(call):
        return lambda model, images: jnp.square(call(model, images)).sum()

    explained = loss(
        lambda model, images: vitx.explain(model, images, None, method, memory=memory)[0]
    )
    found = jax.grad(explained, argnums=(0, 1))(model, images)
    expected = jax.grad(loss(lambda model, images: model(images)), argnums=(0, 1))(model, images)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9 * np.abs(other).max())


@by_class
def test_maps_under_rules_are_cut_off(method):
    """Differentiating a rule gives no gradient of the map, and so none is given; gradients have theirs."""
    under_rules = (*RULES_OF_PIXELS, "partial_lrp", "transformer_attribution", "libragrad")
    model = the_model()
    gradient = jax.grad(lambda x: vitx.explain(model, x, [0], method)[1].sum())(
        images_for(model, 1)
    )
    assert bool(gradient.any()) == (method not in under_rules)


@pytest.mark.parametrize("method", ["raw_attention", "gradcam"])
def test_a_call_inside_another_jit_may_close_over_arrays(method):
    model = the_model()
    images, classes = images_for(model, IMAGES), jnp.asarray(CLASSES)
    _, expected = explained(method)
    found = {
        "images and model": jax.jit(lambda: vitx.explain(model, images, classes, method)[1])(),
        "traced classes": jax.jit(lambda c: vitx.explain(model, images, c, method)[1])(classes),
        "map": jax.lax.map(lambda c: vitx.explain(model, images, c, method)[1], classes.T).swapaxes(
            0, 1
        ),
    }
    for where, maps in found.items():
        np.testing.assert_allclose(maps, expected, rtol=1e-9, atol=1e-12, err_msg=where)


def test_a_model_without_classes_is_named():
    with pytest.raises(
        ValueError, match=r"^a Linear has no classes to explain: give a classifier$"
    ):
        vitx.explain(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), np.zeros((1, 8, 12, 3)))


# Bad input.

BAD = {
    "images must be normalised floats, not object": {"images": np.zeros((3, 8, 12, 3), object)},
    "high_norm must be one of keep, median, not 'mean'": {"high_norm": "mean"},
    "memory must be one of auto, fast, lean, not 'small'": {"memory": "small"},
    "method must be one of rollout, .*transformer_attribution, .*centre, not 'saliency'": {
        "method": "saliency"
    },
    "rules must be one of published, stable, not 'exact'": {"rules": "exact"},
    r"start_layer must be an int in \[0, 1\), not 1": {"start_layer": 1},
    r"start_layer must be an int in \[0, 1\), not -1": {"start_layer": -1},
    r"start_layer must be an int in \[0, 1\), not 0.5": {"start_layer": 0.5},
    "class_chunk must be an int of at least 1, not 0": {"class_chunk": 0},
    "class_chunk must be an int of at least 1, not 1.5": {"class_chunk": 1.5},
    "class_chunk must be an int of at least 1, not True": {"class_chunk": True},
    r"classes must be in \[0, 3\), found 4294967297 to 4294967297": {
        "classes": np.full(3, 2**32 + 1)
    },
    r"images must be \(B, 8, 12, 3\), B > 0, not \(3, 12, 8, 3\)": {"images": (3, 12, 8, 3)},
    r"images must be \(B, 8, 12, 3\), B > 0, not \(8, 12, 3\)": {"images": (8, 12, 3)},
    r"images must be \(B, 8, 12, 3\), B > 0, not \(0, 8, 12, 3\)": {"images": (0, 8, 12, 3)},
    r"images must be \(B, 8, 12, 3\), B > 0, not \(3, 8, 12, 1\)": {"images": (3, 8, 12, 1)},
    r"images\[2\] has a value that is not finite: leave it out": {
        "images": np.where(np.arange(3)[:, None, None, None] == 2, np.nan, np.zeros((3, 8, 12, 3)))
    },
    "images must be normalised floats, not uint8": {"images": np.zeros((3, 8, 12, 3), np.uint8)},
    r"classes must be \(3,\) or \(3, K\), not \(\)": {"classes": 1},
    r"classes must be \(3,\) or \(3, K\), not \(2,\)": {"classes": [0, 1]},
    r"classes must be \(3,\) or \(3, K\), not \(3, 0\)": {"classes": np.zeros((3, 0), int)},
    r"classes must be \(3,\) or \(3, K\), not \(3, 1, 1\)": {"classes": np.zeros((3, 1, 1), int)},
    "classes must be integers, not float64": {"classes": np.zeros(3)},
    "classes must be integers, not bool": {"classes": np.zeros(3, bool)},
    r"classes must be in \[0, 3\), found 0 to 3": {"classes": [0, 3, 1]},
    r"classes must be in \[0, 3\), found -1 to 1": {"classes": [0, -1, 1]},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    given = {"images": (3, 8, 12, 3), "classes": [0, 1, 2], **BAD[message]}
    if isinstance(given["images"], tuple):
        given["images"] = np.zeros(given["images"])
    with pytest.raises(ValueError, match=f"^{message}$"):
        vitx.explain(the_model(), **given)


def test_methods_are_the_public_ones():
    assert methods.TABLE_METHODS == (
        "rollout",
        "raw_attention",
        "gradcam",
        "lrp",
        "partial_lrp",
        "transformer_attribution",
    )
    assert (
        *methods.TABLE_METHODS,
        "generic_attention",
        "attention_gradient",
        "legrad",
        "attcat",
        "input_x_gradient",
        "integrated_gradients",
        "smoothgrad",
        "beyond_intuition_head",
        "beyond_intuition_token",
        "cam",
        "attn_lrp",
        "attn_lrp_gamma",
        "cp_lrp",
        "libragrad",
        "rise",
        "random",
        "centre",
    ) == vitx.METHODS
