"""The part of a picture that a checkpoint's evaluation shows, against timm's and Hugging Face's own steps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitx.images.evaluation_crop import cropped, difference, resized, shown
from vitx.models.design import Preprocess


def picture(height, width):
    ramp = np.linspace(0, 255, height * width).reshape(height, width, 1)
    return np.random.default_rng(0).integers(0, 60, (height, width, 3), np.uint8) + np.uint8(
        ramp * 0.7
    )


def evaluation(size=(224, 224), crop_pct=1.0, crop_mode="center", interpolation="bicubic"):
    values = {"interpolation": interpolation, "crop_mode": crop_mode, "crop_pct": crop_pct}
    return Preprocess(size=size, **values)


@pytest.mark.parametrize(
    ("height", "width", "pct", "whole", "corner"),
    [
        # timm: the shorter side becomes floor(224 / 0.9) = 248, the longer int(248 * long / short).
        (480, 640, 0.9, (248, 330), (12, 53)),
        (640, 480, 0.9, (330, 248), (53, 12)),
        (300, 500, 1.0, (224, 373), (0, 74)),
        # Hugging Face: shortest_edge 256, crop_size 224
        (512, 512, 224 / 256, (256, 256), (16, 16)),
        (100, 50, 224 / 256, (512, 256), (144, 16)),
    ],
)
def test_the_middle_of_a_resized_picture(height, width, pct, whole, corner):
    image = picture(height, width)
    by_hand = Image.fromarray(image).resize(whole[::-1], Image.Resampling.BICUBIC)
    top, left = corner
    expected = np.asarray(by_hand.crop((left, top, left + 224, top + 224)))
    np.testing.assert_array_equal(cropped(image, evaluation(crop_pct=pct)), expected)


def test_squash_and_crop_as_deits_processor():
    image = picture(300, 500)
    by_hand = Image.fromarray(image).resize((256, 256), Image.Resampling.LANCZOS)
    found = cropped(image, evaluation((224, 224), 224 / 256, "squash", "lanczos"))
    np.testing.assert_array_equal(found, np.asarray(by_hand.crop((16, 16, 240, 240))))
    whole = resized(image, (30, 20), evaluation(interpolation="nearest"))
    by_hand = Image.fromarray(image).resize((20, 30), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(whole, np.asarray(by_hand))


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    pct=st.floats(0.3, 1),
    mode=st.sampled_from(["center", "squash"]),
)
def test_any_picture_gives_an_input_and_a_part_to_show(height, width, size, pct, mode):
    image, of = picture(height, width), evaluation(size, pct, mode)
    assert cropped(image, of).shape == (*size, 3)
    part = shown(image, of)
    assert 1 <= part.shape[0] <= height and 1 <= part.shape[1] <= width
    if mode == "squash" and pct == 1:
        assert part.shape == image.shape


def test_what_is_shown_has_the_inputs_aspect():
    part = shown(picture(480, 640), evaluation(crop_pct=0.9))
    assert part.shape == (434, 434, 3)  # 480 * 224 / 248 = 433.5
    np.testing.assert_array_equal(part, picture(480, 640)[23:457, 103:537])


def test_the_difference_is_said():
    plain = Preprocess()
    assert difference(plain, "squash") == difference(evaluation(), "crop") == ""
    assert "the middle 0.9 of pictures that are kept in their aspect" in difference(
        evaluation(crop_pct=0.9), "squash"
    )
    assert (
        difference(plain, "squash", "bilinear") == difference(evaluation(), "crop", "bicubic") == ""
    )
    assert difference(Preprocess(interpolation="bicubic"), "squash", "bilinear") == (
        "the checkpoint's own evaluation resizes by bicubic interpolation, here bilinear"
    )
    assert "bicubic interpolation, here bilinear, and shows the middle 0.9" in difference(
        evaluation(crop_pct=0.9), "squash", "bilinear"
    )
    assert "aspect=keep" in difference(evaluation(crop_pct=0.9, crop_mode="squash"), "keep")
