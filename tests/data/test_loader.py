import dataclasses
import subprocess
import sys
import textwrap
import threading
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from vitx.data import loader
from vitx.data import source as sources
from vitx.data.loader import Augment, evaluation_batches, open_source, read_ahead, training_loader

Preprocess = namedtuple("Preprocess", "mean std size")
PREPROCESS = Preprocess((0.5, 0.4, 0.3), (0.5, 0.25, 0.2), (48, 48))
PLAIN = Preprocess((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (16, 16))
JITTER = Augment(flip=True, brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_source("shapes/tiny", "train", tmp_path_factory.mktemp("data"))


def load(source, **options):
    defaults = {
        "preprocess": PREPROCESS,
        "batch_size": 5,
        "epochs": 3,
        "seed": 4,
        "augment": JITTER,
    }
    return list(training_loader(source, **{**defaults, **options}))


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            assert batch[key].dtype == other[key].dtype
            np.testing.assert_array_equal(batch[key], other[key])


class Marked(list):
    """Pictures (16, 16) whose red is noise, whose green grows to the right, blue downwards."""

    def __init__(self, number):
        generator = np.random.default_rng(0)
        for index in range(number):
            noise = generator.integers(0, 6, (16, 16)).astype(np.uint8)
            ramp = np.arange(16, dtype=np.uint8) * 10
            image = np.stack([noise, *np.meshgrid(ramp, ramp)], -1)
            labels = np.array([index], np.float32)
            self.append(loader.Example(f"{index}", image, None, labels))


def test_batches_hold_what_the_contract_says(source):
    batches = load(source)
    assert source.has_masks
    assert len(batches) == 3 * (24 // 5)
    for batch in batches:
        assert batch["image"].shape == (5, 48, 48, 3) and batch["image"].dtype == np.float32
        assert batch["labels"].shape == (5, 5) and batch["labels"].dtype == np.float32
        assert set(batch) == {"image", "labels"}
    low = (0 - np.array(PREPROCESS.mean)) / PREPROCESS.std
    high = (1 - np.array(PREPROCESS.mean)) / PREPROCESS.std
    for channel in range(3):
        values = np.concatenate([batch["image"][..., channel] for batch in batches])
        assert low[channel] - 1e-5 <= values.min() < values.max() <= high[channel] + 1e-5


def test_resumes_with_the_very_batches(source):
    batches = load(source)
    for start_step in (1, 4, 7, 12):
        assert_same(batches[start_step:], load(source, start_step=start_step))


@pytest.mark.slow
def test_processes_make_the_same_batches_as_a_thread(source):
    assert_same(load(source)[3:], load(source, workers=2, start_step=3))


def test_the_seed_decides():
    marked = Marked(40)
    first, again, other = (load(marked, seed=seed, preprocess=PLAIN) for seed in (4, 4, 5))
    assert_same(first, again)
    assert any(np.any(a["labels"] != b["labels"]) for a, b in zip(first, other, strict=True))
    assert any(np.any(a["image"] != b["image"]) for a, b in zip(first, other, strict=True))


def test_each_epoch_is_another_permutation_less_a_remainder():
    batches = load(Marked(23), batch_size=5, preprocess=PLAIN)
    order = np.concatenate([batch["labels"][:, 0] for batch in batches]).reshape(3, 20)
    for epoch in order:
        assert len(set(epoch)) == 20 and np.any(epoch != np.sort(epoch))
    assert np.any(order[0] != order[1]) and np.any(order[1] != order[2])
    assert len(set(order.ravel())) == 23  # another remainder each time


def test_an_example_is_augmented_otherwise_each_time():
    marked = Marked(5)
    seen = [[] for _ in marked]
    for batch in load(marked, epochs=4, preprocess=PLAIN):
        for image, label in zip(batch["image"], batch["labels"], strict=True):
            seen[int(label[0])].append(image)
    for images in seen:
        assert all(np.any(a != b) for i, a in enumerate(images) for b in images[:i])


def test_the_shards_are_the_whole_batch():
    marked = Marked(26)
    whole = load(marked, batch_size=6, preprocess=PLAIN, start_step=2)
    shards = [
        load(marked, batch_size=6, preprocess=PLAIN, start_step=2, shard=(index, 3))
        for index in range(3)
    ]
    for step, batch in enumerate(whole):
        for index, shard in enumerate(shards):
            assert_same([{k: v[index::3] for k, v in batch.items()}], [shard[step]])
    assert all(len(shard) == len(whole) for shard in shards)


def test_every_second_image_is_mirrored():
    marked = Marked(20)
    flips = []
    for batch in load(marked, preprocess=PLAIN, augment=Augment(flip=True)):
        for image, label in zip(batch["image"], batch["labels"], strict=True):
            flips.append(image[8, 8, 1] < image[8, 7, 1])
            expected = marked[int(label[0])].image.astype(np.float32) / 255
            np.testing.assert_array_equal(image, expected[:, ::-1] if flips[-1] else expected)
    assert 0.3 < np.mean(flips) < 0.7


def test_without_augmentation_only_the_order_changes():
    marked = Marked(10)
    for batch in load(marked, preprocess=PLAIN, augment=Augment()):
        for image, label in zip(batch["image"], batch["labels"], strict=True):
            expected = marked[int(label[0])].image.astype(np.float32) / 255
            np.testing.assert_array_equal(image, expected)


def test_extra_arrays_learn_of_the_flip():
    marked = Marked(20)

    def extra(identifier, flipped):
        image = marked[int(identifier)].image
        return {"pairs": image[:, ::-1] if flipped else image}

    for batch in load(marked, preprocess=PLAIN, augment=Augment(flip=True), extra=extra):
        np.testing.assert_array_equal(batch["pairs"] / np.float32(255), batch["image"])


def test_each_image_keeps_patches_of_its_own():
    marked = Marked(20)
    whole = load(marked, preprocess=PLAIN)
    augment = dataclasses.replace(JITTER, patches=(4, 9))
    batches = load(marked, preprocess=PLAIN, augment=augment)
    rows = np.concatenate([batch.pop("patches") for batch in batches])
    assert rows.shape == (60, 4) and rows.dtype == np.int32
    assert rows.min() == 0 and rows.max() == 8 and (np.diff(rows, axis=1) > 0).all()
    assert len(np.unique(rows, axis=0)) > 40  # of 126 choices
    assert_same(batches, whole)  # the images are the same
    again = load(marked, preprocess=PLAIN, augment=augment, start_step=5)
    np.testing.assert_array_equal(np.concatenate([b["patches"] for b in again]), rows[25:])


def test_training_resizes(source):
    batch = load(source, preprocess=PREPROCESS._replace(size=(32, 48)), batch_size=24, epochs=1)[0]
    assert batch["image"].shape == (24, 32, 48, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 25}, "batch_size 25 does not fit the source's 24 examples"),
        ({"batch_size": 0}, "batch_size 0 does not fit"),
        ({"shard": (0, 2)}, "does not divide a batch of 5"),
        ({"shard": (5, 5)}, "does not divide"),
        ({"start_step": 13}, "not among the 12 steps"),
        ({"start_step": -1}, "not among the 12 steps"),
    ],
)
def test_refuses_what_does_not_fit(source, options, message):
    with pytest.raises(ValueError, match=message):
        load(source, **options)


