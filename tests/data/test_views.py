"""Random views: every pixel of a window is the picture's, or the fill."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vitx.data.views import View, random_crop, random_view

SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(size=SIDES, scaled=SIDES, seed=st.integers(0, 999))
def test_a_window_has_the_pictures_pixels(size, scaled, seed):
    generator = np.random.default_rng(seed)
    view = View(size, scaled, tuple(generator.integers(-3, 4, 2).tolist()))
    picture = generator.integers(1, 200, (*scaled, 3)).astype(np.uint8)
    window = view.cut(picture, np.array([7.0, 8.0, 9.0]))
    assert window.shape == (*size, 3) and window.dtype == np.uint8
    for row, column in np.ndindex(size):
        y, x = row + view.corner[0], column + view.corner[1]
        inside = 0 <= y < scaled[0] and 0 <= x < scaled[1]
        np.testing.assert_array_equal(window[row, column], picture[y, x] if inside else (7, 8, 9))


@given(
    size=SIDES,
    scale=st.tuples(st.floats(0.2, 3), st.floats(0.2, 3)).map(sorted),
    seed=st.integers(0, 999),
)
def test_a_view_wastes_nothing(size, scale, seed):
    """A larger picture fills the window, a smaller one lies whole inside; its scale is in range."""
    view = random_view(size, tuple(scale), np.random.default_rng(seed))
    for length, extent, start in zip(size, view.scaled, view.corner, strict=True):
        assert scale[0] * length - 0.5 <= extent <= max(1, scale[1] * length + 0.5)
        first, last = sorted((0, extent - length))
        assert first <= start <= last


def test_places_and_scales_vary():
    generator = np.random.default_rng(0)
    views = [random_view((20, 30), (0.5, 2.0), generator) for _ in range(400)]
    heights = np.array([view.scaled[0] for view in views])
    np.testing.assert_allclose(np.quantile(heights, [0, 0.5, 1]), [10, 25, 40], atol=2)
    shares = [v.corner[1] / (v.scaled[1] - 30) for v in views if v.scaled[1] != 30]
    assert np.ptp(shares) > 0.95 and abs(np.mean(shares) - 0.5) < 0.05
    whole = random_view((20, 30), (1.0, 1.0), generator)
    assert whole == View((20, 30), (20, 30), (0, 0))


@given(size=SIDES, picture=SIDES, seed=st.integers(0, 999))
def test_a_crop_keeps_the_pictures_shape(size, picture, seed):
    view = random_crop(size, picture, (8, 20), np.random.default_rng(seed))
    assert 8 <= max(view.scaled) <= 20
    ratio = max(view.scaled) / max(picture)
    for length, extent, scaled, start in zip(size, picture, view.scaled, view.corner, strict=True):
        assert abs(scaled - max(1, extent * ratio)) <= 0.5
        first, last = sorted((0, scaled - length))
        assert first <= start <= last


def test_long_sides_vary():
    generator = np.random.default_rng(0)
    sides = [random_crop((9, 9), (30, 20), (10, 13), generator).scaled for _ in range(200)]
    assert {side for side, _ in sides} == {10, 11, 12, 13}
    assert random_crop((30, 20), (30, 20), (30, 30), generator) == View((30, 20), (30, 20), (0, 0))
