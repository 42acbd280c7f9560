"""The share of the variance of labels that features explain."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitx.evaluation.explained import FeatureSums, explained_share, feature_sums, label_sums

CLASSES = 4


def _images(seed: int, count: int, cells: int, width: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Features (N, D) and shares (C, N) of each image; shares sum to 1, and the last class is in none of them."""
    draw = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        features = draw.normal(size=(cells, width)) * draw.uniform(0.1, 10, width)
        shares = draw.dirichlet(np.ones(CLASSES - 1), cells).T
        images.append((features, np.concatenate([shares, np.zeros((1, cells))])))
    return images


def _share(images: list[tuple[np.ndarray, np.ndarray]], ridge: float = 1e-3) -> np.ndarray:
    pairs = [feature_sums(features) for features, _ in images]
    features = functools.reduce(lambda a, b: FeatureSums(*map(np.add, a, b)), pairs)
    return explained_share(features, np.sum([label_sums(*image) for image in images], 0), ridge)


@given(st.integers(0, 999), st.integers(1, 3), st.integers(5, 12), st.integers(1, 4))
def test_it_is_the_ridge_regression_of_all_cells(seed, count, cells, width) -> None:
    """As least squares of the features, below which rows of the penalty are laid."""
    images, ridge = _images(seed, count, cells, width), 0.05
    x = np.concatenate([features - features.mean(0) for features, _ in images])
    x = x / np.sqrt(np.square(x).mean(0))
    y = np.concatenate([shares.T for _, shares in images])
    y = y - y.mean(0)
    penalty = np.sqrt(len(x) * ridge) * np.eye(width)
    weights = np.linalg.lstsq(
        np.concatenate([x, penalty]), np.concatenate([y, np.zeros((width, CLASSES))]), rcond=None
    )[0]
    expected = (y * (x @ weights)).sum() / np.square(y).sum()
    np.testing.assert_allclose(_share(images, ridge), expected, rtol=1e-9)
    assert 0 <= expected <= 1


@given(st.integers(0, 999), st.integers(1, 3), st.integers(1, 4))
def test_scale_and_what_an_image_shares_do_not_count(seed, count, width) -> None:
    draw, images = np.random.default_rng(seed), _images(seed, count, 9, width)
    scale = draw.uniform(0.01, 100, width)
    moved = [(features * scale + draw.normal(size=width), shares) for features, shares in images]
    np.testing.assert_allclose(_share(moved), _share(images), rtol=1e-8)


@given(st.integers(0, 999), st.integers(2, 4))
def test_masks_that_follow_a_feature_beat_masks_that_are_too_large_or_too_small(seed, count):
    draw = np.random.default_rng(seed)
    objects = [np.arange(40) < draw.integers(8, 20) for _ in range(count)]

    def share(grow: int) -> np.ndarray:
        images = []
        for inside in objects:
            mask = np.arange(40) < inside.sum() + grow
            images.append((inside[:, None].astype(float), np.stack([~mask, mask]).astype(float)))
        return _share(images)

    scores = {grow: float(share(grow)) for grow in (-6, -3, 0, 3, 6)}
    assert max(scores, key=scores.__getitem__) == 0
    assert scores[-6] < scores[-3] < scores[0] > scores[3] > scores[6]


def test_masks_of_whole_images_follow_nothing() -> None:
    """Although what an image's cells share tells its class."""
    images = []
    for number in range(4):
        features = np.random.default_rng(number).normal(size=(9, 2)) + 10 * number
        images.append((features, np.repeat(np.eye(4)[:, number : number + 1], 9, 1)))
    assert _share(images) == pytest.approx(0, abs=1e-12)
    assert _share(images[:1]) == 0  # nor does a set of one label


def test_candidates_come_in_any_shape_and_constant_features_do_not_count() -> None:
    ((features, shares),) = _images(0, 1, 20, 3)
    several = np.stack([shares, shares[::-1], np.roll(shares, 3, 1)])[:, None]  # (3, 1, C, N)
    found = explained_share(feature_sums(features), label_sums(features, several))
    assert found.shape == (3, 1)
    for row, one in zip(found[:, 0], several[:, 0], strict=True):
        np.testing.assert_allclose(row, _share([(features, one)]), rtol=1e-12)
    constant = np.concatenate([features, np.ones((20, 1))], 1)
    np.testing.assert_allclose(_share([(constant, shares)]), found[0, 0], rtol=1e-12)
