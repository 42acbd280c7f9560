"""`explain_image`, the callable `model.preprocess`, and what a model prints as."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageShow

import vitx
from tests.small_models import images_for, small_family, small_hybrid, small_vit
from vitx.data.transforms import normalise, read_image, resize_image
from vitx.images.evaluation_crop import cropped, shown
from vitx.naming import find_classes

SIZE = (8, 12)


def picture(height: int = 30, width: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def model():
    return small_vit()


# The input


def test_every_form_of_a_picture_is_the_same_input(model, tmp_path: Path) -> None:
    image = picture()
    path = tmp_path / "a.png"
    Image.fromarray(image).save(path)
    expected = normalise(resize_image(image, SIZE), model.preprocess)[None]
    rgba = np.concatenate([image, np.full((30, 40, 1), 9, np.uint8)], -1)
    forms = (image, path, str(path), path.read_bytes(), Image.fromarray(image), rgba)
    for form in (*forms, jax.numpy.asarray(image)):
        given = model.preprocess(form)
        assert given.dtype == np.float32
        np.testing.assert_array_equal(given, expected)
    for several in ([*forms], (*forms,)):
        np.testing.assert_array_equal(model.preprocess(several), np.repeat(expected, 6, 0))
    stack = np.stack([image, image])
    np.testing.assert_array_equal(model.preprocess(stack), np.repeat(expected, 2, 0))
    grey = model.preprocess(image[..., 0])
    np.testing.assert_array_equal(grey, model.preprocess(np.stack([image[..., 0]] * 3, -1)))


@pytest.mark.parametrize("kind", ["jpg", "png", "tiff"])
def test_photographs_are_turned_upright_in_every_form(model, tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = tmp_path / f"turned.{kind}"
    Image.fromarray(picture(30, 20)).save(path, exif=exif)
    assert read_image(path).shape == (20, 30, 3)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(model.preprocess(opened), model.preprocess(path))


def test_what_is_no_picture_is_refused(model, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    for image, message in (
        (picture() / 255, r"must be uint8 in \[0, 255\], not float64"),
        (np.zeros((3, 4, 5), np.uint8), r"must be \(H, W, 3\).*, not \(3, 4, 5\)"),
        (np.zeros((0, 4), np.uint8), "not"),
        (tmp_path / "text.jpg", "cannot read the image"),
        ([], "there is no image"),
    ):
        with pytest.raises(ValueError, match=message):
            model.preprocess(image)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        model.preprocess(tmp_path / "nowhere.jpg")


# The result


def test_three_lines(model, tmp_path: Path) -> None:
    image = picture()
    Image.fromarray(image).save(tmp_path / "photo.png")
    result = vitx.explain_image(model, tmp_path / "photo.png")
    result.save(tmp_path / "map.png")

    logits, maps = vitx.explain(model, model.preprocess(image))
    np.testing.assert_array_equal(result.map, maps[0])
    np.testing.assert_array_equal(result.logits, logits[0])
    assert result.classes == (int(logits[0].argmax()),)
    np.testing.assert_array_equal(result.image, image)
    powers = np.exp(np.asarray(logits[0], np.float64))
    order = np.argsort(-powers)
    assert [name for name, _ in result.top(2)] == [f"class {number}" for number in order[:2]]
    np.testing.assert_allclose(
        [p for _, p in result.top()], powers[order] / powers.sum(), rtol=1e-5
    )
    with Image.open(tmp_path / "map.png") as saved:
        np.testing.assert_array_equal(np.asarray(saved), np.asarray(result.picture()))
    assert result._repr_png_().startswith(b"\x89PNG")
    assert repr(result).startswith("Result(40 x 30 pixels, maps (1, 2, 3): transformer attribution")


def test_classes_by_name_and_number(model) -> None:
    image, given = picture(), model.preprocess(picture())
    for classes, numbers in (("class 2,0", (2, 0)), ([1, "class 2"], (1, 2)), (1, (1,))):
        result = vitx.explain_image(model, image, "gradcam", classes)
        assert result.classes == numbers
        _, maps = vitx.explain(model, given, [numbers], "gradcam")
        np.testing.assert_array_equal(result.maps, maps[0])
        assert len(result.titles()) == len(numbers)
    two, one = (
        vitx.explain_image(model, image, "gradcam", c).picture().height for c in ("0,1", "0")
    )
    assert two == 2 * one
    with pytest.raises(ValueError, match="no class is named 'cat'"):
        vitx.explain_image(model, image, classes="cat")


def test_a_model_names_its_classes() -> None:
    model = small_vit()
    model.class_names = ("cat", "dog", "eel")
    result = vitx.explain_image(model, picture(), "raw_attention", classes="DOG")
    assert result.classes == (1,) and "dog" in result.titles()[0]
    assert {name for name, _ in result.top()} == {"cat", "dog", "eel"}


def test_a_model_knows_its_kind_of_scores(tmp_path: Path) -> None:
    """As `vitx train` records it; also through a file, and not of a new head."""
    model = small_vit()
    model.name_classes(("cat", "dog", "eel"), "data", "sigmoid")
    vitx.save(model, tmp_path)
    for each in (model, vitx.load(tmp_path)):
        result = vitx.explain_image(each, picture(), "raw_attention")
        expected = 1 / (1 + np.exp(-result.logits))
        np.testing.assert_allclose(result.probabilities, expected, rtol=1e-5)
        assert result.top(1)[0][1] == result.probabilities.max()
        softmax = vitx.explain_image(each, picture(), "raw_attention", scores="softmax")
        np.testing.assert_allclose(softmax.probabilities.sum(), 1, rtol=1e-5)
    assert vitx.load(tmp_path, num_classes=5).scores is None


def test_scores_of_several_labels_an_image(model) -> None:
    result = vitx.explain_image(model, picture(), "raw_attention", scores="sigmoid")
    np.testing.assert_allclose(result.probabilities, 1 / (1 + np.exp(-result.logits)), rtol=1e-5)
    with pytest.raises(ValueError, match="scores must be one of auto, softmax, sigmoid"):
        vitx.explain_image(model, picture(), scores="relu")


def test_a_search_is_explained_by_its_query() -> None:
    model = small_family("dinov2", num_classes=0)
    query = model(model.preprocess(picture(seed=1)))[0]
    result = vitx.explain_image(model, picture(), target=query)
    assert result.classes == () and result.top() == []
    np.testing.assert_array_equal(
        result.map, vitx.explain(model, model.preprocess(picture()), target=query)[1][0]
    )
    assert result.picture().width > 0


def test_showing_needs_a_viewer(model, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, result = [], vitx.explain_image(model, picture(), "raw_attention")
    monkeypatch.setattr(ImageShow, "show", lambda image: shown.append(image) or True)
    result.show(strength=1.0)
    np.testing.assert_array_equal(shown[0], result.picture(strength=1.0))
    monkeypatch.setattr(ImageShow, "show", lambda image: False)
    with pytest.raises(RuntimeError, match="no program that shows pictures"):
        result.show()


def test_a_constant_map_is_said_to_be_one(model) -> None:
    result = vitx.explain_image(model, picture(), "raw_attention")
    flat = type(result)(**{**vars(result), "maps": np.ones_like(result.maps)})
    assert "map is constant" in repr(flat) and "constant" not in repr(result)


# Warnings, and what a model prints as


@pytest.mark.parametrize("scale", [255.0, 1.0])
def test_pixels_that_are_not_normalised_are_warned_of(model, scale: float) -> None:
    fractions = np.linspace(0, 1, 8 * 12 * 3, dtype=np.float32).reshape(1, *SIZE, 3)
    with pytest.warns(UserWarning, match=r"normalised pixels of this model in \[-1, 1\]") as found:
        vitx.explain(model, scale * fractions, method="raw_attention")
    assert found[0].filename == __file__


def test_normalised_pixels_and_noise_are_not_warned_of(model) -> None:
    for images in (model.preprocess(picture()), images_for(model, 1)):
        vitx.explain(model, images, method="raw_attention")


def test_a_model_prints_as_a_line(model) -> None:
    assert repr(model) == str(model)
    assert repr(model).startswith(
        "VisionTransformer(width 12, 2 blocks of 2 heads, images 8 x 12, 3 classes, "
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(model))
    assert float(repr(model).split(", ")[-1].split(" M")[0]) == pytest.approx(count / 1e6, rel=5e-3)
    assert "no head" in repr(small_hybrid().without_head())


# What a checkpoint's own evaluation shows


def test_a_part_of_a_picture_is_explained_as_the_checkpoint_s_evaluation_shows_it() -> None:
    model, image = small_vit(), picture(24, 24)
    usual = model.preprocess
    model.preprocess = dataclasses.replace(usual, size=SIZE, crop_mode="center", crop_pct=0.5)
    part = vitx.explain_image(model, image, aspect="crop")
    np.testing.assert_array_equal(part.image, shown(image, model.preprocess))
    seen = normalise(cropped(image, model.preprocess), usual)[None]
    np.testing.assert_allclose(part.logits, vitx.explain(model, seen)[0][0], rtol=1e-5)
    with pytest.warns(UserWarning, match="own evaluation shows the middle 0.5 of pictures"):
        whole = vitx.explain_image(model, image)
    assert whole.image.shape == image.shape and not np.allclose(whole.logits, part.logits)
    with pytest.raises(ValueError, match="aspect must be one of squash, crop, not 'keep'"):
        vitx.explain_image(model, image, aspect="keep")


def test_a_number_that_is_another_class_s_name_is_refused() -> None:
    assert find_classes([1], ("1", "2", "3")) == (1,)
    assert find_classes("0", ("0", "1")) == (0,)
    with pytest.raises(ValueError, match="'1' is the name of class 0, and the number of another"):
        find_classes("1", ("1", "2", "3"))
