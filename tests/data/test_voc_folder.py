import json
import os
import pickle
import re
import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image

from configs import testing
from tests.made_voc import make_voc
from tests.runs import begun
from vitx.data.class_names import read_classes
from vitx.data.formats import sbd
from vitx.data.formats.class_folders import FolderRecords, images_in
from vitx.data.formats.voc_annotations import ClassList, labels_in_xml
from vitx.data.loader import evaluation_batches
from vitx.data.palette import encode_mask
from vitx.data.source import Source, open_source

NAME = "voc_segmentation"
TREE = "VOCdevkit/VOC2012"
NAMES = ("background", "red fox", "Füchsin", "barn")


@pytest.fixture
def own(tmp_path):
    """Twelve images, of which some have masks, and the file of their classes."""
    made = make_voc(
        tmp_path / "own", train=8, val=4, size=(24, 32), classes=NAMES, masked=0.5, prefix="ä b "
    )
    (tmp_path / "classes.txt").write_text("\r\n".join((*NAMES, "", "")), "utf-8-sig")
    return made


def open_own(made, split="train", **options):
    return open_source(
        NAME, split, made.folder, classes=made.folder.parent / "classes.txt", **options
    )


def test_a_folder_of_your_own_is_read_in_place(own):
    before = sorted(own.folder.parent.rglob("*"))
    source = open_own(own)
    assert (source.name, source.classes, len(source)) == (NAME, NAMES, 8)
    assert [e.id for e in source] == own.splits["train"] and source[0].id.startswith("ä b 0")
    masked = [(own.folder / f"SegmentationClass/{i}.png").exists() for i in own.splits["train"]]
    assert any(masked) and not all(masked) and source.any_masks and not source.has_masks
    for example, has_mask in zip(source, masked, strict=True):
        stored = Image.open(own.folder / f"JPEGImages/{example.id}.jpg")
        np.testing.assert_array_equal(example.image, np.asarray(stored))
        if has_mask:
            np.testing.assert_array_equal(example.mask, own.masks[example.id])
        else:
            assert example.mask is None
            with pytest.raises(ValueError, match="has no mask"):
                _ = example.truth
        assert np.flatnonzero(example.labels).tolist() == own.labels[example.id]
        assert example.labels.shape == (3,)
    assert sorted(own.folder.parent.rglob("*")) == before


def test_labels_ids_and_masks_ask_for_no_images(own):
    source = open_own(own)
    shutil.rmtree(own.folder / "JPEGImages")
    shutil.rmtree(own.folder / "SegmentationClass")
    assert source.most_classes == max(len(own.labels[i]) for i in own.splits["train"])
    shutil.rmtree(own.folder / "Annotations")
    labels = [np.flatnonzero(source.labels(i)).tolist() for i in range(8)]
    assert labels == [own.labels[identifier] for identifier in own.splits["train"]]
    assert source.identifier(-1) == own.splits["train"][-1] and source.any_masks
    with pytest.raises(ValueError, match=r"cannot read .*/own/JPEGImages/ä b .*.jpg: No such file"):
        source[0]


def test_all_some_or_none_of_the_masks(own):
    folder = own.folder / "SegmentationClass"
    (folder / "notes.txt").write_text("no mask")
    for name, mask in own.masks.items():
        (folder / f"{name}.png").write_bytes(encode_mask(mask))
    assert open_own(own).has_masks and open_own(own, "val").has_masks
    (folder / f"{own.splits['train'][5]}.png").rename(folder / "another.PNG")
    source = open_own(own)
    assert not source.has_masks and source.any_masks
    assert [example.id for example in source if example.mask is None] == own.splits["train"][5:6]
    assert open_own(own, "train[:5]").has_masks
    shutil.rmtree(folder)
    assert not open_own(own).has_masks and not open_own(own).any_masks


