"""Perturbation curves against a loop over single images, and by its properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vitx.evaluation.perturbation import (
    FRACTIONS,
    area_under_curve,
    explain_and_perturb,
    perturb_batch,
    perturbation_curve,
)
from vitx.evaluation.ranking import pixel_counts, removal_ranks

SIZE, CLASSES = 7, 4


class Linear(nnx.Module):
    """The smallest model with an image input."""

    def __init__(self, seed=0):
        weight = np.random.default_rng(seed).standard_normal((SIZE * SIZE * 3, CLASSES))
        self.weight = nnx.Param(jnp.asarray(weight, jnp.float32))

    def __call__(self, images):
        return images.reshape(len(images), -1) @ self.weight[...]


@pytest.fixture
def data():
    generator = np.random.default_rng(0)
    pixels = generator.random((11, SIZE, SIZE, 3)).astype(np.float32)
    heatmaps = generator.integers(0, 5, (11, SIZE, SIZE)).astype(np.float32)  # full of ties
    targets = np.array(Linear()(jnp.asarray((pixels - 0.5) / 0.5)).argmax(-1))
    targets[:4] = (targets[:4] + 1) % CLASSES
    return pixels, heatmaps, targets


def correct_by_loop(
    weight, pixels, heatmaps, targets, positive, mean=0.5, std=0.5, fractions=10, fill=0.0
):
    """(N, F): tenths of the pixels are set to `fill` in the order of (value, index)."""
    rows = []
    for image, heat, target in zip(pixels, heatmaps, targets, strict=True):
        values = heat.ravel().tolist()
        order = sorted(range(len(values)), key=lambda i: (-values[i] if positive else values[i], i))
        row = []
        for tenth in range(fractions):
            masked = image.reshape(-1, 3).astype(np.float64)
            masked[order[: len(values) * tenth // 10]] = fill
            logits = ((masked - mean) / std).ravel() @ weight
            row.append(np.argmax(logits) == target)
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("batch_size", [4, 32])
def test_curve_equals_the_loop(data, positive, batch_size):
    model = Linear()
    expected = correct_by_loop(np.asarray(model.weight[...], np.float64), *data, positive).mean(0)
    found = perturbation_curve(model, *data, positive=positive, batch_size=batch_size)
    np.testing.assert_allclose(found["accuracy"], expected, atol=1e-12)
    np.testing.assert_allclose(
        found["auc"], 0.1 * (expected.sum() - (expected[0] + expected[-1]) / 2), atol=1e-12
    )
    assert (
        0 < found["auc"] < 0.9
    )  # neither always right nor always wrong, so that the loop has said something


def test_statistics_per_channel_and_fill_apply_before_the_normalisation(data):
    model, mean, std = Linear(1), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    weight = np.asarray(model.weight[...], np.float64)
    expected = correct_by_loop(weight, *data, True, np.array(mean), np.array(std), fill=0.25)
    found = perturb_batch(model, *data, mean=mean, std=std, fill=0.25)
    np.testing.assert_array_equal(found["positive"], expected)


def test_a_plain_function_is_a_model_too(data):
    model = Linear()
    found, expected = (
        perturb_batch(lambda images: model(images), *data),
        perturb_batch(model, *data),
    )
    for direction in ("positive", "negative"):
        np.testing.assert_array_equal(found[direction], expected[direction])


def test_several_heatmaps_of_an_image_share_a_program(data):
    pixels, heatmaps, targets = data
    stacked = np.stack([heatmaps, -heatmaps, np.zeros_like(heatmaps)], 1)  # (B, M, H, W)
    found = perturb_batch(Linear(), pixels, stacked, targets)
    assert found["positive"].shape == (11, 3, 10)
    for index in range(3):
        alone = perturb_batch(Linear(), pixels, stacked[:, index], targets)
        for direction in ("positive", "negative"):
            np.testing.assert_array_equal(found[direction][:, index], alone[direction])
    np.testing.assert_array_equal(found["positive"][:, 0], found["negative"][:, 1])
    np.testing.assert_array_equal(
        found["positive"][:, 2], found["negative"][:, 2]
    )  # all ties: index order both ways


@pytest.mark.slow
def test_explanation_and_perturbation_in_one_program(data):
    pixels, _, targets = data
    grid = np.random.default_rng(2).random((11, 2, 3, 3)).astype(np.float32)
    calls = []

    def explain(model, images, classes):
        calls.append(images.shape)
        assert classes.shape == (11,)
        return model(images), jnp.asarray(grid)

    found = explain_and_perturb(Linear(), explain, pixels, targets)
    again = explain_and_perturb(Linear(), explain, pixels, targets)
    assert len(calls) == 1, "the program was traced more than once"
    maps = jax.image.resize(grid, (11, 2, SIZE, SIZE), "bilinear", antialias=False)
    expected = perturb_batch(Linear(), pixels, maps, targets)
    for direction in ("positive", "negative"):
        np.testing.assert_array_equal(found[direction], expected[direction])
        np.testing.assert_array_equal(found[direction], again[direction])


def test_clean_forward_is_shared_and_the_program_traced_once(data):
    shapes = []

    def model(images):
        shapes.append(images.shape)
        return images.reshape(len(images), -1) @ jnp.ones((SIZE * SIZE * 3, CLASSES))

    for _ in range(3):
        perturb_batch(model, *data)
    assert len(shapes) == 2, "one clean forward and one body for all masked ones"


def test_ranks_are_exact_at_ties():
    heat = jnp.asarray([[[1.0, 2.0, 1.0], [0.0, 2.0, -0.0]]])
    np.testing.assert_array_equal(removal_ranks(heat, "positive")[0], [[2, 0, 3], [4, 1, 5]])
    np.testing.assert_array_equal(removal_ranks(heat, "negative")[0], [[2, 4, 3], [0, 5, 1]])


def test_ranks_equal_a_stable_sort():
    heat = np.random.default_rng(3).integers(0, 40, (2, 3, 24, 31)).astype(np.float32)
    for direction, keys in (("positive", -heat), ("negative", heat)):
        expected = np.argsort(
            np.argsort(keys.reshape(6, -1), kind="stable", axis=-1), kind="stable", axis=-1
        )
        np.testing.assert_array_equal(
            removal_ranks(jnp.asarray(heat), direction).reshape(6, -1), expected
        )


WHOLE = [np.uint8, np.int8, np.uint16, np.int64, np.uint64]


@pytest.mark.parametrize("dtype", [*WHOLE, np.float16, np.float64])
@pytest.mark.parametrize("positive", [True, False])
def test_heatmaps_of_any_type_rank_by_their_values(data, dtype, positive):
    """Whole numbers wrap where their sign is changed, and 32 bits merge some 64-bit values."""
    pixels, _, targets = data
    generator = np.random.default_rng(5)
    if dtype in WHOLE:
        limits = np.iinfo(dtype)
        heat = generator.integers(limits.min, limits.max, (11, SIZE, SIZE), dtype, endpoint=True)
        heat[:, 0, 0], heat[:, 0, 1] = limits.min, limits.max
        heat[:, 1] = limits.max - np.arange(SIZE).astype(dtype)  # neighbours that float32 merges
    else:
        heat = (1 + np.finfo(dtype).eps * generator.integers(0, 50, (11, SIZE, SIZE))).astype(dtype)
    weight = np.asarray(Linear().weight[...], np.float64)
    expected = correct_by_loop(weight, pixels, heat, targets, positive).mean(0)
    found = perturbation_curve(Linear(), pixels, heat, targets, positive)
    np.testing.assert_array_equal(found["accuracy"], expected)


def test_subnormal_heatmaps_rank_by_their_values(data):
    pixels, _, targets = data
    heat = np.random.default_rng(9).permutation(11 * SIZE * SIZE).reshape(11, SIZE, SIZE)
    heat = heat.astype(np.float32)
    expected = perturbation_curve(Linear(), pixels, heat, targets)["accuracy"]
    found = perturbation_curve(Linear(), pixels, heat * np.float32(1e-42), targets)["accuracy"]
    np.testing.assert_array_equal(found, expected)


def test_pixel_counts_are_whole_number_arithmetic():
    for pixels in (*range(1, 300), 224 * 224, 384 * 384):
        assert pixel_counts(pixels, FRACTIONS) == tuple(pixels * i // 10 for i in range(10))
        assert pixel_counts(pixels, [0.1 * i for i in range(10)]) == pixel_counts(pixels, FRACTIONS)
    assert pixel_counts(10, (0.7, 1 - 0.9, 1 / 3, 1.0)) == (7, 1, 3, 10)


def test_other_fractions(data):
    model = Linear()
    expected = correct_by_loop(np.asarray(model.weight[...], np.float64), *data, True)
    found = perturb_batch(model, *data, fractions=(0.2, 0.7))["positive"]
    np.testing.assert_array_equal(found, expected[:, [2, 7]])
    nothing = perturb_batch(model, *data, fractions=(0.0, 0.01))[
        "positive"
    ]  # 0.01 of 49 pixels is no pixel
    np.testing.assert_array_equal(nothing, expected[:, [0, 0]])


def test_area_is_at_most_nine_tenths():
    np.testing.assert_allclose(area_under_curve(np.ones((2, 10))), [0.9, 0.9])
    np.testing.assert_allclose(area_under_curve([1, 0], (0.0, 0.5)), 0.25)


def test_bad_input_is_named(data):
    pixels, heatmaps, targets = data
    model = Linear()
    broken = heatmaps.copy()
    broken[3, 0, 0] = np.nan
    for message, arguments in {
        "not \\[0, 1\\]": (pixels * 255, heatmaps, targets),
        "divide by 255": ((pixels * 255).astype(np.uint8) % 2, heatmaps, targets),
        "must be \\(N, H, W, 3\\)": (pixels[..., :1], heatmaps, targets),
        "must be \\(11, 7, 7\\)": (pixels, heatmaps[:, :3], targets),
        "one class per image": (pixels, heatmaps, targets[:5]),
        "heatmap 3 is not finite": (pixels, broken, targets),
        "heatmaps must be real numbers, not complex": (pixels, heatmaps.astype(complex), targets),
        "heatmaps must be real numbers, not object": (pixels, heatmaps.astype(object), targets),
        "target 4 must be in \\[0, 4\\), the model's classes": (pixels, heatmaps, targets * 0 + 4),
        "targets must be classes from 0 up, found -1 to -1": (pixels, heatmaps, targets * 0 - 1),
        "targets must be integers, not float": (pixels, heatmaps, targets.astype(float)),
        "targets must be integers, not bool": (pixels, heatmaps, targets > 0),
    }.items():
        with pytest.raises(ValueError, match=message):
            perturbation_curve(model, *arguments)
    for message, option in {
        "fill must be in \\[0, 1\\], as the pixels are, not 1.5": {"fill": 1.5},
        "fill must be in \\[0, 1\\], as the pixels are, not nan": {"fill": np.nan},
        "std must be above 0 and finite, not 0": {"std": 0},
        "std must be above 0 and finite, not 1e-50": {"std": 1e-50},
        "std must be above 0 and finite, not \\(0.5, -1, 0.5\\)": {"std": (0.5, -1, 0.5)},
        "mean must be finite, not nan": {"mean": np.nan},
    }.items():
        with pytest.raises(ValueError, match=message):
            perturbation_curve(model, *data, **option)
    for wrong in ([-1] * 11, [99] * 11):
        with pytest.raises(
            ValueError, match=r"must be classes from 0 up|target 99 must be in \[0, 4\)"
        ):
            perturb_batch(model, jnp.asarray(pixels), jnp.asarray(heatmaps), jnp.asarray(wrong))
    for heat in (broken, jnp.asarray(broken), np.stack([heatmaps, broken], 1)):
        with pytest.raises(ValueError, match="heatmap 3 is not finite"):
            perturb_batch(model, pixels, heat, targets)
    with pytest.raises(ValueError, match="heatmaps must be real numbers, not complex64"):
        perturb_batch(model, pixels, jnp.asarray(heatmaps, jnp.complex64), targets)
    with pytest.raises(ValueError, match="must increase"):
        perturb_batch(model, *data, fractions=(0.5, 0.1))
    with pytest.raises(ValueError, match="unknown direction 'sideways'"):
        perturb_batch(model, *data, directions=("sideways",))
