"""The segmentation protocol for explanation maps: upsampling, padding rows, class masks."""

import numpy as np
import pytest

from vitx.evaluation.metrics import SegmentationCounts, segmentation_scores
from vitx.evaluation.segmentation import foreground_masks, method_scores


def bilinear_by_loop(grid, height, width):
    """Half-pixel centres, edges repeated, no antialiasing."""
    h, w = grid.shape
    out = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * h / height - 0.5, 0), h - 1)
            x = min(max((j + 0.5) * w / width - 0.5, 0), w - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            top = grid[y0, x0] * (1 - (x - x0)) + grid[y0, x1] * (x - x0)
            bottom = grid[y1, x0] * (1 - (x - x0)) + grid[y1, x1] * (x - x0)
            out[i, j] = top * (1 - (y - y0)) + bottom * (y - y0)
    return out


@pytest.fixture
def batch():
    generator = np.random.default_rng(0)
    maps = generator.random((5, 4, 4)).astype(np.float32)
    masks = generator.choice([0, 1, 255], (5, 18, 13), p=[0.6, 0.3, 0.1]).astype(np.uint8)
    return maps, masks


def test_maps_are_upsampled_to_the_masks(batch):
    maps, masks = batch
    resized = np.stack([bilinear_by_loop(m.astype(np.float64), 18, 13) for m in maps])
    expected, found = segmentation_scores(resized, masks), method_scores(maps, masks).scores()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, err_msg=name)


def test_batches_make_no_difference(batch):
    maps, masks = batch
    whole = method_scores(maps, masks).scores()
    parts = [method_scores(maps[:3], masks[:3]), method_scores(maps[3:], masks[3:])]
    joined = SegmentationCounts.concatenate(parts)
    assert len(joined) == 5
    for name, value in joined.scores().items():
        np.testing.assert_array_equal(value, whole[name], err_msg=name)


def test_class_masks_become_foreground():
    masks = np.array([[[0, 1, 2, 255]], [[0, 2, 2, 255]]], np.uint8)
    np.testing.assert_array_equal(foreground_masks(masks), [[[0, 1, 1, -1]], [[0, 1, 1, -1]]])
    np.testing.assert_array_equal(
        foreground_masks(masks, [1, 2]), [[[0, 1, 0, -1]], [[0, 1, 1, -1]]]
    )


def test_batches_must_match(batch):
    maps, masks = batch
    with pytest.raises(ValueError, match="of one batch"):
        method_scores(maps[:2], masks)
