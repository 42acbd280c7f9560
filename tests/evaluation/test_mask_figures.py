"""IoU and its intervals from three counts a class, against sets of pixels and against resampled confusion matrices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitx.evaluation.bootstrap import bootstrap_interval
from vitx.evaluation.mask_figures import mask_figures, region_counts
from vitx.evaluation.metrics import confusion_matrix, mean_of_present, region_iou

NAMES = ("background", "a", "b", "c", "d")
C = len(NAMES)


def _masks(seed: int, images: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Predictions and truths of different sizes; the last class is rare, and some pixels are ignored."""
    generator = np.random.default_rng(seed)
    shapes = generator.integers(1, 6, (images, 2))
    truths = [generator.choice(C, shape, p=(0.5, 0.2, 0.2, 0.08, 0.02)) for shape in shapes]
    predictions = [generator.integers(0, C, shape) for shape in shapes]
    for truth in truths:
        ignored = generator.random(truth.shape) < 0.2
        ignored.flat[0] = False
        truth[ignored] = 255
    return predictions, truths


def _iou(predictions: list[np.ndarray], truths: list[np.ndarray]) -> list[float | None]:
    """By class, from sets of (image, pixel); None where the truth has none."""
    found = []
    for label in range(C):
        own, true = (
            {
                (image, pixel)
                for image, (mask, truth) in enumerate(zip(masks, truths, strict=True))
                for pixel in np.flatnonzero((mask == label) & (truth != 255)).tolist()
            }
            for masks in (predictions, truths)
        )
        found.append(len(own & true) / len(own | true) if true else None)
    return found


@given(seed=st.integers(0, 10**6), images=st.integers(1, 9))
def test_figures_are_those_of_sets_of_pixels(seed: int, images: int) -> None:
    predictions, truths = _masks(seed, images)
    counts = np.stack([region_counts(p, t, C) for p, t in zip(predictions, truths, strict=True)])
    found, expected = mask_figures(counts, NAMES), _iou(predictions, truths)
    assert list(found["iou"]) == list(found["intervals"]) == list(NAMES)
    for iou, wanted in zip(found["iou"].values(), expected, strict=True):
        assert iou == wanted or iou == pytest.approx(wanted, abs=1e-12)
    present = [iou for iou in expected if iou is not None]
    assert found["miou"] == pytest.approx(sum(present) / len(present), abs=1e-12)
    assert [found["intervals"][n] is None for n in NAMES] == [iou is None for iou in expected]
    for row, pair in zip(counts, zip(predictions, truths, strict=True), strict=True):
        own = [iou for iou in _iou(*([mask] for mask in pair)) if iou is not None]
        assert mean_of_present(region_iou(row)) == pytest.approx(np.mean(own), abs=1e-12)


@settings(max_examples=4)
@given(seed=st.integers(0, 10**6), images=st.integers(2, 12))
def test_intervals_are_those_of_images_drawn_again(seed: int, images: int) -> None:
    """The draws are those of the fixed seed; each set is scored from its own confusion matrix."""
    predictions, truths = _masks(seed, images)
    pairs = list(zip(predictions, truths, strict=True))
    found = mask_figures(np.stack([region_counts(*pair, C) for pair in pairs]), NAMES)
    tables = np.stack([confusion_matrix(*pair, C) for pair in pairs])
    generator, rows = np.random.default_rng(0), []
    while len(rows) < 1000:
        for drawn in generator.integers(images, size=(50, images)):
            table = tables[drawn].sum(0).astype(np.float64)
            union = table.sum(0) + table.sum(1) - table.diagonal()
            rows.append(
                [
                    table[k, k] / union[k] if table[k].any() else np.nan  # absent from this set
                    for k in range(C)
                ]
            )
    sampled = np.array(rows)
    ends = np.nanpercentile(np.nanmean(sampled, 1), (2.5, 97.5))
    np.testing.assert_allclose(found["interval"], ends, atol=1e-12)
    for label, name in enumerate(NAMES):
        column = sampled[:, label][~np.isnan(sampled[:, label])]
        if len(column):
            ends = np.percentile(column, (2.5, 97.5))
            np.testing.assert_allclose(found["intervals"][name], ends, atol=1e-12)
        else:
            assert found["intervals"][name] is None


def test_samples_without_a_figure_do_not_count() -> None:
    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        mean = weights @ np.arange(4.0) / 4
        return {"mean": mean, "some": np.where(weights[:, 0] > 0, mean, np.nan)}

    found = bootstrap_interval(statistic, 4)
    generator = np.random.default_rng(0)
    draws = np.concatenate([generator.integers(4, size=(50, 4)) for _ in range(20)])
    for name, rows in {"mean": draws, "some": draws[(draws == 0).any(1)]}.items():
        ends = np.percentile(rows.mean(1), (2.5, 97.5))
        np.testing.assert_allclose(found[name], ends, atol=1e-12)