def test_images_without_labels(own):
    for name in own.splits["val"]:
        (own.folder / f"Annotations/{name}.xml").write_text("<annotation></annotation>")
    source = open_own(own, "val")
    assert source.most_classes == 1 and not source[2].labels.any()
    empty = own.splits["train"][0]
    (own.folder / f"Annotations/{empty}.xml").unlink()
    (own.folder / f"SegmentationClass/{empty}.png").write_bytes(
        encode_mask(np.full(own.masks[empty].shape, 255, np.uint8))
    )
    assert not open_own(own).labels(0).any()
    (own.folder / f"SegmentationClass/{empty}.png").unlink()
    with pytest.raises(
        ValueError, match=r"nothing says what .*/JPEGImages/ä b .*.jpg shows: wanted Anno"
    ):
        open_own(own)


def test_splits_of_your_own(own):
    lists = own.folder / "ImageSets"
    assert [e.id for e in open_own(own, "all")] == sorted(own.masks)
    assert [e.id for e in open_own(own, "all[10:][:1]")] == sorted(own.masks)[10:11]
    (lists / "Main/holdout.txt").write_text(
        f" {own.splits['val'][1]} \n\n{own.splits['val'][0]}", "utf-8"
    )
    assert [e.id for e in open_own(own, "holdout")] == own.splits["val"][1::-1]
    (lists / "Segmentation/holdout.txt").write_text(own.splits["val"][2], "utf-8")
    (lists / "Segmentation/all.txt").write_text(own.splits["val"][3], "utf-8")
    assert [e.id for e in open_own(own, "holdout")] == own.splits["val"][2:3]
    assert [e.id for e in open_own(own, "all")] == own.splits["val"][3:]
    for split in ("test", "../train", "train+val", ""):
        with pytest.raises(
            ValueError, match=r"has no split '.*'; it has holdout, train, .*all\. Lists are Ima"
        ):
            open_own(own, split)
    with pytest.raises(ValueError, match=r"voc_segmentation has no part 'val\[:9\]'"):
        open_own(own, "val[:9]")
    (lists / "Segmentation/bad.txt").write_text("../own/JPEGImages/x")
    with pytest.raises(
        ValueError, match=r"bad.txt, line 1: JPEGImages has no image '../own/JPEGImages/x'"
    ):
        open_own(own, "bad")
    (lists / "Segmentation/empty.txt").write_text("")
    with pytest.raises(ValueError, match=r"'empty' of voc_segmentation has no examples"):
        open_own(own, "empty")


def test_only_images_are_needed_besides_masks(tmp_path):
    made = make_voc(tmp_path / "own", train=3, val=3, size=(20, 22), classes=NAMES[:2])
    (tmp_path / "classes.txt").write_text("background\nthing")
    for folder in ("Annotations", "ImageSets"):
        shutil.rmtree(made.folder / folder)
    source = open_own(made, "all")
    assert len(source) == 6 and source.has_masks and source.classes == ("background", "thing")
    assert all(source.labels(i).tolist() == [1] for i in range(6))
    moved = tmp_path / "moved"
    (moved / "VOCdevkit").mkdir(parents=True)
    made.folder.rename(moved / TREE)
    again = open_source(NAME, "all", moved, classes=tmp_path / "classes.txt")
    assert again.fingerprint == source.fingerprint


def test_fingerprints_follow_classes_and_files(own):
    first = open_own(own)
    seen = [(first.fingerprint, first.mask_fingerprint)]
    assert open_own(own).fingerprint == first.fingerprint != open_own(own, "val").fingerprint
    name = next(
        i for i in own.splits["train"] if (own.folder / f"SegmentationClass/{i}.png").exists()
    )

    def changed():
        source = open_own(own)
        seen.append((source.fingerprint, source.mask_fingerprint))
        return len(set(seen)) == len(seen)

    files = (f"JPEGImages/{name}.jpg", f"Annotations/{name}.xml", f"SegmentationClass/{name}.png")
    for file in files:
        path = own.folder / file
        times = path.stat()
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1000))
        assert changed()
        path.write_bytes(path.read_bytes() + b"\n")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert changed()  # the size alone
    path.unlink()
    assert changed()
    # Where annotations tell the labels, training reads no mask.
    assert len({seen[place][0] for place in range(-4, 0)}) == 1 and seen[-5][0] != seen[-4][0]
    (own.folder.parent / "classes.txt").write_text("\n".join((*NAMES[:3], "shed", "barn")), "utf-8")
    assert changed()
    seen.pop()
    copy = shutil.copytree(own.folder, own.folder.parent / "copy")  # keeps times
    own.folder = copy
    assert changed()


