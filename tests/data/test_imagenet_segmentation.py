import io
import pickle
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io.matlab
from PIL import Image

from tests.made_imagenet import Cells, make_gtsegs
from vitx.data.formats.gtsegs import read_gtsegs
from vitx.data.source import open_source

ROOT = Path(__file__).parents[2]
NAME = "imagenet_segmentation"


def place(root):
    return root / "downloads" / "manual" / "gtsegs_ijcv.mat"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return root, *make_gtsegs(place(root), 23, seed=3)


def rgb(image):
    return image if image.ndim == 3 else np.stack([image] * 3, -1)


def test_the_made_file_is_what_matlab_writes(made):
    root, _, images, masks = made
    assert scipy.io.matlab.matfile_version(place(root)) == (2, 0)
    with pytest.raises(NotImplementedError, match="HDF reader for matlab"):
        scipy.io.loadmat(place(root))
    with h5py.File(place(root)) as file:  # indexed as the published evaluation does
        for index in (0, 22):
            stored = file[file["value/img"][index, 0]][...]
            np.testing.assert_array_equal(stored.transpose(2, 1, 0), images[index])
            stored = file[file[file["value/gt"][index, 0]][0, 0]][...]
            np.testing.assert_array_equal(stored.transpose(1, 0), masks[index])


def test_pictures_and_masks_come_as_they_are(made):
    root, names, images, masks = made
    source = open_source(NAME, "test", root)
    assert len(source) == 23 and source.classes == ("background", "foreground")
    assert source.most_classes == 1 and source.name == f"{NAME}/1.0.0" and source.has_masks
    assert len({image.shape for image in images}) > 15 and any(i.ndim == 2 for i in images)
    for index, (example, image, mask) in enumerate(zip(source, images, masks, strict=True)):
        assert example.id == names[index]
        assert example.image.dtype == example.mask.dtype == np.uint8
        np.testing.assert_array_equal(example.image, rgb(image))
        np.testing.assert_array_equal(example.mask, mask)
        assert example.labels == source.labels(index) == 1 and example.labels.shape == (1,)
    assert source[-1].id == names[-1]


def test_what_is_stored_are_lossless_pngs(made):
    record = open_source(NAME, "test", made[0])._records.read(5)
    for data, mode in ((record.image, "RGB"), (record.mask, "L")):
        image = Image.open(io.BytesIO(data))
        assert (image.format, image.mode) == ("PNG", mode)


def test_parts_limits_and_fingerprints(made, tmp_path):
    root, names, *_ = made
    source = open_source(NAME, "test", root)
    part = open_source(NAME, "test[4:9][:3]", root)
    assert [example.id for example in part] == names[4:7]
    make_gtsegs(place(tmp_path), 23, seed=4)
    other = open_source(NAME, "test", tmp_path)
    assert len({source.fingerprint, part.fingerprint, other.fingerprint}) == 3
    assert open_source(NAME, "test", root).fingerprint == source.fingerprint
    with pytest.raises(
        ValueError, match=r"has no split 'val'; it has test, and parts .*test\[:400"
    ):
        open_source(NAME, "val", root)
    with pytest.raises(ValueError, match="has no config 'small'; it has none"):
        open_source(f"{NAME}/small", "test", root)


def test_it_goes_to_other_processes(made):
    source = open_source(NAME, "test", made[0])
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[7].image, source[7].image)
    assert again.fingerprint == source.fingerprint and again.most_classes == 1


def test_a_missing_file_is_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        open_source(NAME, "test", tmp_path)
    message = str(raised.value)
    assert "gtsegs_ijcv.mat" in message and "calvin-vision.net" in message
    assert message.endswith(f"put it at {place(tmp_path)}") and "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_built_once_the_file_is_not_needed(tmp_path):
    make_gtsegs(place(tmp_path), 3)
    first = open_source(NAME, "test", tmp_path)
    place(tmp_path).unlink()
    again = open_source(NAME, "test", tmp_path)
    np.testing.assert_array_equal(again[2].image, first[2].image)
    assert [p.name for p in (tmp_path / NAME).iterdir()] == ["1.0.0"]


