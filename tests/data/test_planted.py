"""Planted pictures: one cause, known, and nothing else that goes with the class."""

import numpy as np
import pytest

from vitx.data.datasets import planted
from vitx.data.datasets.shapes import SIZE


def drawings(count=200):
    return [planted.draw(0, "train", index) for index in range(count)]


def test_a_picture_follows_from_its_number():
    one, again = (planted.draw(3, "val", 7) for _ in range(2))
    np.testing.assert_array_equal(one.image, again.image)
    np.testing.assert_array_equal(one.mask, again.mask)
    assert (planted.draw(4, "val", 7).image != one.image).any()
    assert (planted.draw(3, "train", 7).image != one.image).any()


def test_the_cause_is_the_label_s_and_alone():
    for index, drawing in enumerate(drawings()):
        (label,) = drawing.labels
        assert set(np.unique(drawing.mask)) == {0, label}
        area = (drawing.mask > 0).sum()
        if index % 2:
            rows, columns = np.nonzero(drawing.mask)
            assert area == 144 and np.ptp(rows) == np.ptp(columns) == 11, "a square of 12 pixels"
        else:
            assert 60 <= area <= 0.3 * SIZE**2


def test_both_causes_have_every_class_evenly():
    labels = np.array([drawing.labels[0] for drawing in drawings(400)])
    for kind in (labels[::2], labels[1::2]):
        counts = np.bincount(kind, minlength=5)
        assert counts[0] == 0 and (counts[1:] > 30).all()


def test_a_watermark_is_its_pattern_on_the_picture():
    """Cells that are brighter and darker than the square's mean, as the class has them, over many pictures."""
    found = {label: [] for label in range(1, 5)}
    for drawing in drawings(400)[1::2]:
        rows, columns = np.nonzero(drawing.mask)
        square = drawing.image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        cells = square.astype(float).reshape(3, 4, 3, 4, 3).mean((1, 3, 4))
        found[drawing.labels[0]].append(cells - cells.mean())
    for label, cells in found.items():
        pattern = np.array(planted._WATERMARKS[label], float)
        assert (np.sign(np.mean(cells, 0)) == np.sign(pattern - pattern.mean())).all()


@pytest.mark.slow
def test_the_dataset_is_built_and_read(tmp_path):
    records = planted.open_records("tiny", "val", tmp_path)
    assert len(records) == 12 and records.classes == planted.CLASSES
