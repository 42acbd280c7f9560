"""Maps in colour over photographs, and the pictures of one map."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageColor

import vitx
from vitx.report.figure import SLIDE, draw_overlay
from vitx.report.overlay import (
    DIVERGING,
    SEQUENTIAL,
    colour_map,
    is_diverging,
    nothing_in,
    overlay,
    scaled,
)

PHOTO = np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)
SIGNED = np.array([[-4.0, -1.0, 0.0], [1.0, 2.0, 4.0]])


def test_colour_map_grows_brighter():
    colours = colour_map(np.linspace(0, 1, 200)) / 255.0
    linear = np.where(colours > 0.04045, ((colours + 0.055) / 1.055) ** 2.4, colours / 12.92)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    lightness = np.cbrt(luminance)
    assert np.all(np.diff(lightness) > -1e-3)
    steps = np.diff(lightness[::20])
    assert steps.max() < 2.5 * steps.min(), "the steps of lightness are uneven"
    np.testing.assert_array_equal(colour_map([-1.0, 2.0]), colour_map([0.0, 1.0]))
    ends = [ImageColor.getrgb(SEQUENTIAL[place]) for place in (0, -1)]
    np.testing.assert_array_equal(colour_map([0.0, 1.0]), ends)


def test_the_photograph_keeps_its_colours_where_the_map_is_low():
    heat = np.array([[0.0, 5.0, 10.0]])
    drawn = overlay(PHOTO, heat, strength=1.0)
    assert drawn.dtype == np.uint8 and drawn.shape == PHOTO.shape
    np.testing.assert_array_equal(drawn[:, 0], PHOTO[:, 0])
    np.testing.assert_array_equal(drawn[7, -1], colour_map(1.0))
    np.testing.assert_array_equal(overlay(PHOTO, heat, strength=0.0), PHOTO)


def test_a_blend_covers_all_alike():
    drawn = overlay(PHOTO, [[0.0, 10.0]], strength=0.5, transparent=False)
    expected = (PHOTO[:, 0].astype(float) + colour_map(0.0)) / 2
    np.testing.assert_allclose(drawn[:, 0], expected, atol=0.51)


@given(st.floats(1e-3, 1e3), st.integers(0, 2**32 - 1))
def test_zero_has_no_colour_on_a_diverging_scale(scale: float, seed: int):
    """Whatever the values: opposite maps have opposite places, and 0 is in the middle."""
    heat = (scale * np.random.default_rng(seed).standard_normal((4, 6))).astype(np.float32)
    heat[1, 2] = 0.0
    places = scaled(heat, (4, 6), diverging=True)
    np.testing.assert_allclose(places + scaled(-heat, (4, 6), diverging=True), 1, atol=1e-5)
    assert places[1, 2] == pytest.approx(0.5, abs=1e-5)
    assert ((places > 0.5) == (heat > 0))[np.abs(heat) > 1e-3 * scale].all()


def test_signs_have_colours_of_their_own():
    drawn = overlay(PHOTO, SIGNED, strength=1.0)
    low, high = (ImageColor.getrgb(DIVERGING[place]) for place in (0, -1))
    assert tuple(drawn[0, 0]) == low and tuple(drawn[-1, -1]) == high
    one_sided = overlay(PHOTO, SIGNED, diverging=False, strength=1.0)
    np.testing.assert_array_equal(one_sided[0, 0], PHOTO[0, 0])
    assert is_diverging(SIGNED) and is_diverging(-np.abs(SIGNED))
    assert not is_diverging(np.abs(SIGNED))
    assert not is_diverging(np.array([[-1e-4, 1.0]]))  # rounding


def test_colours_may_be_chosen():
    heat = [[0.0, 1.0]]
    for colours in (("black", "#00ff00"), ["black", "red", "lime"]):
        np.testing.assert_array_equal(
            overlay(PHOTO, heat, 1.0, colours=colours)[0, -1], [0, 255, 0]
        )
    assert overlay(PHOTO, heat, 1.0, colours="viridis")[0, -1].tolist() == [253, 231, 37]
    for colours, message in (("nothing", "no colour map 'nothing'"), (["red"], "two or more")):
        with pytest.raises(ValueError, match=message):
            overlay(PHOTO, heat, colours=colours)


@pytest.mark.parametrize(
    ("heat", "remark"),
    [
        (np.full((2, 2), 4.0), "constant"),
        (np.zeros((2, 2)), "constant"),
        (4 + 1e-6 * np.eye(2), "constant"),  # but for rounding
        (np.array([[1.0, np.nan]]), "not finite"),
        (np.eye(2), ""),
        (1e-30 * np.eye(2), ""),
    ],
)
def test_maps_that_show_nothing_have_no_colours(heat: np.ndarray, remark: str):
    assert nothing_in(heat) == remark
    assert np.array_equal(overlay(PHOTO, heat), PHOTO) == bool(remark)
    # The picture says so in place of a colour bar.
    said = (draw_overlay(PHOTO, heat, "x") == (176, 32, 16)).all(-1).any()
    assert said == bool(remark)


def test_wrong_arguments_are_named():
    for arguments, message in (
        ((PHOTO, np.zeros(3)), r"must be \(h, w\), not \(3,\)"),
        ((PHOTO, np.zeros((0, 3))), r"must be \(h, w\)"),
        ((PHOTO, np.eye(2), 1.5), r"strength must be in \[0, 1\]"),
        ((PHOTO / 255, np.eye(2)), "must be uint8"),
    ):
        with pytest.raises(ValueError, match=message):
            vitx.overlay(*arguments)


@pytest.mark.parametrize(
    ("size", "shown"),
    [((48, 48), (720, 720)), ((300, 451), (720, 1082)), ((3000, 4000), (720, 960))],
)
def test_a_picture_fits_a_slide(size: tuple[int, int], shown: tuple[int, int]):
    image = np.asarray(Image.fromarray(PHOTO).resize(size[::-1]))
    drawn = draw_overlay(image, np.eye(3), "a title " * 40, note="a note")
    assert drawn.shape[0] - shown[0] < 200 and shown[1] <= drawn.shape[1] <= SLIDE[0] + 32
    assert drawn.shape[0] < 1080
    assert (drawn[:, -8:] == 255).all() and (drawn[:8] == 255).all()  # nothing is cut off