def test_ids_are_numbers_where_the_names_are_no_use(tmp_path):
    path = tmp_path / "gtsegs_ijcv.mat"
    make_gtsegs(path, 3)
    numbered = ["gtsegs_00001", "gtsegs_00002", "gtsegs_00003"]
    for texts in (["n01440764_1"] * 3, ["../../x", "n01440764_1", "n01440764_2"]):
        with h5py.File(path, "r+") as file:
            cells = Cells(file)
            codes = [np.array([[ord(c) for c in text]], np.uint16) for text in texts]
            cells.write("value/id", [cells.array(code, "char") for code in codes])
        assert [name for name, *_ in read_gtsegs(path)] == numbered
    with h5py.File(path, "r+") as file:
        del file["value/id"]
    assert [name for name, *_ in read_gtsegs(path)] == numbered


def test_masks_may_ignore_and_refer_directly(tmp_path):
    path = tmp_path / "gtsegs_ijcv.mat"
    *_, masks = make_gtsegs(path, 4)
    wanted = [np.where(np.arange(mask.shape[1]) < 5, 255, mask) for mask in masks]
    stored = [
        np.where(np.arange(mask.shape[1]) < 5, value, mask).astype(kind)
        for mask, value, kind in zip(
            masks, (255, -1, -1, 255), (np.uint8, np.int8, np.float64, np.int16), strict=True
        )
    ]
    with h5py.File(path, "r+") as file:
        cells = Cells(file)
        cells.write("value/gt", [cells.array(mask, str(mask.dtype)) for mask in stored])
        cells.write("value/img", [cells.array(image[..., None], "uint8") for image in wanted])
    for (_, image, mask), expected in zip(read_gtsegs(path), wanted, strict=True):
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, expected)
        np.testing.assert_array_equal(image, rgb(expected))