def test_what_is_wrong_in_your_own_masks_is_named(own):
    name = own.splits["train"][0]
    shape = own.masks[name].shape
    path = own.folder / f"SegmentationClass/{name}.png"
    strange, small = np.full(shape, 4, np.uint8), np.zeros((5, 6), np.uint8)
    for mask, message in (
        (small, r"Class/ä b \d+.png is 6 pixels wide and 5 high, but its image 32 and 24"),
        (strange, r"/SegmentationClass/ä b \d+.png has the label 4, wanted 0 to 3"),
    ):
        path.write_bytes(encode_mask(mask))
        with pytest.raises(ValueError, match=message):
            open_own(own)[0]
    (own.folder / f"Annotations/{name}.xml").unlink()
    with pytest.raises(ValueError, match="has the label 4, wanted"):
        open_own(own).labels(0)
    Image.new("I;16", shape[::-1]).save(path)
    with pytest.raises(ValueError, match=r"mask .*/SegmentationClass/.*: its mode is I;16, wanted"):
        open_own(own)[0]
    (own.folder.parent / "classes.txt").write_text("background\nred fox", "utf-8")
    other = next(i for i, n in enumerate(own.splits["train"]) if i and max(own.labels[n]))
    with pytest.raises(ValueError, match=r"no class of .*classes.txt; correct the name, or add"):
        open_own(own).labels(other)


DOCTYPE = '<!DOCTYPE a [<!ENTITY b "c">]><a/>'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<html></html>", "it holds <html>"),
        (b"", "no element found"),
        (b"<annotation><object/></annotation>", "an <object> has no <name>"),
        (b"<annotation><object><name> </name></object></annotation>", "an <object> has no <name>"),
        (b"<annotation>&lol;</annotation>", "undefined entity"),
        (DOCTYPE.encode(), "it declares a document type"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "it declares a document type"),
        (f'<?xml version="1.0" encoding="utf-16"?>{DOCTYPE}'.encode("utf-16"), "it declares a doc"),
        (b'<?xml version="1.0" encoding="ebcdic-at"?><annotation/>', "unknown encoding"),
        (b"\xff\xd8\xff\0", "not well-formed"),
    ],
)
def test_what_is_no_annotation_is_refused(data, message):
    with pytest.raises(
        ValueError, match=f"^a.xml is no annotation: .*{message}.* with <object><name>$"
    ):
        labels_in_xml(data, ClassList(NAMES, "x"), "a.xml")


def test_a_file_of_classes(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\ufeffbackground\r\n é, 2 \r\nb\r\n\r\n", "utf-8")
    assert read_classes(path) == ("background", "é, 2", "b")
    path.write_text("\n".join(["background", *(f"class {i}" for i in range(254))]))
    assert len(read_classes(path)) == 255


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            b"aeroplane\nbicycle",
            ", line 1: found 'aeroplane', wanted 'background', then the classes",
        ),
        (b"", ", line 1: found '', wanted 'background'"),
        (b"background\na\n\nb", ", line 3 is blank; remove it, or name a class"),
        (b"background\na\nb\na", ", line 4: 'a' again; name each class once"),
        (b"background\na\nbackground", ", line 3: 'background' again"),
        (b"background\n", " has 0 classes beside 'background', wanted 1 to 254"),
        ("\n".join(["background", *map(str, range(255))]).encode(), " has 255 classes beside"),
        (b"background\n\xff", " are not UTF-8 text"),
        (None, ": No such file or directory"),
    ],
)
def test_bad_files_of_classes_are_refused(text, message, own):
    path = own.folder.parent / "classes.txt"
    path.unlink()
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}{message}") as raised:
        open_own(own)
    assert "\n" not in str(raised.value)