def test_nothing_is_left_at_the_last_step(source):
    assert load(source, start_step=12) == []


def test_a_closed_loader_is_at_its_end(source):
    batches = training_loader(
        source, preprocess=PREPROCESS, batch_size=4, epochs=9, seed=0, augment=JITTER
    )
    next(batches)
    batches.close()
    batches.close()
    assert list(batches) == []


@pytest.mark.slow
def test_python_ends_quietly_with_loaders_open(tmp_path):
    script = tmp_path / "open_loaders.py"
    script.write_text(
        textwrap.dedent("""
        import sys
        from types import SimpleNamespace
        from vitx.data.loader import Augment, open_source, training_loader

        if __name__ == "__main__":
            source = open_source("shapes/tiny", "train", sys.argv[1])
            preprocess = SimpleNamespace(mean=(0.5,) * 3, std=(0.5,) * 3, size=(48, 48))
            loaders = [
                training_loader(
                    source, preprocess=preprocess, batch_size=4, epochs=99, seed=0,
                    augment=Augment(), workers=workers,
                )
                for workers in (0, 1)
            ]
            for loader in loaders:
                next(loader)
            print("done")
        """)
    )
    command = [sys.executable, str(script), str(tmp_path)]
    root = str(Path(__file__).parents[2])
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={"PYTHONPATH": root}
    )
    assert ended.stdout == "done\n" and ended.stderr == ""