def damaged(file, kind):
    """Spoils one thing in the file; the seventh picture's where it is one picture's."""
    cells = Cells(file)
    images, masks = (list(file[f"value/{key}"][:, 0]) for key in ("img", "gt"))
    size = file[images[6]].shape[:0:-1]
    match kind:
        case "no images":
            del file["value/img"]
        case "no value":
            del file["value"]
        case "value is no struct":
            del file["value"]
            file["value"] = np.zeros((2, 2))
        case "numbers for references":
            del file["value/gt"]
            file["value/gt"] = np.zeros((8, 1), np.uint64)
        case "strings for references":
            del file["value/gt"]
            file.create_dataset("value/gt", (8, 1), h5py.string_dtype())
        case "another count":
            cells.write("value/gt", masks[:-1])
        case "null image":
            file["value/img"][6, 0] = h5py.Reference()
        case "null mask":
            file[masks[6]][0, 0] = h5py.Reference()
        case "dangling":
            with h5py.File(file.filename + ".longer", "w") as longer:
                longer["filler"] = np.zeros(10**6)
                file["value/img"][6, 0] = longer.create_group("there").ref
        case "group":
            file["value/img"][6, 0] = file["value"].ref
        case "objects":
            held = file.create_dataset("#refs#/strings", size[::-1], h5py.string_dtype())
            file["value/img"][6, 0] = held.ref
        case "lists":
            held = file.create_dataset("#refs#/lists", size[::-1], h5py.vlen_dtype(np.uint8))
            file[masks[6]][0, 0] = held.ref
        case "floats":
            file["value/img"][6, 0] = cells.array(np.zeros((*size, 3)), "double")
        case "four channels":
            file["value/img"][6, 0] = cells.array(np.zeros((*size, 4), np.uint8), "uint8")
        case "empty":
            file["value/img"][6, 0] = cells.held.create_dataset("e", (3, 0, 9), np.uint8).ref
        case "huge":
            file["value/img"][6, 0] = cells.held.create_dataset("h", (3, 10**6, 10**6), "u1").ref
        case "other size":
            wrong = np.zeros(size[::-1], np.uint8)
            file[masks[6]][0, 0] = cells.array(wrong, "uint8")
        case "value 2":
            file[masks[6]][0, 0] = cells.array(np.full(size, 2, np.uint8), "uint8")
        case "not a number":
            file[masks[6]][0, 0] = cells.array(np.full(size, np.nan), "double")
        case "nested":
            inner = cells.cell([cells.cell([file[masks[6]][0, 0]])])
            file["value/gt"][6, 0] = inner


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no images", "it has no array value/img"),
        ("no value", "it has no array value/img"),
        ("value is no struct", "it has no array value/img"),
        ("numbers for references", r"value/gt is \(8, 1\) uint64, wanted references"),
        ("strings for references", r"value/gt is \(8, 1\) object, wanted references"),
        ("another count", r"it has 8 images \(value/img\), 7 masks \(value/gt\)"),
        ("null image", r"value/img\[6\] refers to nothing"),
        ("null mask", r"value/gt\[6\] refers to nothing"),
        ("dangling", r"value/img\[6\] refers to nothing"),
        ("group", r"value/img\[6\] refers to a group"),
        ("objects", r"value/img\[6\] is \(\d+, \d+\) object, wanted a picture"),
        ("lists", r"value/gt\[6\] is \(\d+, \d+\) object, wanted a mask"),
        ("floats", r"value/img\[6\] is \(\d+, \d+, 3\) float64, wanted a picture"),
        ("four channels", r"value/img\[6\] is \(\d+, \d+, 4\) uint8, wanted a picture"),
        ("empty", r"value/img\[6\] is \(9, 0, 3\) uint8, wanted a picture"),
        ("huge", r"value/img\[6\] has the shape \(3, 1000000, 1000000\), which no picture has"),
        ("other size", r"value/img\[6\] has \(\d+, \d+\) rows and columns, but its mask value/gt"),
        ("value 2", r"value/gt\[6\] has the value 2, wanted 0, 1 and"),
        ("not a number", r"value/gt\[6\] has the value nan"),
        ("nested", r"value/gt\[6\] refers to references of references"),
    ],
)
def test_a_spoilt_file_is_refused_in_one_line(kind, message, tmp_path):
    path = place(tmp_path)
    make_gtsegs(path, 8)
    with h5py.File(path, "r+") as file:
        damaged(file, kind)
    with pytest.raises(ValueError) as raised:
        open_source(NAME, "test", tmp_path)
    text = str(raised.value)
    assert re.search(message, text) and text.startswith(str(path)) and "\n" not in text
    assert text.endswith("get it again")
    assert list((tmp_path / NAME).iterdir()) == []  # nothing is left half built


def test_a_file_that_is_no_hdf5_is_refused(tmp_path):
    path = place(tmp_path)
    make_gtsegs(path, 4)
    data = path.read_bytes()
    old = io.BytesIO()
    scipy.io.savemat(old, {"value": {"img": np.zeros((4, 4))}})  # MATLAB v5
    for damage in (b"", b"<html>not found</html>" * 99, old.getvalue(), data[:700], data[:-99]):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match="is damaged, or no MATLAB") as raised:
            open_source(NAME, "test", tmp_path)
        assert str(path) in str(raised.value) and "\n" not in str(raised.value)


READ = """
    import sys
    from vitx.data.class_names import imagenet_names
    from vitx.data.source import open_source

    assert not imagenet_names.cache_info().currsize  # nothing is read on import
    source = open_source("imagenet_segmentation", "test", sys.argv[1])
    assert source[3].mask is not None
    assert not {"h5py", "tensorflow"} & set(sys.modules)
"""


@pytest.mark.slow
def test_once_built_it_is_read_without_hdf5_or_tensorflow(made):
    open_source(NAME, "test", made[0])
    command = [sys.executable, "-c", textwrap.dedent(READ), str(made[0])]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