def test_classes_belong_to_folders_like_vocs(own, tmp_path):
    classes = tmp_path / "classes.txt"
    with pytest.raises(ValueError, match=r"classes=.*classes.txt: dataset 'folder' has its own"):
        open_source("folder", "all", own.folder, classes=classes)
    with pytest.raises(ValueError, match="dataset 'voc_segmentation' has no config 'x'"):
        open_source(f"{NAME}/x", "all", own.folder, classes=classes)
    with pytest.raises(FileNotFoundError, match=r"/nowhere has no folder JPEGImages; voc_seg"):
        open_source(NAME, "all", tmp_path / "nowhere", classes=classes)


def test_your_own_go_through_loaders(own):
    class Preprocess:
        mean, std, size = (0.5,) * 3, (0.5,) * 3, (16, 16)

    source = pickle.loads(pickle.dumps(open_own(own)))
    batches = evaluation_batches(source, preprocess=Preprocess, batch_size=3)
    assert [batch["image"].shape for batch in batches] == [(3, 16, 16, 3)] * 3
    assert [name for batch in range(3) for name in batches.ids(batch)] == own.splits["train"]
    assert json.dumps(source.fingerprint)


def test_a_run_takes_its_classes_from_the_file(own):
    def run(**data):
        config = testing.get_config()
        config.data = {"name": NAME, "root": str(own.folder), "train_split": "train", **data}
        return begun(config, own.folder.parent / "run")

    classes = own.folder.parent / "classes.txt"
    first = run(val_split="val", classes=str(classes))
    assert first.source("train").classes == NAMES and len(first.source("all[:3]")) == 3
    options = first.stage("classifier").options["data"]
    assert "classes" not in options and options["fingerprint"] == first.source("val").fingerprint
    with pytest.raises(FileNotFoundError, match="no PASCAL VOC 2012 in"):
        run(val_split="val", root=str(own.folder / "ImageSets")).source("val")


# Names, formats and orientations that differ from what a list or a mask expects.


def renamed(folder, form):
    """Renames all files of a folder to a form of Unicode."""
    for path in list(folder.iterdir()):
        path.rename(path.with_name(unicodedata.normalize(form, path.name)))


