"""Masked images: the loop over every ranking, and each different one computed once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax.lax import Precision, dot_general_p

from tests.programs import operations
from vitx.evaluation.masked import first_equal, masked_outcomes
from vitx.evaluation.perturbation import explain_and_perturb, perturb_batch
from vitx.evaluation.ranking import removal_ranks

SIDE, CLASSES, BATCH = 4, 3, 3
FRACTIONS = (0.0, 0.25, 0.5, 0.75)


class Linear(nnx.Module):
    def __init__(self):
        drawn = np.random.default_rng(0).standard_normal((SIDE * SIDE * 3, CLASSES))
        self.weight = nnx.Param(jnp.asarray(drawn, jnp.float32))

    def __call__(self, images):
        flat = images.reshape(len(images), -1).astype(self.weight.dtype)
        return flat @ self.weight[...]


def given_pixels():
    generator = np.random.default_rng(1)
    pixels = generator.random((BATCH, SIDE, SIDE, 3)).astype(np.float32)
    return pixels, np.array([0, 1, 2], np.int32)


@given(st.lists(st.integers(0, 3), min_size=BATCH * 5, max_size=BATCH * 5))
def test_outcomes_are_those_of_every_ranking_by_itself(kinds):
    """Rankings of four kinds, in any order for each image: some repeat, some do not."""
    pixels, targets = given_pixels()
    maps = np.random.default_rng(2).random((4, SIDE, SIDE)).astype(np.float32)
    heatmaps = maps[np.array(kinds).reshape(BATCH, 5)]  # (B, 5, H, W)
    found = perturb_batch(Linear(), pixels, heatmaps, targets, FRACTIONS)
    weight = np.asarray(Linear().weight[...])
    for direction, right in found.items():
        ranks = np.asarray(removal_ranks(jnp.asarray(heatmaps), direction))
        for place, fraction in enumerate(FRACTIONS):
            kept = ranks >= int(fraction * SIDE * SIDE)
            images = np.where(kept[..., None], pixels[:, None], 0) * 2 - 1
            best = (images.reshape(BATCH, 5, -1) @ weight).argmax(-1)
            np.testing.assert_array_equal(right[..., place], best == targets[:, None])


def test_the_first_equal_ranking_is_each_images_own():
    ranks = jnp.asarray([[[0], [1]], [[0], [2]], [[3], [1]], [[3], [2]]])  # (R, B, 1)
    np.testing.assert_array_equal(first_equal(ranks), [[0, 0], [0, 1], [2, 0], [2, 1]])


@pytest.mark.parametrize(("equal", "rounds"), [(0, 6), (2, 3), (3, 1)])
def test_equal_masked_images_are_computed_once(equal, rounds):
    """Six rankings of three images, of some of which all are equal: 18, 2 + 6 or 3 different, in batches of three."""
    pixels, targets = given_pixels()
    generator = np.random.default_rng(3)
    order = generator.permuted(np.tile(np.arange(SIDE * SIDE), (6, BATCH, 1)), axis=-1)
    order[1:, :equal] = order[0, :equal]
    batches = []

    def model(images):
        jax.debug.callback(lambda x: batches.append(len(x)), images)
        return images.reshape(len(images), -1)[:, :CLASSES]

    ranks = jnp.asarray(order.reshape(6, BATCH, SIDE, SIDE), jnp.int32)
    removed = jnp.asarray([2, 5], jnp.int32)
    arguments = jnp.asarray(pixels), jnp.asarray(targets), ranks, removed, jnp.float32(0)
    found = jax.jit(lambda *given: masked_outcomes(model, lambda x: x, *given))(*arguments)
    jax.effects_barrier()
    assert found.shape == (6, 2, BATCH)
    assert batches == [BATCH] * 2 * rounds


@pytest.mark.parametrize(
    ("compute", "precision"),
    [("tf32", Precision.HIGH), ("float32", Precision.HIGHEST), ("bfloat16", Precision.HIGHEST)],
)
def test_products_of_masked_forwards_have_the_type(compute, precision):
    pixels, targets = given_pixels()
    ranks = jnp.arange(BATCH * SIDE * SIDE).reshape(1, BATCH, SIDE, SIDE) % (SIDE * SIDE)
    arguments = jnp.asarray(pixels), jnp.asarray(targets), ranks, jnp.array([2]), jnp.float32(0)

    def run(model, *given):
        return masked_outcomes(model, lambda x: x, *given, compute)

    program = jax.make_jaxpr(run)(Linear(), *arguments)
    products = [each for each in operations(program.jaxpr) if each.primitive is dot_general_p]
    kind = jnp.bfloat16 if compute == "bfloat16" else jnp.float32
    assert [each.params["precision"] for each in products] == [(precision, precision)]
    assert products[0].invars[1].aval.dtype == kind


@pytest.mark.parametrize("compute", ["tf32", "bfloat16"])
def test_reduced_forwards_count_like_full_ones_away_from_ties(compute):
    pixels, targets = given_pixels()

    def explain(model, images, classes):
        return model(images), images[..., 0][:, None]

    model = Linear()
    full, reduced = (
        explain_and_perturb(model, explain, pixels, targets, FRACTIONS, compute=each)
        for each in ("float32", compute)
    )
    np.testing.assert_array_equal(reduced["clean"], full["clean"])
    np.testing.assert_array_equal(reduced["positive"], full["positive"])


def test_bfloat16_rounds_parameters_and_images():
    """A class ahead by less than bfloat16 tells apart is right in float32 alone."""
    model, (pixels, _) = Linear(), given_pixels()
    weight = np.zeros((SIDE * SIDE * 3, CLASSES), np.float32)
    weight[-3:] = [1.0, 1.0 + 2.0**-12, 0.5]
    model.weight.set_value(jnp.asarray(weight))
    targets = np.ones(BATCH, np.int32)
    pixels = np.ones_like(pixels)

    def explain(model, images, classes):
        return model(images), -jnp.arange(SIDE * SIDE, dtype=images.dtype).reshape(
            1, 1, SIDE, SIDE
        ) * jnp.ones((BATCH, 1, 1, 1), images.dtype)

    found = {
        each: explain_and_perturb(
            model, explain, pixels, targets, (0.0, 0.5), directions=("positive",), compute=each
        )["positive"]
        for each in ("float32", "bfloat16")
    }
    assert found["float32"].all()
    np.testing.assert_array_equal(found["bfloat16"][:, 0], [[True, False]] * BATCH)


def test_wrong_types_are_named():
    pixels, targets = given_pixels()

    def explain(model, images, classes):
        return model(images), images[..., 0][:, None]

    with pytest.raises(ValueError, match="compute must be one of float32, tf32, bfloat16, not 'x'"):
        explain_and_perturb(Linear(), explain, pixels, targets, compute="x")
    with pytest.raises(ValueError, match="is for a model of arrays, not for a function"):
        explain_and_perturb(
            lambda images: images[:, 0, 0], explain, pixels, targets, compute="bfloat16"
        )
