"""Methods since 2021 in independent forms; the published code's numbers are in tests/test_golden.py."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vitx
from tests.small_models import CLASS_TOKEN_METHODS, images_for, small_family, small_vit
from vitx.relevance import methods
from vitx.relevance.gradient_rules import ATTN_LRP, CP_LRP, with_gamma
from vitx.relevance.model_agnostic import _mask
from vitx.relevance.registry import REGISTRY
from vitx.relevance.rulesets import EXACT

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("float64")]
CLASSES = np.array([[0, 2], [1, 1]])


@cache
def model_and_images():
    model = small_vit()
    return model, images_for(model, 2)


def maps_of(method, **options):
    model, images = model_and_images()
    return np.asarray(vitx.explain(model, images, CLASSES[:, 0], method, options=options)[1])


def value(images):
    model, _ = model_and_images()
    return model(images, EXACT)[jnp.arange(2), CLASSES[:, 0]].sum()


def test_input_times_gradient_is_that():
    _, images = model_and_images()
    gradient = jax.grad(value)(images)
    np.testing.assert_allclose(maps_of("input_x_gradient"), (images * gradient).sum(-1), rtol=1e-9)


def test_integrated_gradients_add_up_to_the_change_of_the_value():
    model, images = model_and_images()
    total = maps_of("integrated_gradients", steps=60).sum((1, 2))
    rows = np.arange(2)
    change = (model(images) - model(jnp.zeros_like(images)))[rows, CLASSES[:, 0]]
    np.testing.assert_allclose(total, change, rtol=1e-3)
    assert np.abs(maps_of("integrated_gradients") - maps_of("input_x_gradient")).max() > 0


def test_smoothgrad_without_noise_is_the_gradient():
    _, images = model_and_images()
    expected = jax.grad(value)(images).sum(-1)
    np.testing.assert_allclose(maps_of("smoothgrad", noise=0.0, samples=2), expected, rtol=1e-9)
    noisy, other = (maps_of("smoothgrad", seed=seed, samples=3) for seed in (0, 1))
    assert np.abs(noisy - other).max() > 0


def test_generic_attention_and_its_last_block_by_whole_matrices():
    model, images = model_and_images()
    tokens = model.embed(model.features(images))
    probes = [jnp.zeros((2, *shape)) for shape in model.attention_shapes()]

    def forward(probes):
        encoded, attentions = model.encode(tokens, EXACT, probes)
        return model.classify(encoded)[jnp.arange(2), CLASSES[:, 0]].sum(), attentions

    gradients, attentions = jax.grad(forward, has_aux=True)(probes)
    matrices = [
        np.maximum(np.asarray(g) * np.asarray(a), 0).mean(1)
        for g, a in zip(gradients, attentions, strict=True)
    ]
    first, last = matrices
    row = np.eye(7)[None, :1] + last  # (2, 1, 7): the class token's
    expected = (row @ (np.eye(7) + first))[:, 0, 1:]
    np.testing.assert_allclose(maps_of("generic_attention").reshape(2, -1), expected, rtol=1e-9)
    np.testing.assert_allclose(
        maps_of("attention_gradient").reshape(2, -1), last[:, 0, 1:], rtol=1e-9
    )


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.05, 0.25, 3.0]))
def test_the_gamma_rule_favours_contributions_of_the_output_s_sign(seed, gamma):
    """By its definition: z_ij + gamma max(0, s_j z_ij) s_j over their sum, the bias being an input of value 1."""
    generator = np.random.default_rng(seed)
    x, w, b, g = (generator.standard_normal(s) for s in ((2, 3), (3, 4), (4,), (2, 4)))
    ops = with_gamma(EXACT, gamma, 0.0)
    _, pullback = jax.vjp(lambda v: ops.affine(v, jnp.asarray(w), jnp.asarray(b)), jnp.asarray(x))
    found = np.asarray(pullback(jnp.asarray(g))[0]) * x
    expected = np.zeros_like(x)
    for n in range(2):
        for j in range(4):
            parts = np.append(x[n] * w[:, j], b[j])
            z, sign = parts.sum(), np.sign(parts.sum())
            favoured = parts + gamma * sign * np.maximum(sign * parts, 0)
            share = favoured / (favoured.sum() + 1e-6 * sign)
            expected[n] += share[:3] * g[n, j] * z
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7 * np.abs(expected).max())


def test_rules_in_gradient_units_keep_the_values():
    model, images = model_and_images()
    expected = np.asarray(model(images, EXACT))
    for ops in (ATTN_LRP, CP_LRP, with_gamma(CP_LRP, 0.05, 0.25)):
        np.testing.assert_allclose(model(images, ops), expected, rtol=1e-13)


def test_rise_is_the_mean_of_masks_by_probability():
    model, images = model_and_images()
    found = maps_of("rise", masks=5, cells=3)
    keys = jax.random.split(jax.random.key(0), 5)
    masks = np.stack([_mask(key, (8, 12), 3, 0.5) for key in keys]).astype(np.float64)
    assert masks.min() >= 0 and masks.max() <= 1 and masks.std() > 0.1
    expected = np.zeros((2, 8, 12))
    for mask in masks:
        scores = jax.nn.softmax(model(images * mask[None, :, :, None]))
        expected += np.asarray(scores)[np.arange(2), CLASSES[:, 0]][:, None, None] * mask
    np.testing.assert_allclose(found, expected / 2.5, rtol=1e-9)


@pytest.mark.parametrize(
    ("method", "options"), [("smoothgrad", {"samples": 2}), ("rise", {"masks": 3})]
)
def test_maps_of_tokens_are_means_over_patches(method, options):
    pixels, tokens = (maps_of(method, **options, level=level) for level in ("pixels", "tokens"))
    grid = small_vit().grid
    cells = pixels.reshape(2, grid[0], 8 // grid[0], grid[1], 12 // grid[1])
    np.testing.assert_allclose(tokens, cells.mean((2, 4)), rtol=1e-12, atol=1e-15)


def test_controls_know_neither_model_nor_class():
    model, images = model_and_images()
    for method in ("random", "centre"):
        _, maps = vitx.explain(model, images, CLASSES, method)
        np.testing.assert_array_equal(maps[:, 0], maps[:, 1])
        _, alone = vitx.explain(model, images[1:], CLASSES[1:], method)
        np.testing.assert_array_equal(alone[0], maps[1])
    assert np.abs(maps_of("random") - maps_of("random", seed=1)).max() > 0
    assert np.ptp(maps_of("random"), 0).max() > 0  # images differ
    centre = maps_of("centre")[0]
    np.testing.assert_allclose(centre, centre[::-1, ::-1], rtol=1e-12)
    assert centre[0, 1] > centre[0, 0] and maps_of("centre", width=9.0).min() > 0.9


def test_float32_maps_are_those_in_float64():
    _, images = model_and_images()
    newer = [m for m in CLASS_TOKEN_METHODS if m not in methods.TABLE_METHODS]
    exact = {m: maps_of(m) for m in newer}
    with jax.enable_x64(False):
        low = small_vit()
        for method, expected in exact.items():
            _, maps = vitx.explain(low, np.asarray(images, np.float32), CLASSES[:, 0], method)
            assert np.corrcoef(maps.ravel(), expected.ravel())[0, 1] >= 0.9999, method


@pytest.mark.parametrize(
    ("method", "options", "what"),
    [
        ("gradcam", {"steps": 3}, "gradcam has no option 'steps'; it has none"),
        ("rise", {"mask": 3}, "rise has no option 'mask'; it has level, masks, cells, kept, seed"),
        ("rise", {"kept": 0.0}, r"rise's option kept must be a number in \[0.01, 0.99\], not 0.0"),
        ("beyond_intuition_head", {"steps": 1}, "option steps must be a whole number in "),
        ("random", {"seed": 2**70}, "option seed must be a whole number from 0 up"),
        ("random", [("seed", 3)], "options must map names to values"),
        ("rise", {"masks": 0}, "rise's option masks must be a whole number from 1 up, not 0"),
        ("rise", {"masks": 2.5}, "rise's option masks must be a whole number from 1 up"),
        ("rise", {"seed": -1}, "rise's option seed must be a whole number from 0 up, not -1"),
        ("attn_lrp_gamma", {"gamma": -0.1}, "option gamma must be a number from 0 up, not -0.1"),
        ("attn_lrp_gamma", {"gamma": float("nan")}, "option gamma must be a number from 0 up"),
        ("attn_lrp", {"level": "patches"}, "option level must be one of pixels, tokens"),
    ],
)
def test_wrong_options_are_refused(method, options, what):
    model, images = model_and_images()
    with pytest.raises(ValueError, match=what):
        vitx.explain(model, images, CLASSES[:, 0], method, options=options)


@pytest.mark.parametrize("method", ["libragrad", "rise"])
@pytest.mark.parametrize("target", [("probability", 1), ("difference", 0, 1), lambda y: y[:, 0]])
def test_methods_of_a_probability_explain_nothing_else(method, target):
    model, images = model_and_images()
    with pytest.raises(ValueError, match=f"{method} explains the probability of a class"):
        vitx.explain(model, images, method=method, target=target)


@pytest.mark.parametrize("family", ["vit", "mean", "class+mean", "distilled", "siglip"])
def test_attention_gradient_is_the_last_block_of_generic_attention(family):
    model = small_family(family)
    images, last = images_for(model, 2), len(model.blocks) - 1
    _, one = vitx.explain(model, images, CLASSES[:, 0], "attention_gradient")
    _, other = vitx.explain(model, images, CLASSES[:, 0], "generic_attention", last)
    np.testing.assert_allclose(one, other, rtol=1e-12)


def test_options_are_those_of_the_functions():
    assert REGISTRY["attn_lrp_gamma"].options == {
        "level": "pixels",
        "gamma": 0.05,
        "gamma_pixels": 0.25,
    }
    assert REGISTRY["integrated_gradients"].options == {"level": "pixels", "steps": 20}