@pytest.mark.parametrize("batch_size", [1, 5, 10, 12])
def test_evaluation_goes_through_all_in_order(batch_size):
    marked = Marked(10)
    batches = evaluation_batches(marked, preprocess=PLAIN, batch_size=batch_size)
    assert len(batches) == len(list(batches)) == -(-10 // batch_size)
    ids = [i for b in batches for i, valid in zip(b["id"], b["valid"], strict=True) if valid]
    assert ids == [str(index) for index in range(10)]
    for batch in batches:
        assert batch["image"].shape == (batch_size, 16, 16, 3)
        assert batch["labels"].shape == (batch_size, 1)
        assert batch["valid"].shape == (batch_size,) and batch["valid"].dtype == bool
        for row, identifier in enumerate(batch["id"]):
            example = marked[int(identifier)]
            np.testing.assert_allclose(batch["image"][row], example.image / 255.0, atol=1e-6)
    assert batches[len(batches) - 1]["id"][-1] == "9"  # repeated where the batch has room


def test_evaluation_refuses_empty_batches(source):
    with pytest.raises(ValueError, match="batch_size is 0"):
        evaluation_batches(source, preprocess=PLAIN, batch_size=0)


class Slow:
    """Batches that are their places, the earlier ones slower; place 6 is damaged."""

    def __init__(self):
        self.begun = []

    def __getitem__(self, place):
        self.begun.append(place)
        time.sleep(0.01 / (1 + place))
        if place == 6:
            raise FileNotFoundError("batch 6")
        return place


def test_batches_read_ahead_keep_their_order():
    places = [5, 0, 9, 2, 1, 7, 3]
    assert list(read_ahead(Slow(), places)) == places
    assert list(read_ahead(Slow(), [])) == []


def test_an_error_in_reading_ahead_comes_in_its_turn():
    threads, batches, seen = threading.active_count(), Slow(), []
    with pytest.raises(FileNotFoundError, match=r"^batch 6$"):
        for batch in read_ahead(batches, range(1000)):
            seen.append(batch)
    assert seen == list(range(6)) and max(batches.begun) < 12
    assert threading.active_count() == threads


def test_closing_ends_reading_ahead():
    threads, batches = threading.active_count(), Slow()
    iterator = read_ahead(batches, range(7, 1000))
    assert next(iterator) == 7
    iterator.close()
    assert len(batches.begun) <= 5 and threading.active_count() == threads


def test_parts_of_a_split(source, tmp_path):
    for part, places in {"[4:9]": range(4, 9), "[4:20][25%:][:3]": range(8, 11)}.items():
        opened = open_source("shapes/tiny", f"train{part}", tmp_path)
        assert [example.id for example in opened] == [source.identifier(n) for n in places]
        assert opened.split == f"train{part}" and opened.size(0) == (48, 48)
        assert opened[-1].id == opened[len(places) - 1].id
        with pytest.raises(IndexError):
            opened[len(places)]
    fingerprints = {
        open_source("shapes/tiny", split, tmp_path).fingerprint
        for split in ("train", "val", "train[:7]", "train[1:8]", "train[:8][:7]")
    }
    assert len(fingerprints) == 5
    assert source.fingerprint in fingerprints  # the folder does not matter
    for split in ("train[:4][10:20]", "train[:4][nonsense]", "train[2:2]"):
        with pytest.raises(ValueError, match=r"no part|no examples"):
            open_source("shapes/tiny", split, tmp_path)


def test_the_cache_has_a_limit(source, monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "CACHE_BYTES", 24 * 48 * 48 * 4)
    fresh = open_source("shapes/tiny", "train", tmp_path)
    assert fresh[3] is not fresh[3]
    assert source[3] is source[3]
    with pytest.raises(ValueError, match="read-only"):
        source[3].image[...] = 0


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("circles", "train", "unknown dataset 'circles'; there is folder, imagenet2012"),
        ("shapes/huge", "train", "no config 'huge'; it has standard, tiny"),
        ("shapes/tiny", "test", "no split 'test'; it has train, val"),
    ],
)
def test_unknown_names_are_explained(source, name, split, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_source(name, split, tmp_path)


def test_a_damaged_dataset_names_its_folder(tmp_path):
    open_source("shapes/tiny", "val", tmp_path)
    (records,) = tmp_path.glob("shapes/tiny/*/shapes-val.array_record*")
    data = records.read_bytes()
    for damage in (b"", data[: len(data) // 2]):
        records.write_bytes(damage)
        with pytest.raises(ValueError, match=rf"{records.parent} is damaged .* delete that folder"):
            open_source("shapes/tiny", "val", tmp_path)[0]


def test_masks_see_what_images_see():
    """Without a scale to the pixel; with one, windows of nearest pixels, 255 beyond the picture."""
    marked = Marked(20)

    def masks(identifier):
        return np.ascontiguousarray(marked[int(identifier)].image[..., 1])

    for batch in load(marked, preprocess=PLAIN, augment=Augment(flip=True), masks=masks):
        assert batch["mask"].dtype == np.uint8
        np.testing.assert_array_equal(batch["mask"] / np.float32(255), batch["image"][..., 1])

    square = np.zeros((16, 16, 3), np.uint8)
    square[4:8, 8:12] = 255  # shows rows and columns
    squares, shown = Marked(20), 0
    squares[:] = [dataclasses.replace(example, image=square) for example in squares]
    options = {"augment": Augment(flip=True, scale=(2.0, 2.0)), "preprocess": PLAIN}
    for batch in load(squares, masks=lambda _: square[..., 0] // 255, **options):
        seen, shown = batch["mask"] == 1, shown + (batch["mask"] == 1).sum()
        np.testing.assert_array_equal(seen, batch["image"][..., 0] > 0.5)  # its edges are grey
    assert shown > 100
    beyond = 0
    for batch in load(
        marked, preprocess=PLAIN, augment=Augment(flip=True, scale=(0.5, 2)), masks=masks
    ):
        inside = batch["mask"] != 255
        beyond += (~inside).sum()
        green = 255 * batch["image"][..., 1][inside]
        assert (
            np.abs(green - batch["mask"][inside].astype(float)).max() <= 10
        )  # a pixel of the ramp
    assert beyond > 0


def test_a_view_changes_nothing_of_training_without_one(source):
    whole = load(source)
    assert_same(whole, load(source, augment=dataclasses.replace(JITTER, scale=None)))
    views = load(source, augment=dataclasses.replace(JITTER, scale=(0.5, 2.0)))
    assert_same(views, load(source, augment=dataclasses.replace(JITTER, scale=(0.5, 2.0))))
    assert not np.array_equal(whole[0]["image"], views[0]["image"])


def test_each_image_gets_a_seed_for_its_dropout(source):
    plain, dropped = load(source), load(source, augment=dataclasses.replace(JITTER, dropout=True))
    seeds = np.concatenate([batch.pop("dropout") for batch in dropped])
    assert seeds.dtype == np.int32 and seeds.min() >= 0 and len(np.unique(seeds)) == len(seeds)
    assert_same(plain, dropped)  # nothing else is drawn otherwise


def test_a_crop_of_a_picture_and_its_mask(source):
    """Of the input's own size: the whole picture, where its mask is."""
    options = {"augment": Augment(long_side=(48, 48)), "batch_size": 1, "epochs": 1}
    truth = {example.id: example.mask for example in source}
    cropped = load(source, masks=truth.__getitem__, **options)
    assert_same(cropped, load(source, masks=truth.__getitem__, **options | {"augment": Augment()}))
    smaller = load(
        source, masks=truth.__getitem__, **options | {"augment": Augment(long_side=(24, 24))}
    )
    for batch in smaller:
        beyond = batch["mask"][0] == 255
        assert beyond.sum() >= 48 * 48 - 24 * 24
