import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from vitx.data.datasets import shapes
from vitx.data.source import open_source

ROOT = Path(__file__).parents[2]
GOLDEN_LABELS = [(3,), (4,), (2, 5), (1,), (2, 4), (2,), (5,), (2,)]
GOLDEN_AREAS = [240, 209, 466, 391, 789, 165, 360, 401]
GOLDEN_MEANS = [106.58, 127.53, 93.51, 113.48, 101.61, 94.27, 137.13, 136.41]


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )


@pytest.fixture(scope="module")
def drawings():
    return [shapes.draw(0, "train", index) for index in range(300)]


def test_a_drawing_follows_from_its_own_numbers_alone(drawings):
    for index in (7, 3):  # neither from the first on, nor in order
        again = shapes.draw(0, "train", index)
        np.testing.assert_array_equal(again.image, drawings[index].image)
        np.testing.assert_array_equal(again.mask, drawings[index].mask)
        assert again.labels == drawings[index].labels
    others = [
        shapes.draw(seed, split, index)
        for seed, split, index in ((1, "train", 7), (0, "val", 7), (0, "hard", 7), (0, "train", 8))
    ]
    for other in others:
        assert np.abs(other.image.astype(int) - drawings[7].image).mean() > 5


def test_drawings_stay_as_they_are(drawings):
    """Whoever changes what is drawn raises VERSION: prepared data would be used further."""
    assert str(shapes.Shapes.VERSION) == "2.1.0"
    assert [d.labels for d in drawings[:8]] == GOLDEN_LABELS
    assert [int((d.mask > 0).sum()) for d in drawings[:8]] == pytest.approx(GOLDEN_AREAS, abs=2)
    assert [d.image.mean() for d in drawings[:8]] == pytest.approx(GOLDEN_MEANS, abs=0.05)


def test_hard_pictures_show_one_object_mostly_with_a_fainter_texture(drawings):
    def contrast(drawing):
        grey = drawing.image.mean(-1)
        return np.mean([grey[drawing.mask == label].std() for label in drawing.labels])

    hard = [shapes.draw(0, "hard", index) for index in range(100)]
    assert all(len(drawing.labels) == 1 for drawing in hard)
    usual = np.median([contrast(drawing) for drawing in drawings])
    assert np.mean([contrast(drawing) < usual for drawing in hard]) > 0.75


def test_masks_and_labels_agree(drawings):
    for drawing in drawings:
        assert drawing.image.shape == (48, 48, 3) and drawing.image.dtype == np.uint8
        assert drawing.mask.shape == (48, 48) and drawing.mask.dtype == np.uint8
        assert tuple(np.unique(drawing.mask)) == (0, *drawing.labels)
        assert 1 <= len(drawing.labels) <= 3
        # The smallest shape is a ring or a triangle of radius 8, of which 15 % may be covered.
        for label in drawing.labels:
            assert (drawing.mask == label).sum() > 0.84 * min(AREAS) * 8**2
    counts = np.bincount([label for d in drawings for label in d.labels], minlength=6)[1:]
    assert counts.min() > 0.6 * counts.max()


def test_colour_tells_nothing_of_the_class_or_of_the_ground(drawings):
    """Most objects have the mean colour of the ground that they hide; a texture lies around it."""
    means = np.zeros((6, 3))
    for label in range(6):
        pixels = [
            d.image[d.mask == label].mean(axis=0) for d in drawings if (d.mask == label).any()
        ]
        means[label] = np.mean(pixels, axis=0)
    # Means of about 90 colours with a deviation of 40 each, so of 4.
    assert np.ptp(means, axis=0).max() < 25


def test_inside_an_object_neighbours_differ_more_than_outside(drawings):
    """What an object is shows at the scale of a few pixels."""
    steps = {True: [], False: []}
    for drawing in drawings:
        image = drawing.image.astype(float)
        step = (
            np.abs(np.diff(image, axis=1)).mean(-1)[:-1]
            + np.abs(np.diff(image, axis=0)).mean(-1)[:, :-1]
        )
        inside = drawing.mask[:-1, :-1] > 0
        for kind in steps:
            steps[kind].append(step[inside == kind].mean())
    assert np.mean(steps[True]) > 2.5 * np.mean(steps[False])


