import os
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from vitx.data.source import open_source


@pytest.fixture
def pets(tmp_path):
    """val with cats, dogs and empty-handed names beside them, and train with one dog."""
    generator = np.random.default_rng(0)
    for path in (
        "val/dog/2.png",
        "val/dog/10.png",
        "val/cat/2.png",
        "val/cat/b.PNG",
        "val/ant/x y.bmp",
        "train/dog/a.png",
    ):
        file = tmp_path / "pets" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (7, 9, 3), np.uint8)).save(file)
    for path in ("val/cat/.hidden.png", "val/cat/Thumbs.db", "val/readme.txt"):
        (tmp_path / "pets" / path).write_bytes(b"no image")
    (tmp_path / "pets" / "val" / ".cache").mkdir()
    return tmp_path / "pets"


def test_class_folders_are_classes(pets):
    source = open_source("folder", "val", pets)
    assert source.classes == ("background", "ant", "cat", "dog")
    assert (source.name, source.split, source.most_classes) == ("folder/pets", "val", 1)
    assert [e.id for e in source] == ["ant/x y", "cat/2", "cat/b", "dog/10", "dog/2"]
    assert [int(e.labels.argmax()) for e in source] == [0, 1, 1, 2, 2]
    for index, path in enumerate(("ant/x y.bmp", "cat/2.png", "cat/b.PNG")):
        expected = np.asarray(Image.open(pets / "val" / path))
        np.testing.assert_array_equal(source[index].image, expected)
        np.testing.assert_array_equal(source.labels(index), source[index].labels)
    assert source[0].mask is None and not source.has_masks and source[0].labels.shape == (3,)
    assert not source[0].image.flags.writeable and not source.labels(0).flags.writeable


def test_the_folder_itself_is_a_split(pets):
    val = [e.id for e in open_source("folder", "val", pets)]
    for split in ("", "all"):
        assert [e.id for e in open_source("folder", split, pets / "val")] == val
    part = open_source("folder", "all[1:-1]", pets / "val")
    assert [e.id for e in part] == val[1:-1] and part.classes[1:] == ("ant", "cat", "dog")
    assert [e.id for e in open_source("folder", "val[60%:][:1]", pets)] == val[3:4]


def test_labels_read_no_file(pets):
    source = open_source("folder", "val", pets)
    shutil.rmtree(pets / "val")
    assert [int(source.labels(index).argmax()) for index in range(5)] == [0, 1, 1, 2, 2]
    with pytest.raises(
        ValueError, match=r"cannot read the image .*/val/cat/2.png of folder/pets: No"
    ):
        source[1]


def test_it_goes_to_other_processes(pets):
    source = open_source("folder", "val", pets)
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[3].image, source[3].image)
    assert again.fingerprint == source.fingerprint


def test_broken_images_are_named_when_they_are_read(pets):
    (pets / "val" / "cat" / "2.png").write_bytes(b"\x89PNG")
    source = open_source("folder", "val", pets)
    assert source[0].image.shape == (7, 9, 3)
    path = pets / "val" / "cat" / "2.png"
    with pytest.raises(ValueError, match=rf"cannot read the image {path} of folder/pets"):
        source[1]


def test_fingerprints_follow_names_sizes_and_times(pets):
    file = pets / "val" / "cat" / "2.png"
    seen = [open_source("folder", "val", pets).fingerprint]

    def changed():
        seen.append(open_source("folder", "val", pets).fingerprint)
        assert open_source("folder", "val", pets).fingerprint == seen[-1]
        return len(set(seen)) == len(seen)

    times = file.stat()
    file.write_bytes(file.read_bytes() + b"\0")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert changed()  # the size alone
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns + 1000))
    assert changed()
    file.rename(file.with_name("3.png"))
    assert changed()
    file.with_name("3.png").unlink()
    assert changed()
    (pets / "val" / "cat").rename(pets / "val" / "cow")
    assert changed()
    moved = pets.with_name("elsewhere") / "pets"
    shutil.copytree(pets, moved)  # keeps times
    assert open_source("folder", "val", moved).fingerprint == seen[-1]


def test_two_images_of_one_id_are_refused(pets):
    shutil.copy(pets / "val" / "cat" / "2.png", pets / "val" / "cat" / "2.jpg")
    with pytest.raises(ValueError, match=r"two images 'cat/2': .*2.png; rename one$"):
        open_source("folder", "val", pets)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("test", r"no folder 'test'; it has train, val. Where .*: --config.data.val_split=all$"),
        ("../pets", "has no folder '../pets'"),
        ("val+train", "has no folder 'val.train'"),
        ("val/cat", "has no folder 'val/cat'"),
        ("val[:9]", r"has no part 'val\[:9\]' \(Requested slice"),
        ("val[2]", r"has no part 'val\[2\]'"),
        ("val[]", r"has no part 'val\[\]'"),
        ("val[2:2]", "has no examples"),
        ("all", r"class folder .*/train holds no images \(.jpg .*; where it is a split, name it"),
    ],
)
def test_unknown_splits_are_explained(split, message, pets):
    with pytest.raises(ValueError, match=message):
        open_source("folder", split, pets)


def test_class_folders_without_a_split_say_how_to_ask_for_them(pets):
    with pytest.raises(
        ValueError, match=r"has no folder 'validation'; it has ant, cat, dog\. "
    ) as e:
        open_source("folder", "validation", pets / "val")
    option = str(e.value).split()[-1]
    assert option.startswith("--config.data.val_split=")
    assert len(open_source("folder", option.split("=")[1], pets / "val")) == 5
    with pytest.raises(ValueError, match="has no folder 'validation'; it has none"):
        open_source("folder", "validation", pets / "val" / "cat")


def test_layouts_that_are_none(pets):
    with pytest.raises(FileNotFoundError, match=r"no folder .*/cats; dataset 'folder' reads class"):
        open_source("folder", "all", pets / "cats")
    with pytest.raises(ValueError, match=r"val/cat holds no class folders; wanted <class>/<image>"):
        open_source("folder", "all", pets / "val" / "cat")
    with pytest.raises(ValueError, match="dataset 'folder' has no config 'val'; it has none"):
        open_source("folder/val", "all", pets)


def test_thousand_synsets_come_in_imagenets_order(tmp_path):
    names = [f"n{100 * n + 17:08d}" for n in range(1000)]
    for name in np.random.default_rng(0).permutation(names):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}_1.JPEG").write_bytes(b"")
    source = open_source("folder", "all", tmp_path)
    assert source.classes[1:] == tuple(names)
    assert [int(source.labels(n).argmax()) for n in (0, 282, 999)] == [0, 282, 999]
