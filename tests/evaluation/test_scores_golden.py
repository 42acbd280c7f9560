"""Scores of maps against Quantus, pytorch-grad-cam and captum, in float64, and what these define otherwise."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.golden import numbers
from vitx.evaluation import faithfulness as f
from vitx.evaluation.localisation import energy_inside, pointing_game
from vitx.evaluation.perturbation import area_under_curve
from vitx.evaluation.randomisation import rank_correlation

SIDE, PATCH, PIXELS = 12, 3, 144
GREY = f.with_value((0.25, 0.25, 0.25))
LINEAR = f.with_neighbours(noise=0.0)
FLIPPED = tuple(i / 12 for i in range(1, 13))
LIMIT = 1e-6


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("float64")]


@cache
def golden():
    return numbers("scores")


def channels_last(name):
    return jnp.asarray(np.moveaxis(golden()[name], -3, -1), jnp.float64)


def model(x):
    weights = {name.removeprefix("weights."): w for name, w in golden().items()}
    patches = x.reshape(len(x), SIDE // 4, 4, SIDE // 4, 4, 3)
    hidden = jnp.einsum("bhiwjc,ocij->bohw", patches, weights["0.weight"])
    hidden = jnp.tanh(hidden + weights["0.bias"][None, :, None, None]).reshape(len(x), -1)
    hidden = jnp.tanh(hidden @ weights["3.weight"].T + weights["3.bias"][None])
    return hidden @ weights["5.weight"].T + weights["5.bias"][None]


MODEL = jax.tree_util.Partial(model)


def given():
    return MODEL, channels_last("images"), jnp.asarray(golden()["maps"]), golden()["classes"]


def curve(fill, fractions, **options):
    return np.asarray(f.score_curve(*given(), fill, fractions=fractions, **options))


def off(found, expected):
    """The largest difference."""
    assert np.shape(found) == np.shape(expected)
    return np.abs(np.asarray(found) - expected).max()


# The same definitions


def test_deletion_is_quantus_s_pixel_flipping():
    assert off(curve(GREY, FLIPPED), golden()["flipping_0.25"]) < LIMIT


@pytest.mark.parametrize("order", ["morf", "lerf"])
def test_patches_are_quantus_s_regions(order):
    regions = (SIDE // PATCH) ** 2
    fractions = [i / regions for i in range(regions + 1)]
    found = curve(GREY, fractions, patch=PATCH, highest_first=order == "morf")
    assert off(found[:, :1] - found[:, 1:], golden()[f"regions_{order}"]) < LIMIT


def road_fractions():
    """grad-cam removes the pixels from a percentile up: one more than ours where that falls between two pixels."""
    removed = [PIXELS - np.ceil(p / 100 * (PIXELS - 1)) for p in (10, 30, 50, 70, 90)]
    return [count / PIXELS for count in removed[::-1]]


@pytest.mark.parametrize("order", ["morf", "lerf"])
def test_linear_imputation_and_scores_are_grad_cam_s(order):
    images = channels_last("images")
    found = curve(LINEAR, [0.0, *road_fractions()], highest_first=order == "morf")
    change = (found[:, 1:] - found[:, :1])[:, ::-1]
    assert off(change, golden()[f"road_{order}"]) < LIMIT
    imputed = channels_last(f"road_{order}_imputed")  # (B, P, H, W, C)
    for number in range(imputed.shape[1]):
        removed = (imputed[:, number] != images).any(-1)
        assert off(LINEAR(images, removed), imputed[:, number]) < LIMIT


def test_a_large_hole_is_filled_as_grad_cam_does():
    image, removed = channels_last("large_image"), jnp.asarray(golden()["large_removed"])
    found = LINEAR(image[None], removed[None])[0]
    assert off(found[removed].T, golden()["large_imputed"]) < LIMIT


def test_infidelity_is_captum_s():
    shifts = channels_last("perturbations")
    found = f.infidelity(*given(), shifts)
    np.testing.assert_allclose(found, golden()["infidelity"], rtol=LIMIT)


def test_infidelity_under_quantus_s_perturbations():
    """Its blocks stay removed while further ones are."""
    _, images, *_ = given()
    blocks = np.arange(PIXELS).reshape(SIDE, SIDE)
    blocks = blocks // SIDE // PATCH * (SIDE // PATCH) + blocks % SIDE // PATCH
    left = [np.where((blocks <= n)[None, ..., None], 0.25, images) for n in range(blocks.max() + 1)]
    shifts = images[None] - jnp.asarray(np.stack(left))
    found = f.infidelity(*given(), shifts)
    np.testing.assert_allclose(found, golden()["infidelity_blocks"], rtol=LIMIT)


def input_x_gradient(x):
    classes = golden()["classes"]
    value = lambda x: jnp.take_along_axis(model(x), classes[:, None], 1).sum()  # noqa: E731
    return (x * jax.grad(value)(x)).sum(-1)


@pytest.mark.parametrize("package", ["", "_quantus"])
def test_sensitivity_is_captum_s_and_quantus_s(package, monkeypatch):
    noise = iter(channels_last("noise"))
    monkeypatch.setattr(jax.random, "uniform", lambda *_: next(noise))
    found = f.sensitivity(input_x_gradient, channels_last("images"), samples=4)
    assert off(found, golden()[f"sensitivity{package}"]) < LIMIT


def test_localisation_is_quantus_s():
    maps, masks = golden()["maps"], golden()["masks"]
    np.testing.assert_array_equal(pointing_game(maps, masks, 0), golden()["pointing"][:3])
    assert off(energy_inside(maps, masks), golden()["mass"][:3]) < LIMIT


def test_rank_correlation_is_quantus_s():
    original, *randomised = golden()["randomised_maps"]
    found = [rank_correlation(original, maps) for maps in randomised]
    assert off(np.stack(found), golden()["randomised"]) < LIMIT


# Other definitions: docs/methods.md has these figures


def test_captum_s_normalized_infidelity_scales_the_map_first():
    network, images, maps, classes = given()
    shifts = channels_last("perturbations")
    expected = (shifts * maps[None, ..., None]).sum((2, 3, 4))  # (P, B)
    value = lambda x: jnp.take_along_axis(model(x), classes[:, None], 1)[:, 0]  # noqa: E731
    drops = jnp.stack([value(images) - value(images - shift) for shift in shifts])
    beta = (expected * drops).sum(0) / jnp.square(expected).sum(0)
    found = f.infidelity(network, images, beta[:, None, None] * maps, classes, shifts)
    np.testing.assert_allclose(found, golden()["infidelity_normalized"], rtol=LIMIT)


def test_fills_of_quantus():
    """Its "black" is an image's smallest value, its "mean" that of what is left, over all channels, at each step."""
    darkest = channels_last("images").min((1, 2, 3), keepdims=True)
    black = curve(lambda x, gone: jnp.where(gone[..., None], darkest, x), FLIPPED)
    assert off(black, golden()["flipping_black"]) < LIMIT
    assert 0.005 < off(curve(f.with_mean, FLIPPED), golden()["flipping_mean"]) < 0.006


