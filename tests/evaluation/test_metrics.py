"""Scores against plain loops, the golden numbers, and the properties that define them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitx.evaluation.average_precision import average_precision, average_precision_multilabel
from vitx.evaluation.bootstrap import bootstrap_interval
from vitx.evaluation.metrics import (
    SCORE_BINS,
    SegmentationCounts,
    confusion_matrix,
    mean_iou,
    per_class_iou,
    segmentation_counts,
    segmentation_scores,
)

GOLDEN = Path(__file__).parents[1] / "golden"


def average_precision_by_loop(scores, targets):
    """One threshold at a time: everything at or above it is retrieved."""
    total, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        retrieved = [t for s, t in zip(scores, targets, strict=True) if s >= threshold]
        new_recall = sum(retrieved) / max(sum(targets), 1)
        total += (new_recall - recall) * sum(retrieved) / len(retrieved)
        recall = new_recall
    return total


def scores_by_loop(maps, masks):
    correct = labelled = 0
    intersection, union, precisions, f1 = [0, 0], [0, 0], [], []
    for relevance, mask in zip(maps, masks, strict=True):
        spread = relevance.max() - relevance.min()
        r = (relevance - relevance.min()) / spread if spread else np.zeros(relevance.shape)
        prediction = (r > r.mean()).astype(int)
        keep = (mask == 0) | (mask == 1)
        p, t = prediction[keep], mask[keep]
        correct, labelled = correct + np.sum(p == t), labelled + keep.sum()
        for c in (0, 1):
            intersection[c] += np.sum((p == c) & (t == c))
            union[c] += np.sum((p == c) | (t == c))
        if keep.any():
            background = 1 - r[keep] if spread else np.zeros(keep.sum())
            ranking, truth = [*background, *r[keep]], [*(t == 0), *(t == 1)]
            precisions.append(average_precision_by_loop(ranking, truth))
            sizes = np.sum(p == 1) + np.sum(t == 1)
            f1.append(2 * np.sum((p == 1) & (t == 1)) / sizes if sizes else 0.0)
    iou = [i / u if u else 0.0 for i, u in zip(intersection, union, strict=True)]
    return {
        "pixel_accuracy": correct / labelled,
        "iou": iou,
        "miou": np.mean(iou),
        "map": np.mean(precisions),
        "mf1": np.mean(f1),
    }


def made_maps(seed, count=5, size=9, levels=6):
    """Maps full of ties, one constant; masks with ignored pixels, one without foreground."""
    generator = np.random.default_rng(seed)
    maps = generator.integers(0, levels, (count, size, size)).astype(np.float64)
    masks = generator.choice([0, 1, -1, 255], (count, size, size), p=[0.5, 0.3, 0.1, 0.1])
    maps[0] = 3.0
    masks[1][masks[1] == 1] = 0
    return maps, masks


def test_segmentation_scores_meet_the_golden_numbers():
    golden = np.load(GOLDEN / "segmentation_metrics.npz")
    scores = segmentation_scores(golden["maps"], golden["masks"])
    for name in ("pixel_accuracy", "iou", "miou", "map"):
        np.testing.assert_allclose(scores[name], golden[name], rtol=0, atol=1e-12, err_msg=name)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 9))
def test_segmentation_scores_equal_a_loop(seed, levels):
    maps, masks = made_maps(seed, levels=levels)
    found, expected = segmentation_scores(maps, masks), scores_by_loop(maps, masks)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-12, err_msg=name)


def test_constant_map_predicts_background_and_ranks_nothing():
    mask = np.array([[[0, 0, 1, -1]]])
    counts = segmentation_counts(np.full(mask.shape, 7.0), mask)
    assert counts.correct[0] == 2
    np.testing.assert_allclose(
        counts.ap, 0.5
    )  # one threshold holds all six entries, three of them true
    np.testing.assert_array_equal(counts.intersection, [[2, 0]])


def test_ignored_pixels_do_not_count_but_take_part_in_the_scaling():
    maps = np.array([[[0.0, 0.4, 0.6, 10.0]]])
    masks = np.array([[[0, 0, 1, 255]]])
    counts = segmentation_counts(maps, masks)  # the ignored 10 raises the mean above 0.6
    assert (counts.correct[0], counts.labelled[0]) == (2, 3)
    np.testing.assert_array_equal(counts.union, [[3, 1]])


def test_an_image_without_labels_leaves_the_means_alone():
    maps, masks = made_maps(3)
    more = np.concatenate([maps, maps[:1]]), np.concatenate([masks, np.full_like(masks[:1], -1)])
    one, two = segmentation_scores(maps, masks), segmentation_scores(*more)
    for name in one:
        np.testing.assert_allclose(one[name], two[name], err_msg=name)
    with pytest.raises(ValueError, match="no labelled pixel"):
        segmentation_scores(maps, np.full_like(masks, 255))


def test_counts_stream_and_survive_storage():
    maps, masks = made_maps(4, count=7)
    whole = segmentation_counts(maps, masks)
    parts = [segmentation_counts(maps[a:b], masks[a:b]) for a, b in ((0, 3), (3, 4), (4, 7))]
    joined = SegmentationCounts.concatenate([SegmentationCounts(**part.arrays()) for part in parts])
    for name, array in whole.arrays().items():
        np.testing.assert_array_equal(array, joined.arrays()[name], err_msg=name)
    with pytest.raises(ValueError, match="no segmentation counts"):
        SegmentationCounts.concatenate([])


def test_weights_stand_for_repeated_images():
    maps, masks = made_maps(5)
    counts = segmentation_counts(maps, masks)
    weighted = counts.scores(np.array([[1, 1, 1, 1, 1], [0, 2, 1, 0, 3]]))
    rows = [1, 1, 2, 4, 4, 4]
    repeated = segmentation_scores(maps[rows], masks[rows])
    for name, value in counts.scores().items():
        np.testing.assert_allclose(weighted[name][0], value, err_msg=name)
        np.testing.assert_allclose(weighted[name][1], repeated[name], err_msg=name)


def test_precision_recall_pools_the_pixels():
    maps, masks = made_maps(6)
    curve = segmentation_counts(maps[1:], masks[1:]).precision_recall()
    scores = [(m - m.min()) / (m.max() - m.min()) for m in maps[1:]]
    keep = (masks[1:] == 0) | (masks[1:] == 1)
    flat, truth = np.stack(scores)[keep], masks[1:][keep] == 1
    for index in (0, 1, 37, 60, SCORE_BINS - 1):
        chosen = flat >= curve["threshold"][index] - 1e-9
        np.testing.assert_allclose(curve["recall"][index], truth[chosen].sum() / truth.sum())
        np.testing.assert_allclose(curve["precision"][index], truth[chosen].mean())


@pytest.mark.parametrize(
    ("maps", "masks", "message"),
    [
        (np.zeros((2, 3, 3)), np.zeros((2, 3, 4), int), r"\(2, 3, 3\) and masks \(2, 3, 4\)"),
        (
            np.full((1, 2, 2), np.nan),
            np.zeros((1, 2, 2), int),
            "image 0 of the batch is not finite",
        ),
        (np.zeros((1, 2, 2)), np.full((1, 2, 2), 0.7), "masks must be integers, not float64"),
        (
            np.zeros((1, 2, 2), complex),
            np.ones((1, 2, 2), int),
            "maps must be real numbers, not complex128",
        ),
        (
            np.zeros((1, 2, 2), object),
            np.ones((1, 2, 2), int),
            "maps must be real numbers, not object",
        ),
        (
            np.full((1, 2, 2), 2**53 + 1),
            np.ones((1, 2, 2), int),
            r"maps hold integers beyond 2\^53",
        ),
        (np.zeros((1, 2, 2)), np.full((1, 2, 2), 2), "mask value 2"),
    ],
)
def test_bad_maps_and_masks_are_named(maps, masks, message):
    with pytest.raises(ValueError, match=message):
        segmentation_scores(maps, masks)


def test_average_precision_by_hand():
    # Thresholds 3, 2 (two tied), 1: precisions 1, 2/3, 2/4; recall gains 1/2, 1/2, 0.
    np.testing.assert_allclose(
        average_precision([3, 2, 2, 1], [True, True, False, False]), 0.5 + 0.5 * 2 / 3
    )
    assert average_precision([1.0, 2.0], [False, False]) == 0


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 10_000))
def test_average_precision_equals_a_loop(length, levels, seed):
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, levels, (3, length)) / levels
    targets, valid = generator.random((2, 3, length)) < 0.6
    found = average_precision(scores, targets, valid)
    for row in range(3):
        keep = valid[row]
        expected = average_precision_by_loop(scores[row][keep], targets[row][keep].astype(int))
        np.testing.assert_allclose(found[row], expected, atol=1e-12)
    shuffled = generator.permutation(length)
    np.testing.assert_allclose(
        average_precision(scores[:, shuffled], targets[:, shuffled], valid[:, shuffled]), found
    )


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        ([1.0, 2.0], [0.5, 1.0], "targets must be 0 or 1"),
        ([1.0, 2.0], [np.nan, 1.0], "targets must be 0 or 1"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), [0, 1], "scores must not be a masked"),
        ([1.0, 2.0], np.ma.masked_array([0, 1], [True, False]), "targets must not be a masked"),
    ],
)
def test_bad_targets_are_named(scores, targets, message):
    with pytest.raises(ValueError, match=message):
        average_precision(scores, targets)


def test_multilabel_average_precision_leaves_out_absent_classes():
    generator = np.random.default_rng(0)
    scores, labels = (
        generator.integers(0, 5, (20, 4)),
        (generator.random((20, 4)) < 0.4).astype(np.float32),
    )
    labels[:, 2] = 0
    per_class, mean = average_precision_multilabel(scores, labels)
    expected = [average_precision_by_loop(scores[:, c], labels[:, c]) for c in (0, 1, 3)]
    np.testing.assert_allclose(per_class[[0, 1, 3]], expected)
    assert np.isnan(per_class[2])
    np.testing.assert_allclose(mean, np.mean(expected))


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4)), "must both be"),
        (np.full((2, 3), np.nan), np.ones((2, 3)), "NaN"),
        (np.zeros((2, 3)), np.full((2, 3), 0.5), "must be 0 or 1"),
        (np.zeros((2, 3)), np.zeros((2, 3)), "no class has a positive"),
    ],
)
def test_bad_multilabel_input_is_named(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        average_precision_multilabel(scores, labels)


def test_confusion_and_iou_meet_the_golden_numbers():
    golden = np.load(GOLDEN / "voc_miou.npz")
    confusion = confusion_matrix(golden["prediction"], golden["ground_truth"], 21)
    np.testing.assert_array_equal(confusion, golden["confusion"])
    np.testing.assert_allclose(mean_iou(confusion), golden["miou"], rtol=0, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(0, 10_000))
def test_iou_equals_sets_of_pixels(classes, seed):
    generator = np.random.default_rng(seed)
    truth = generator.choice([*range(classes), 255], 60).astype(np.uint8)
    truth[0], truth[truth == classes - 1] = 0, 255  # the last class is absent from the truth
    prediction = generator.integers(0, classes, 60).astype(np.uint8)
    iou = per_class_iou(confusion_matrix(prediction, truth, classes))
    for c in range(classes):
        a, b = prediction[truth != 255] == c, truth[truth != 255] == c
        expected = (a & b).sum() / (a | b).sum() if b.any() else np.nan
        np.testing.assert_allclose(iou[c], expected)
    np.testing.assert_allclose(
        mean_iou(confusion_matrix(prediction, truth, classes)), np.nanmean(iou)
    )


def test_confusion_rows_are_the_truth_and_stack():
    one, two = confusion_matrix([1, 1], [0, 2], 3), confusion_matrix([0, 2], [0, 2], 3)
    np.testing.assert_array_equal(one, [[0, 1, 0], [0, 0, 0], [0, 1, 0]])
    np.testing.assert_allclose(mean_iou(np.stack([one, two])), [0, 1])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.float16, np.int64])
def test_maps_of_any_type_score_by_their_values(dtype):
    generator = np.random.default_rng(7)
    low, high = (-128, 128) if dtype == np.int8 else (0, 256)
    maps = generator.integers(low, high, (3, 6, 7)).astype(dtype)
    masks = generator.integers(0, 2, maps.shape)
    found, expected = (
        segmentation_scores(maps, masks),
        segmentation_scores(maps.astype(float), masks),
    )
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_bad_confusions_are_named():
    with pytest.raises(ValueError, match="prediction must be integers, not float64"):
        confusion_matrix([1.0, 0.4], [1, 0], 2)
    with pytest.raises(ValueError, match="truth must be integers, not float64"):
        confusion_matrix([1, 0], [1, np.nan], 2)
    with pytest.raises(ValueError, match="one shape"):
        confusion_matrix(np.zeros(3, int), np.zeros(4, int), 2)
    with pytest.raises(ValueError, match=r"class 255 is outside \[0, 2\)"):
        confusion_matrix([255], [1], 2)
    with pytest.raises(ValueError, match="empty"):
        mean_iou(confusion_matrix([1], [255], 2))


def test_bootstrap_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(1).standard_normal(400) + 3

    def statistic(weights):
        return {"mean": weights @ values / weights.sum(-1)}

    low, high = bootstrap_interval(statistic, len(values), samples=2000)["mean"]
    half = 1.96 * values.std() / np.sqrt(len(values))
    np.testing.assert_allclose(
        [low, high], [values.mean() - half, values.mean() + half], atol=0.1 * half
    )
    np.testing.assert_array_equal(
        bootstrap_interval(statistic, len(values), samples=2000)["mean"], [low, high]
    )


def test_bootstrap_of_segmentation_scores_holds_the_figure():
    counts = segmentation_counts(*made_maps(8, count=30))
    scores, intervals = counts.scores(), bootstrap_interval(counts.scores, len(counts), samples=120)
    assert intervals["iou"].shape == (2, 2)
    for name, (low, high) in intervals.items():
        assert np.all((low < scores[name]) & (scores[name] < high)), name
