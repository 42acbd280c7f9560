"""Patch tokens of high norm: which they are, and the median of their neighbours in maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vitx
from tests.small_models import CLASS_TOKEN_METHODS, each_method, images_for, small_hybrid, small_vit
from vitx.models.design import Design
from vitx.relevance.outliers import (
    high_norm_tokens,
    neighbours_median,
    patch_norms,
)
from vitx.relevance.registry import REGISTRY

shapes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))
seeds = st.integers(0, 2**32 - 1)


def outlying(model, place=3, factor=100.0):
    """The model with a position whose token stands out in every image."""
    model.pos_embed.set_value(model.pos_embed[...].at[:, place].mul(factor))
    return model


def rotary():
    return small_vit(width=16, design=Design(registers=2, positions="none", rotary="dinov3"))


# Which tokens are of high norm.


@given(seeds, st.integers(0, 5), st.floats(1e-3, 1e3))
def test_planted_tokens_are_found_at_any_scale(seed, count, scale):
    random = np.random.default_rng(seed)
    norms = random.normal(50, 5, (2, 14, 14)).clip(30, 70)
    planted = np.zeros((2, 196), bool)
    for image in planted:
        image[random.choice(196, count, replace=False)] = True
    planted = planted.reshape(norms.shape)
    norms = scale * np.where(planted, random.uniform(200, 500, norms.shape), norms)
    found = high_norm_tokens(jnp.asarray(norms, jnp.float32))
    np.testing.assert_array_equal(found, planted)


def test_the_cut_off_by_hand():
    norms = jnp.array([[[1.0, 2.0, 3.0], [4.0, 5.0, 14.9]]])  # median 3.5, MAD 1.5
    assert not high_norm_tokens(norms, 10.0).any()
    np.testing.assert_array_equal(high_norm_tokens(norms, 7.5), norms == 14.9)
    np.testing.assert_array_equal(high_norm_tokens(norms, 0.5), norms > 4.25)
    level = jnp.ones((1, 2, 3)).at[0, 0, 0].set(2.01)  # MAD 0: a tenth of the median
    assert high_norm_tokens(level).sum() == 1 and not high_norm_tokens(level, 10.2).any()
    assert not high_norm_tokens(jnp.ones((1, 4, 4))).any()


def test_an_image_is_judged_by_itself():
    norms = jnp.stack([jnp.full((3, 3), 1.0), jnp.full((3, 3), 1000.0)])
    assert not high_norm_tokens(norms).any()


@pytest.mark.parametrize("make", [small_vit, lambda: small_vit(depth=1), rotary])
def test_norms_are_of_the_tokens_that_enter_the_last_block(make):
    model = make()
    images = images_for(model, 2)
    tokens = model.embed(model.features(images))
    for block in list(model.blocks)[:-1]:
        tokens = block(tokens, rotate=model.rotation())[0]
    below = model.below_last(model.embed(model.features(images)))
    np.testing.assert_allclose(below, tokens, rtol=1e-5, atol=1e-6)
    expected = np.sqrt((np.asarray(tokens)[:, model.prefix_tokens :] ** 2).sum(-1)).reshape(
        2, *model.grid
    )
    np.testing.assert_allclose(patch_norms(model, images), expected, rtol=1e-5)


# The median of the neighbours.


def by_loops(maps, mask):
    found = maps.copy()
    for *rest, row, column in np.argwhere(np.broadcast_to(mask, maps.shape)):
        own, seen = maps[tuple(rest)], ~np.broadcast_to(mask, maps.shape)[tuple(rest)]
        near = [
            own[r, c]
            for r in range(max(row - 1, 0), min(row + 2, own.shape[0]))
            for c in range(max(column - 1, 0), min(column + 2, own.shape[1]))
            if seen[r, c]
        ]
        if seen.any():
            found[(*rest, row, column)] = np.median(near or own[seen])
    return found


@given(shapes, seeds, st.integers(0, 3), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
def test_the_median_is_that_of_plain_loops(shape, seed, classes, share):
    random = np.random.default_rng(seed)
    mask = random.random(shape) < share
    maps = random.standard_normal(
        shape if not classes else (shape[0], classes, *shape[1:]), np.float32
    )
    found = neighbours_median(jnp.asarray(maps), jnp.asarray(mask))
    whole = mask if not classes else mask[:, None]
    np.testing.assert_allclose(found, by_loops(maps, whole), rtol=1e-6)
    unmasked = ~np.broadcast_to(whole, maps.shape)
    np.testing.assert_array_equal(np.asarray(found)[unmasked], maps[unmasked])


def test_what_is_not_finite_elsewhere_stays():
    maps = jnp.array([[[jnp.nan, 1.0, 2.0, 9.0]]])
    found = neighbours_median(maps, jnp.array([[[False, False, False, True]]]))
    np.testing.assert_array_equal(found, [[[np.nan, 1, 2, 2]]])


# In explain.


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", each_method([m for m in CLASS_TOKEN_METHODS if not REGISTRY[m].pixels])
)
def test_explain_puts_the_median_where_it_is_wanted(method):
    model = outlying(small_vit(size=(12, 12)))
    images, classes = images_for(model, 2), [[0, 1], [2, 0]]
    output, kept = vitx.explain(model, images, classes, method)
    same, smooth = vitx.explain(model, images, classes, method, high_norm="median")
    np.testing.assert_allclose(same, output, rtol=1e-5)
    mask = np.zeros((2, 3, 3), bool)
    mask[:, 0, 2] = True
    np.testing.assert_array_equal(high_norm_tokens(patch_norms(model, images)), mask)
    np.testing.assert_allclose(smooth, by_loops(np.asarray(kept), mask[:, None]), rtol=1e-4)
    assert np.abs(np.asarray(smooth - kept)[:, :, 0, 2]).max() > 0


def test_nothing_changes_without_such_tokens():
    model = small_vit(depth=1)
    images = images_for(model, 2)
    assert not high_norm_tokens(patch_norms(model, images)).any()
    maps = [
        vitx.explain(model, images, method="raw_attention", high_norm=h)[1]
        for h in ("keep", "median")
    ]
    np.testing.assert_array_equal(*maps)


def test_maps_of_pixels_have_no_tokens():
    model = small_vit(depth=1)
    message = r'^high_norm="median" is for maps on the token grid, not of pixels \(8, 12\)'
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda m, x: vitx.explain(m, x, method="lrp", high_norm="median"),
            model,
            images_for(model, 1),
        )
    hybrid = small_hybrid()
    _, maps = jax.eval_shape(
        lambda m, x: vitx.explain(m, x, method="lrp", high_norm="median"),
        hybrid,
        images_for(hybrid, 1),
    )
    assert maps.shape == (1, *hybrid.grid)