@pytest.mark.parametrize("place", ["JPEGImages", "SegmentationClass", "Annotations"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_are_found_in_either_form_of_unicode(own, place, form):
    expected = list(open_own(own))
    renamed(own.folder / place, form)
    for example, other in zip(open_own(own), expected, strict=True):
        assert example.id == other.id == unicodedata.normalize("NFC", other.id)
        assert (example.mask is None) == (other.mask is None)
        np.testing.assert_array_equal(example.labels, other.labels)


def test_names_that_differ_in_their_form_alone_are_refused(own):
    first = own.splits["train"][0]
    other = own.folder / f"JPEGImages/{unicodedata.normalize('NFD', first)}.jpg"
    shutil.copy(own.folder / f"JPEGImages/{first}.jpg", other)
    shown = rf"{re.escape(ascii(other.name))} and {re.escape(ascii(f'{first}.jpg'))} differ in"
    with pytest.raises(ValueError, match=rf"two files are named .* \({shown} .*; rename one"):
        open_own(own)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_ids_are_as_in_the_list(own, form):
    path = own.folder / "ImageSets/Segmentation/train.txt"
    expected = list(open_own(own))
    path.write_text(unicodedata.normalize(form, path.read_text("utf-8")), "utf-8")
    source = open_own(own)
    assert [e.id for e in source] == [unicodedata.normalize(form, e.id) for e in expected]
    for place, (example, other) in enumerate(zip(source, expected, strict=True)):
        assert source.identifier(place) == example.id
        assert (example.mask is None) == (other.mask is None)
        np.testing.assert_array_equal(example.image, other.image)
    (path.parent / "Été.txt").write_text(path.read_text("utf-8"), "utf-8")
    assert len(open_own(own, unicodedata.normalize(form, "Été"))) == 8
    twice = [unicodedata.normalize(form, expected[0].id) for form in ("NFC", "NFD")]
    path.write_text("\n".join(twice), "utf-8")
    with pytest.raises(ValueError, match=r"line 2: .* again; keep one"):
        open_own(own)


def test_masks_of_sbd_are_found_in_either_form_of_unicode(own):
    folder = own.folder / sbd.PNGS
    folder.mkdir()
    names = [unicodedata.normalize(form, "Füchsin") for form in ("NFC", "NFD")]
    (folder / f"{names[1]}.PNG").write_bytes(encode_mask(np.ones((2, 3), np.uint8)))
    masks = sbd.open_masks(folder, ())
    assert list(masks.ids) == names[:1]
    for name in names:
        np.testing.assert_array_equal(masks.read(name), np.ones((2, 3)))


@pytest.mark.parametrize("suffix", [".bmp", ".webp", ".tif", ".jfif"])
def test_other_formats_are_read(own, suffix):
    first = own.splits["train"][0]
    path = own.folder / f"JPEGImages/{first}.jpg"
    with Image.open(path) as image:
        kind = {"format": "JPEG"} if suffix == ".jfif" else {}
        image.save(path.with_suffix(suffix), **kind)
    path.unlink()
    assert open_own(own)[0].image.shape == (24, 32, 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("my {} -1", "line 1: .* says whether an image shows a class, .* wanted an id alone"),
        ("{} -1", "line 1: .* says whether an image shows a class, .* wanted an id alone"),
        ("{}  1", "line 1: .* says whether an image shows a class, .* wanted an id alone"),
        ("{}.jpg", "line 1: .* has a suffix; wanted the id alone, 'plain'"),
        ("other", r"line 1: JPEGImages/other.heic is not read, because of its suffix; wanted one"),
        ("none", "line 1: JPEGImages has no image 'none'; wanted an image's name without suffix"),
        ("none.jpg", "line 1: .* has a suffix; wanted the id alone, 'none'"),
        ("{} 2", "line 1: JPEGImages has no image 'plain 2'; wanted an image's name without"),
    ],
)
def test_lines_of_lists_are_explained(own, line, message):
    images = own.folder / "JPEGImages"
    for name in ("plain", "my plain"):
        shutil.copy(images / f"{own.splits['train'][0]}.jpg", images / f"{name}.jpg")
    (images / "other.heic").write_bytes(b"-")
    (own.folder / "ImageSets/Segmentation/train.txt").write_text(line.format("plain"))
    with pytest.raises(ValueError, match=message):
        open_own(own)


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_photographs_are_upright_and_masks_fit_what_is_shown(own, orientation, suffix):
    masked = {path.stem for path in (own.folder / "SegmentationClass").iterdir()}
    first = next(i for i in own.splits["train"] if i in masked)
    path, mask = (
        own.folder / f"{place}/{first}.{suffix}"
        for place, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png"))
    )
    with Image.open(path) as image:
        stored = np.asarray(image)
        exif = Image.Exif()
        exif[0x0112] = orientation
        path.unlink()
        image.save(path.with_suffix(f".{suffix}"), exif=exif, quality=100)
    turns = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]  # quarters to the left
    source = open_own(own)
    place = own.splits["train"].index(first)
    shown = np.rot90(stored, turns)
    assert source.size(place) == shown.shape[:2]
    if turns:
        with pytest.raises(ValueError, match=r"fits the image .* as it is stored, but its EXIF"):
            source[place]
        if turns == 2:  # a mask of either kind has this shape
            return
        mask.write_bytes(encode_mask(np.ascontiguousarray(np.rot90(own.masks[first], turns))))
        source = open_own(own)
    example = source[place]
    assert example.mask.shape == example.image.shape[:2] == shown.shape[:2]
    assert np.abs(example.image.astype(int) - shown).mean() < 12  # JPEG's, of noise


def test_published_data_sets_are_read_as_stored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a").mkdir()
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "a/x.png", exif=exif)
    assert open_source("folder", "all", tmp_path)[0].image.shape == (6, 4, 3)
    images = images_in(tmp_path, "a", 0)
    stored = FolderRecords("imagenet2012", "all", NAMES, tmp_path, images, upright=False)
    assert Source(stored)[0].image.shape == (4, 6, 3)