def test_quantus_flips_channels_by_default():
    every = curve(GREY, [i / PIXELS for i in range(1, PIXELS + 1)])
    assert off(every, golden()["flipping_channels"][:, 2::3]) < LIMIT


@pytest.mark.parametrize(("order", "size"), [("morf", 0.0121), ("lerf", 0.0427)])
def test_grad_cam_removes_up_to_a_pixel_more(order, size):
    found = curve(LINEAR, [0.0, 0.1, 0.3, 0.5, 0.7, 0.9], highest_first=order == "morf")
    change = (found[:, 1:] - found[:, :1])[:, ::-1]
    assert off(change, golden()[f"road_{order}"]) == pytest.approx(size, abs=1e-4)


def test_grad_cam_s_combined_score_is_half_the_mean_between_the_curves():
    fractions = road_fractions()
    morf, lerf = (curve(LINEAR, fractions, highest_first=first) for first in (True, False))
    assert off((lerf - morf).mean(1) / 2, golden()["road_combined"]) < 1e-3  # its noise is 0.01
    area = area_under_curve(lerf, fractions) - area_under_curve(morf, fractions)
    assert off(area / 2, golden()["road_combined"]) == pytest.approx(0.008, abs=1e-3)


def test_quantus_sums_relevance_with_its_sign_and_hits_an_object_that_is_not_there():
    maps, masks, mass = golden()["maps"], golden()["masks"], golden()["mass_signed"]
    share = (maps * masks).sum((1, 2)) / maps.sum((1, 2))
    assert off(share, mass[:3]) < LIMIT
    assert off(energy_inside(maps, masks), mass[:3]) == pytest.approx(0.657, abs=1e-3)
    nothing = np.zeros((1, SIDE, SIDE), bool)
    assert golden()["pointing"][3] == 1 and not pointing_game(maps[:1], nothing, 0)[0]
    assert np.isnan(golden()["mass"][3]) and energy_inside(maps[:1], nothing)[0] == 0
