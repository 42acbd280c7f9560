"""A new dataset is one new file; sources of data that were prepared earlier; names of classes."""

import textwrap
import unicodedata

import numpy as np
import pytest

from vitx.data import datasets
from vitx.data.class_names import find_classes, read_classes
from vitx.data.datasets.shapes import Shapes
from vitx.data.formats.voc_annotations import ClassList
from vitx.data.source import open_source

TOY = '''
    """Grey squares, each as bright as its number."""

    import numpy as np

    from vitx.data.palette import encode_png
    from vitx.data.records import Record, Records

    CONFIGS = ("dark", "bright")


    class Squares(Records):
        def read(self, index):
            image = np.full((4, 4, 3), index, np.uint8)
            return Record(self.ids[index], f"square {index}", encode_png(image), None, [index % 2])

        def content(self, places):
            return f"version 1 of {list(places)}"


    def open_records(config, split, data_dir):
        if split != "train":
            raise ValueError(f"toy has no split {split!r}; it has train")
        return Squares(f"toy/{config or 'dark'}", split, ("background", "even", "odd"), list("0123"))
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    (tmp_path / "toy.py").write_text(textwrap.dedent(TOY))
    monkeypatch.setattr(datasets, "__path__", [*datasets.__path__, str(tmp_path)])
    return tmp_path


def test_a_dataset_is_one_file(toy):
    source = open_source("toy", "train[1:]", toy)
    assert source.name == "toy/dark" and source.classes == ("background", "even", "odd")
    assert [example.id for example in source] == ["1", "2", "3"] and not source.any_masks
    assert [example.image[0, 0, 0] for example in source] == [1, 2, 3]
    np.testing.assert_array_equal([source.labels(i) for i in range(3)], [[0, 1], [1, 0], [0, 1]])
    assert open_source("toy/bright", "train", toy).name == "toy/bright"
    fingerprints = {open_source("toy", split, toy).fingerprint for split in ("train", "train[1:]")}
    assert len(fingerprints) == 2 and source.fingerprint in fingerprints
    with pytest.raises(ValueError, match="dataset 'toy' has no config 'x'; it has dark, bright"):
        open_source("toy/x", "train", toy)
    with pytest.raises(ValueError, match="toy has no split 'val'"):
        open_source("toy", "val", toy)
    with pytest.raises(ValueError, match="dataset 'toy' has its own classes"):
        open_source("toy", "train", toy, classes=toy / "classes.txt")


def test_datasets_that_tfds_itself_wrote_are_read(tmp_path):
    """Those have no list of ids and labels, and no digest."""
    source = open_source("shapes/tiny", "val", tmp_path)
    (tmp_path / f"shapes/tiny/{Shapes.VERSION}/metadata.json").unlink()
    again = open_source("shapes/tiny", "val", tmp_path)
    assert again.fingerprint == source.fingerprint
    for index in range(len(source)):
        assert again.identifier(index) == source.identifier(index)
        np.testing.assert_array_equal(again.labels(index), source.labels(index))
        np.testing.assert_array_equal(again[index].mask, source[index].mask)


def test_class_names_are_compared_in_either_form_of_unicode(tmp_path):
    names = [unicodedata.normalize(form, "Füchsin") for form in ("NFC", "NFD")]
    for known in names:
        for wanted in names:
            assert find_classes(wanted.upper(), ("cat", known)) == (1,)
            assert ClassList(("background", "cat", known), "x").label(wanted, "x.xml") == 1
    path = tmp_path / "classes.txt"
    path.write_text("\n".join(("background", *names)), "utf-8")
    with pytest.raises(ValueError, match=r"line 3: .* again; name each class once"):
        read_classes(path)