@pytest.mark.parametrize("kind", range(1, 6))
def test_textures_have_a_period_of_a_few_pixels(kind):
    for seed in range(10):
        texture = shapes.draw_texture(np.random.default_rng(seed), kind)
        assert texture.min() >= 0 and texture.max() <= 1 and 0.2 < texture.mean() < 0.8
        power = np.abs(np.fft.fft2(texture - texture.mean())) ** 2
        frequency = np.hypot(np.fft.fftfreq(48)[:, None], np.fft.fftfreq(48))
        peak = frequency.ravel()[power.argmax()]
        assert shapes.PERIOD[0] - 1 < 1 / peak < shapes.PERIOD[1] + 0.5


# Of the shapes in a unit circle, by their formulas.
AREAS = (
    np.pi * 0.92**2,
    (2 * 0.76) ** 2,
    3 * np.sqrt(3) * 0.58**2,
    2 * (1.9 * 0.58) - 0.58**2,
    np.pi * (0.96**2 - 0.44**2),
)


@pytest.mark.parametrize("kind", range(1, 6))
def test_signed_distances(kind):
    axis = (np.arange(1200) + 0.5) / 500 - 1.2
    x, y = axis, axis[:, None]
    distance = shapes.signed_distance(kind, x, y) + 0 * (x + y)
    assert (distance <= 0).sum() / 500**2 == pytest.approx(AREAS[kind - 1], rel=2e-3)
    assert np.all(np.hypot(x, y)[distance <= 0] <= 1.17)  # corners of a triangle
    # A distance falls by one per step towards the edge; kinks are rare.
    slopes = np.hypot(*np.gradient(distance, 1 / 500))
    assert np.mean(np.abs(slopes[np.abs(distance) < 0.03] - 1) < 0.02) > 0.9


def test_signed_distance_knows_five_shapes():
    with pytest.raises(IndexError):
        shapes.signed_distance(6, np.zeros(1), np.zeros(1))
    with pytest.raises(ValueError, match="no shape 0"):
        shapes.signed_distance(0, np.zeros(1), np.zeros(1))


def test_objects_stay_visible():
    owner = np.zeros((48, 48), np.int64)
    owner[12:36, 12:36] = 1  # leaves hardly a place that touches none of it
    placed = 0
    for seed in range(20):
        coverage = shapes.find_place(np.random.default_rng(seed), 1, owner, [2304, 576])
        if coverage is not None:
            placed += 1
            assert (owner[coverage < 0.5] == 1).sum() >= 0.85 * 576
    assert placed
    owner[...] = 1
    generator = np.random.default_rng(0)
    assert shapes.find_place(generator, 1, owner, [2304, 2304 / 0.8]) is None  # covered already


BUILD = """
    import os, signal, socket, sys
    from vitx.data import source
    from vitx.data.datasets import shapes

    def refuse(*arguments):
        raise AssertionError(f"a connection to {arguments}")

    socket.socket.connect = refuse
    if len(sys.argv) > 2:
        draw = shapes.draw

        def draw_until(seed, split, index):
            if index == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
            return draw(seed, split, index)

        shapes.draw = draw_until
    opened = source.open_source("shapes/tiny", "val", sys.argv[1])
    assert "tensorflow" not in sys.modules, "TensorFlow was imported"
    print(len(opened), opened[11].id, opened.fingerprint)
"""


@pytest.mark.slow
def test_two_processes_build_what_a_killed_one_left(tmp_path):
    """Without TensorFlow, without a network, and once."""
    killed = run_python(BUILD, str(tmp_path), "5")
    assert killed.returncode == -9
    folder = tmp_path / "shapes" / "tiny"
    assert [path.name.split(".")[0] for path in folder.iterdir()] == ["incomplete"]
    command = [sys.executable, "-c", textwrap.dedent(BUILD), str(tmp_path)]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0] == outputs[1] and outputs[0].split()[:2] == ["12", "val_00011"]
    assert [path.name for path in folder.iterdir()] == ["2.1.0"]


def test_the_dataset_holds_the_drawings(tmp_path):
    for split, size in (("train", 24), ("val", 12), ("hard", 12)):
        source = open_source("shapes/tiny", split, tmp_path)
        assert len(source) == size and source.classes == shapes.CLASSES
        for index in (0, 1, size - 1):
            drawing, example = shapes.draw(0, split, index), source[index]
            np.testing.assert_array_equal(example.image, drawing.image)
            np.testing.assert_array_equal(example.mask, drawing.mask)
            assert tuple(np.flatnonzero(example.labels) + 1) == drawing.labels
            assert example.id == f"{split}_{index:05d}"
