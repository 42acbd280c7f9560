"""Curves of removal, SaCo, infidelity, sensitivity, localisation, against loops in NumPy."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from flax import nnx

import vitx
from tests.small_models import images_for, small_vit
from vitx.evaluation import faithfulness as f
from vitx.evaluation.localisation import energy_inside, pointing_game
from vitx.evaluation.perturbation import area_under_curve
from vitx.evaluation.randomisation import randomisation_curve, randomised, rank_correlation
from vitx.models.tuning import layer_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("float64")]
CLASSES = np.array([2, 0])
FRACTIONS = (0.0, 0.25, 0.5, 1.0)
BLACK = f.with_value((-1.0, -1.0, -1.0))


@cache
def case():
    model = small_vit()
    images = images_for(model, 2)
    maps = np.random.default_rng(5).permutation(192).reshape(2, 8, 12).astype(float)
    return model, images, maps


def scores(model, images):
    return np.asarray(jax.nn.softmax(model(images)))[np.arange(2), CLASSES]


@pytest.mark.parametrize("insert", [False, True])
@pytest.mark.parametrize("highest_first", [False, True])
@pytest.mark.parametrize("patch", [1, 4])
def test_curves_by_loops(insert, highest_first, patch):
    model, images, maps = case()
    found = f.score_curve(
        model,
        images,
        jnp.asarray(maps),
        jnp.asarray(CLASSES),
        BLACK,
        fractions=FRACTIONS,
        highest_first=highest_first,
        insert=insert,
        patch=patch,
    )
    cells = maps.reshape(2, 8 // patch, patch, 12 // patch, patch).mean((2, 4))
    for column, fraction in enumerate(FRACTIONS):
        changed = np.array(images) if not insert else np.full(images.shape, -1.0)
        for n in range(2):
            order = np.argsort(cells[n].ravel(), kind="stable")
            order = order[::-1] if highest_first else order
            for cell in order[: int(cells[n].size * fraction)]:
                row, col = divmod(cell, cells.shape[2])
                place = np.s_[n, row * patch : (row + 1) * patch, col * patch : (col + 1) * patch]
                changed[place] = images[place] if insert else -1.0
        np.testing.assert_allclose(found[:, column], scores(model, jnp.asarray(changed)), rtol=1e-9)
    expected = np.trapezoid(np.asarray(found), FRACTIONS, axis=-1)
    np.testing.assert_allclose(area_under_curve(found, FRACTIONS), expected, rtol=1e-12)


def removed_at_random(share=0.6):
    return np.random.default_rng(3).random((2, 8, 12)) < share


def test_mean_and_blur():
    _, images, _ = case()
    removed = removed_at_random()
    x = np.asarray(images)
    mean = np.where(removed[..., None], x.mean((1, 2), keepdims=True), x)
    np.testing.assert_allclose(f.with_mean(images, jnp.asarray(removed)), mean, rtol=1e-12)
    blurred = scipy.ndimage.gaussian_filter(x, (0, 2, 2, 0), mode="nearest", radius=6)
    found = f.with_blur(2.0)(images, jnp.asarray(removed))
    np.testing.assert_allclose(found, np.where(removed[..., None], blurred, x), rtol=1e-9)


def test_neighbours_solve_their_equations():
    """Each removed pixel is the weighted mean of its neighbours, by a dense solver."""
    _, images, _ = case()
    removed, x = removed_at_random(), np.asarray(images)
    found = f.with_neighbours(noise=0.0)(images, jnp.asarray(removed))
    for n in range(2):
        inside = np.argwhere(removed[n])
        number = {tuple(place): k for k, place in enumerate(inside)}
        matrix, known = np.zeros((len(inside),) * 2), np.zeros((len(inside), 3))
        for k, (row, col) in enumerate(inside):
            for dr in (-1, 0, 1):
                for dc in (-1, 0, 1):
                    other = row + dr, col + dc
                    if (dr, dc) == (0, 0) or not (0 <= other[0] < 8 and 0 <= other[1] < 12):
                        continue
                    weight = 1 / 12 if dr and dc else 1 / 6
                    matrix[k, k] += weight
                    if other in number:
                        matrix[k, number[other]] -= weight
                    else:
                        known[k] += weight * x[n][other]
        expected = x[n].copy()
        expected[removed[n]] = np.linalg.solve(matrix, known)
        np.testing.assert_allclose(found[n], expected, atol=1e-5)
    noisy = np.asarray(f.with_neighbours(noise=0.5)(images, jnp.asarray(removed)))
    assert 0.3 < (noisy - np.asarray(found))[removed].std() < 0.7
    np.testing.assert_array_equal(noisy[~removed], x[~removed])


def test_saco_by_pairs():
    model, images, maps = case()
    found = f.saco(model, images, jnp.asarray(maps), jnp.asarray(CLASSES), BLACK, groups=4)
    clean = scores(model, images)
    for n in range(2):
        order = np.argsort(-maps[n].ravel(), kind="stable")
        parts = np.array_split(order, 4)
        salience = [maps[n].ravel()[part].sum() for part in parts]
        drops = []
        for part in parts:
            changed = np.array(images)
            changed[n].reshape(-1, 3)[part] = -1.0
            drops.append(clean[n] - scores(model, jnp.asarray(changed))[n])
        weighed = size = 0.0
        for i in range(4):
            for j in range(i + 1, 4):
                weight = salience[i] - salience[j]
                weighed += weight if drops[i] >= drops[j] else -weight
                size += abs(weight)
        np.testing.assert_allclose(found[n], weighed / size, rtol=1e-9)


def test_a_linear_model_has_no_infidelity():
    _, images, _ = case()
    weight = np.random.default_rng(1).standard_normal((8, 12))

    def linear(x):
        value = (x.sum(-1) * weight[None]).sum((1, 2))
        return jnp.stack([value, 0 * value, value], 1)

    noise = jnp.asarray(np.random.default_rng(2).standard_normal((5, *images.shape)))
    maps = jnp.asarray(np.stack([weight, weight]))
    linear = jax.tree_util.Partial(linear)
    found = f.infidelity(linear, images, maps, jnp.asarray(CLASSES), noise)
    np.testing.assert_allclose(found, 0, atol=1e-20)
    off = f.infidelity(linear, images, 2 * maps, jnp.asarray(CLASSES), noise)
    expected = np.square((np.asarray(noise).sum(-1) * weight).sum((2, 3))).mean(0)
    np.testing.assert_allclose(off, expected, rtol=1e-9)


def test_sensitivity_is_the_largest_relative_change():
    _, images, _ = case()
    assert np.asarray(f.sensitivity(lambda x: jnp.ones(x.shape[:3]), images)).max() == 0
    found = f.sensitivity(lambda x: x.sum(-1), images, radius=0.1, samples=4)
    assert (np.asarray(found) > 0).all() and (np.asarray(found) < 0.2).all()
    wider = f.sensitivity(lambda x: x.sum(-1), images, radius=0.2, samples=4)
    np.testing.assert_allclose(wider, 2 * found, rtol=1e-6)


def test_localisation_by_hand():
    maps = np.zeros((3, 5, 5))
    maps[0, 1, 1], maps[1, 4, 4], maps[1, 0, 0] = 2.0, 3.0, 1.0
    masks = np.zeros((3, 5, 5), bool)
    masks[:2, 1, 1] = masks[:2, 0, 0] = True
    np.testing.assert_array_equal(pointing_game(maps, masks, 0), [True, False, False])
    np.testing.assert_array_equal(pointing_game(maps, masks, 5), [True, True, False])
    np.testing.assert_allclose(energy_inside(maps, masks), [1, 0.25, np.nan])


def test_what_does_not_fit_is_refused():
    model, images, maps = case()
    given = model, images, jnp.asarray(maps), jnp.asarray(CLASSES), BLACK
    with pytest.raises(ValueError, match=r"fractions \(0.5, 0.2\) must increase"):
        f.score_curve(*given, fractions=(0.5, 0.2))
    with pytest.raises(ValueError, match="patch 5 must divide the map's 8 x 12 pixels"):
        f.score_curve(*given, patch=5)


def test_randomisation_goes_from_the_top():
    model, images, _ = case()
    for layer in (0, 1, 2, 3):
        changed = randomised(model, layer)
        for (path, new), (_, old) in zip(
            nnx.to_flat_state(nnx.state(changed)), nnx.to_flat_state(nnx.state(model)), strict=True
        ):
            same = np.array_equal(new[...], old[...])
            assert same == (layer_of(path, 2) < layer), (layer, path)

    def explain(model, images):
        return vitx.explain(model, images, CLASSES)[1]

    curve = randomisation_curve(model, explain, images)
    assert curve.shape == (4, 2) and (np.abs(curve) <= 1).all() and (curve[-1] < 0.999).all()
    independent = randomisation_curve(model, lambda _, x: x.sum(-1), images)
    np.testing.assert_allclose(independent, 1, rtol=1e-12)


def test_rank_correlation_is_spearman_s():
    a, b = np.random.default_rng(0).integers(0, 5, (2, 3, 4, 4))
    expected = [
        scipy.stats.spearmanr(x.ravel(), y.ravel()).statistic for x, y in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(rank_correlation(a, b), expected, rtol=1e-12)
    assert np.isnan(rank_correlation(np.ones((1, 2, 2)), a[:1, :2, :2])).all()
