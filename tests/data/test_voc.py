import gzip
import io
import os
import pickle
import shutil
import tarfile
import xml.dom.minidom
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from tests import made_voc
from tests.made_imagenet import add_member
from tests.made_voc import make_voc
from vitx.data.formats import files, voc_layout
from vitx.data.formats.voc_annotations import VOC_CLASSES, ClassList, labels_in_xml
from vitx.data.palette import encode_mask
from vitx.data.source import open_source

NAME = "voc_segmentation"
TREE = "VOCdevkit/VOC2012"
SBD = "benchmark_RELEASE/dataset"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tree with SBD's release beside it, built: tests that change files copy it."""
    root = tmp_path_factory.mktemp("data")
    made = make_voc(root / TREE, train=7, aug=6, val=5, seed=3)
    made_voc.write_sbd(made, root / SBD)
    return made


def root_of(made):
    return made.folder.parents[1]


@pytest.fixture
def copied(made, tmp_path):
    """The same files elsewhere, not built."""
    for folder in ("VOCdevkit", SBD):
        shutil.copytree(root_of(made) / folder, tmp_path / folder)
    return tmp_path


def manual(root):
    return root / "downloads" / "manual"


def truth(made, identifier):
    """The mask of train_aug: VOC's own, with outlines, or SBD's, without."""
    mask = made.masks[identifier]
    return np.where(mask == 255, 0, mask) if identifier in made.splits["aug"] else mask


def assert_same(source, made, ids):
    assert [example.id for example in source] == ids
    for example in source:
        stored = Image.open(made.folder / "JPEGImages" / f"{example.id}.jpg")
        np.testing.assert_array_equal(example.image, np.asarray(stored.convert("RGB")))
        np.testing.assert_array_equal(example.mask, truth(made, example.id))
        assert np.flatnonzero(example.labels).tolist() == made.labels[example.id]


def refused(message, root, split="train", **options):
    """Opening raises one line that the pattern is in, and leaves nothing half built."""
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        open_source(NAME, split, root, **options)
    assert "\n" not in str(raised.value)
    assert [*root.glob(f"{NAME}/voc*/*")] == []
    return str(raised.value)


def test_what_is_made_is_as_published(made):
    assert len(VOC_CLASSES) == 21 and VOC_CLASSES[1:21:19] == ("aeroplane", "tvmonitor")
    shown = [len(labels) for labels in made.labels.values()]
    assert set(shown) <= {1, 2, 3} and 1 < np.mean(shown) < 2.2
    assert len({picture.shape for picture in made.pictures.values()}) == 2
    name = made.splits["train"][0]
    stored = Image.open(made.folder / f"SegmentationClass/{name}.png")
    colours = np.asarray(stored.convert("RGB"))
    assert stored.mode == "P" and tuple(colours[made.masks[name] == 255][0]) == (224, 224, 192)
    for name, mask in made.masks.items():
        assert [label - 1 for label in np.unique(mask) if 0 < label < 255] == made.labels[name]
        stored = scipy.io.loadmat(root_of(made) / SBD / f"cls/{name}.mat")["GTcls"][0, 0]
        assert stored.dtype.names == ("Boundaries", "Segmentation", "CategoriesPresent")
        np.testing.assert_array_equal(stored["Segmentation"], np.where(mask == 255, 0, mask))
        assert stored["Boundaries"].shape == (20, 1)
        document = xml.dom.minidom.parse(str(made.folder / f"Annotations/{name}.xml"))
        names = {o.getElementsByTagName("name")[0] for o in document.getElementsByTagName("object")}
        names = {found.firstChild.data for found in names}
        assert names == {VOC_CLASSES[label + 1] for label in made.labels[name]}


def test_train_and_val_come_in_the_order_of_their_lists(made):
    for split in ("train", "val"):
        source = open_source(NAME, split, root_of(made))
        assert source.classes == VOC_CLASSES and source.name == f"{NAME}/voc2012/1.0.0"
        assert source.has_masks and source.any_masks and not source.one_class
        assert source.most_classes == max(len(made.labels[i]) for i in made.splits[split])
        assert_same(source, made, made.splits[split])
        record = source._records.read(0)
        mask = Image.open(io.BytesIO(record.mask))
        assert (mask.format, mask.mode) == ("PNG", "L")
        assert record.image == (made.folder / f"JPEGImages/{source[0].id}.jpg").read_bytes()


def test_ids_and_labels_are_found_without_the_images(made, monkeypatch):
    source = pickle.loads(pickle.dumps(open_source(NAME, "train_aug[3:-2]", root_of(made))))
    monkeypatch.setattr(type(source._records), "read", None)
    ids = made.train_aug[3:-2]
    assert [source.identifier(index) for index in range(len(source))] == ids
    labels = [np.flatnonzero(source.labels(index)).tolist() for index in range(len(source))]
    assert labels == [made.labels[identifier] for identifier in ids]
    assert source.most_classes == max(map(len, labels))


def as_release(made, root):
    made_voc.write_sbd(made, root / SBD)


def as_archive(made, root):
    made_voc.write_sbd_archive(made, manual(root) / "benchmark.tgz")


def as_pngs(made, root):
    found = voc_layout.find_voc(root)
    made_voc.write_pngs(made, (root if found.is_file() else found) / "SegmentationClassAug")


def as_tar(made, root):
    made_voc.write_voc_archive(made.folder, manual(root) / "VOCtrainval_11-May-2012.tar")


def as_tree(made, root, place=TREE):
    shutil.copytree(made.folder, root / place, dirs_exist_ok=True)


@pytest.mark.parametrize("more", [as_release, as_archive, as_pngs])
@pytest.mark.parametrize("first", [as_tree, as_tar])
def test_train_aug_is_the_same_from_every_form(first, more, made, tmp_path):
    first(made, tmp_path)
    more(made, tmp_path)
    source = open_source(NAME, "train_aug", tmp_path)
    assert_same(source, made, made.train_aug)
    assert source.fingerprint == open_source(NAME, "train_aug", root_of(made)).fingerprint
    built = [path.name for path in (tmp_path / NAME).glob("voc*")]
    assert built == ["voc2012_aug"]  # train and val would be built when they are asked for


@pytest.mark.parametrize(
    "place", ["", "VOC2012", TREE, "downloads/manual", f"downloads/manual/{TREE}"]
)
def test_a_tree_is_found(place, made, tmp_path, capsys):
    as_tree(made, tmp_path, place)
    assert_same(open_source(NAME, "val", tmp_path), made, made.splits["val"])
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"{NAME}: built from {tmp_path / place}, once",
        f"{NAME}: train has 7 images (published: 1,464)",
        f"{NAME}: val has 5 images (published: 1,449)",
    ]
    shutil.rmtree(tmp_path / place / "JPEGImages")
    assert len(open_source(NAME, "train", tmp_path)) == 7
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("place", ["{}", "{}/downloads/manual"])
def test_the_tar_and_sbds_folder_are_found(place, made, tmp_path):
    place = Path(place.format(tmp_path))
    made_voc.write_voc_archive(made.folder, place / "VOCtrainval_11-May-2012.tar")
    made_voc.write_sbd(made, place / "SBD")
    assert_same(open_source(NAME, "train_aug", tmp_path), made, made.train_aug)


def test_parts_and_fingerprints(made):
    root = root_of(made)
    sources = [
        open_source(NAME, split, root) for split in ("train", "val", "train_aug", "train_aug[:6]")
    ]
    part = open_source(NAME, "train_aug[:5]", root)
    assert [e.id for e in part] == made.train_aug[:5]
    assert len({source.fingerprint for source in (*sources, part)}) == 5
    for split in ("test", "trainval", "train+val", "train_aug2", ""):
        with pytest.raises(ValueError, match=r"has no split '.*'; it has train, val, train_aug,"):
            open_source(NAME, split, root)
    with pytest.raises(ValueError, match=r"voc2012/1.0.0 has no part 'train\[:99\]'"):
        open_source(NAME, "train[:99]", root)
    with pytest.raises(ValueError, match="has no config 'voc2012'; it has none"):
        open_source(f"{NAME}/voc2012", "train", root)


LINES = {
    "train_aug": "{}\n",
    "trainaug": "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png\r\n",
}


@pytest.mark.parametrize("name", LINES)
def test_a_list_of_train_aug_counts(name, made, copied):
    ids = list(reversed(made.train_aug[:9]))
    path = copied / TREE / f"ImageSets/Segmentation/{name}.txt"
    path.write_text("".join(LINES[name].format(identifier) for identifier in ids))
    (copied / SBD / "val.txt").write_text("2008_999999\n")
    assert_same(open_source(NAME, "train_aug", copied), made, ids)


def test_val_stays_out_of_train_aug(made, copied):
    held = made.splits["val"][2]
    assert held in (copied / SBD / "train.txt").read_text() + (copied / SBD / "val.txt").read_text()
    path = copied / TREE / "ImageSets/Segmentation/trainaug.txt"
    path.write_text(f"{made.splits['aug'][0]}\n{held}\n")
    refused(rf"trainaug.txt lists {held}, which is of val: .*out$", copied, "train_aug")


def test_without_sbd_train_and_val_do(made, tmp_path):
    as_tree(made, tmp_path)
    text = refused("split train_aug needs the masks of SBD", tmp_path, "train_aug")
    assert f"put it at {manual(tmp_path)}/benchmark.tgz" in text and "home.bharathh.info" in text
    assert "SegmentationClassAug/<id>.png beside SegmentationClass" in text
    assert os.listdir(tmp_path) == ["VOCdevkit"]
    assert len(open_source(NAME, "train", tmp_path)) == 7
    made_voc.write_sbd(made, tmp_path / SBD)
    assert len(open_source(NAME, "train_aug", tmp_path)) == 13


def test_missing_data_are_asked_for(tmp_path):
    text = refused("no PASCAL VOC 2012 in .* VOCtrainval_11-May-2012.tar", tmp_path)
    assert "host.robots.ox.ac.uk" in text and f"{tmp_path}/{TREE}/JPEGImages" in text
    assert list(tmp_path.iterdir()) == []


def test_labels_are_all_objects_and_no_parts(made):
    def labels(*objects):
        text = "".join(
            f"<object><name> {name} </name><difficult>{int(name == 'cow')}</difficult><part><name>"
            "head</name></part></object>"
            for name in objects
        )
        return labels_in_xml(f"<annotation>{text}</annotation>".encode(), known, "a.xml")

    known = ClassList(VOC_CLASSES, "VOC")
    assert labels("person", "cow", "person", "aeroplane") == [0, 9, 14]
    assert labels() == []
    for name in ("head", "background", "Person"):
        with pytest.raises(
            ValueError, match=f"^a.xml: an object is named '{name}', which is no class of VOC"
        ):
            labels(name)


def test_where_there_is_no_annotation_the_mask_tells(made, copied, capsys):
    for name in made.splits["train"]:
        (copied / TREE / f"Annotations/{name}.xml").unlink()
    assert_same(open_source(NAME, "train", copied), made, made.splits["train"])
    assert (
        "train has 7 images (published: 1,464); 7 have no annotation, their"
        in capsys.readouterr().err
    )


def test_pictures_of_every_kind(made, copied):
    names = made.splits["train"]
    folder = copied / TREE / "JPEGImages"
    for name, mode in zip(names, ("L", "CMYK", "P"), strict=False):
        suffix = "png" if mode == "P" else "jpg"
        Image.open(folder / f"{name}.jpg").convert(mode).save(folder / f"new.{suffix}")
        (folder / f"{name}.jpg").unlink()
        (folder / f"new.{suffix}").rename(folder / f"{name}.{suffix.upper()}")
    Image.new("RGB", (31, 17)).save(folder / f"{names[3]}.jpg")
    mask = np.zeros((17, 31), np.uint8)
    (copied / TREE / f"SegmentationClass/{names[3]}.png").write_bytes(encode_mask(mask))
    source = open_source(NAME, "train", copied)
    for example, suffix in zip(source, ("JPG", "JPG", "PNG"), strict=False):
        stored = Image.open(folder / f"{example.id}.{suffix}").convert("RGB")
        np.testing.assert_array_equal(example.image, np.asarray(stored))
    assert source[3].image.shape == (17, 31, 3)


def write_mask(tree, name, mask):
    (tree / f"SegmentationClass/{name}.png").write_bytes(encode_mask(mask))


def write_mat(tree, name, mask):
    (tree.parents[1] / SBD / f"cls/{name}.mat").write_bytes(made_voc.sbd_mat(mask))


def write_list(tree, data, split="train"):
    (tree / f"ImageSets/Segmentation/{split}.txt").write_bytes(data)


# What to do to a tree and an image of train of so many rows and columns, and the error.
TREES = {
    "label": (
        lambda tree, name, shape: write_mask(tree, name, np.full(shape, 21, np.uint8)),
        r"the mask .*/SegmentationClass/\d+_\d+.png has the label 21, wanted 0 to 20 .* or 255",
    ),
    "colours": (
        lambda tree, name, shape: Image.new("RGB", shape).save(
            tree / f"SegmentationClass/{name}.png"
        ),
        "cannot read the label mask .*SegmentationClass.*: its mode is RGB",
    ),
    "mask of another size": (
        lambda tree, name, shape: write_mask(tree, name, np.zeros((61, 80), np.uint8)),
        "mask .*/SegmentationClass/.*png is 80 pixels wide and 61 high, but its image 80 and 60$",
    ),
    "damaged mask": (
        lambda tree, name, shape: os.truncate(tree / f"SegmentationClass/{name}.png", 60),
        "cannot read the label mask .*SegmentationClass",
    ),
    "no mask": (
        lambda tree, name, shape: (tree / f"SegmentationClass/{name}.png").unlink(),
        r"/SegmentationClass has no \d+_\d+.png; get it from VOCtrainval_11-May-2012.tar",
    ),
    "no folder of masks": (
        lambda tree, name, shape: shutil.rmtree(tree / "SegmentationClass"),
        r"/SegmentationClass has no \d+_\d+.png; get it from VOCtrainval",
    ),
    "damaged image": (
        lambda tree, name, shape: os.truncate(tree / f"JPEGImages/{name}.jpg", 3),
        r"cannot read the image .*/JPEGImages/\d+_\d+.jpg: ",
    ),
    "two images": (
        lambda tree, name, shape: (tree / f"JPEGImages/{name}.jpeg").write_bytes(b""),
        "two files are named '.*': .*.jpeg and .*.jpg; rename one",
    ),
    "unknown name": (
        lambda tree, name, shape: (tree / f"Annotations/{name}.xml").write_text(
            "<annotation><object><name>unicorn</name></object></annotation>"
        ),
        r"/Annotations/\d+_\d+.xml: an object is named 'unicorn', .* class of PASCAL VOC \(your own: --con",
    ),
    "no xml": (
        lambda tree, name, shape: (tree / f"Annotations/{name}.xml").write_text("<annotation>"),
        r"/Annotations/\d+_\d+.xml is no annotation: no element found",
    ),
    "no list": (
        lambda tree, name, shape: (tree / "ImageSets/Segmentation/val.txt").unlink(),
        "/ImageSets/Segmentation has no val.txt; get it from VOCtrainval_11-May-2012.tar",
    ),
    "unknown id": (
        lambda tree, name, shape: write_list(tree, f"{name}\n\n../{name}\n".encode()),
        r"Segmentation/train.txt, line 3: JPEGImages has no image '../\d+_\d+'",
    ),
    "id twice": (
        lambda tree, name, shape: write_list(tree, f"{name}\n{name}\n".encode()),
        "Segmentation/train.txt, line 2: '.*' again; keep one",
    ),
    "no text": (
        lambda tree, name, shape: write_list(tree, b"\xff\xfe"),
        "Segmentation/train.txt is not UTF-8 text",
    ),
}
RELEASES = {
    "no mat": (
        lambda tree, name, shape: (tree.parents[1] / SBD / f"cls/{name}.mat").unlink(),
        r"there is no mask of \d+_\d+ in .*/dataset/cls, nor among VOC's own; get",
    ),
    "cut mat": (
        lambda tree, name, shape: os.truncate(tree.parents[1] / SBD / f"cls/{name}.mat", 300),
        r"/dataset/cls/\d+_\d+.mat is damaged or no MATLAB 5 file with GTcls.Segm.*; get it again",
    ),
    "label in mat": (
        lambda tree, name, shape: write_mat(tree, name, np.full(shape, 77, np.uint8)),
        r"the mask of \d+_\d+ in .*/dataset/cls has the label 77, wanted 0 to 20",
    ),
    "mat of another size": (
        lambda tree, name, shape: write_mat(tree, name, np.eye(9, dtype=np.uint8)),
        r"mask of \d+_\d+ in .*/cls is 9 pixels wide and 9 high, but its image 80",
    ),
    "no list of sbd": (
        lambda tree, name, shape: (tree.parents[1] / SBD / "val.txt").unlink(),
        "cannot read .*/dataset/val.txt: No such file",
    ),
    "sbd has more": (
        lambda tree, name, shape: (tree.parents[1] / SBD / "val.txt").write_text(
            "2008_777777\n2008_888888\n"
        ),
        "/JPEGImages has no 2008_777777, nor 1 others that .*/cls has; get VOCtrainval",
    ),
    "no list": TREES["no list"],
}


@pytest.mark.parametrize(
    ("split", "kind"), [*(("train", kind) for kind in TREES), *(("train_aug", k) for k in RELEASES)]
)
def test_what_is_wrong_is_named(split, kind, made, copied):
    spoil, message = (TREES if split == "train" else RELEASES)[kind]
    name = made.splits["train" if split == "train" else "aug"][1]
    spoil(copied / TREE, name, made.masks[name].shape)
    refused(message, copied, split)


def link(name):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
    return member


def spoil_archive(source, path, kind, below):
    """Rewrites a tar with one thing wrong in it, uncompressed or as `source` is."""
    mode = "w:gz" if source.suffix == ".tgz" else "w"
    path.parent.mkdir(parents=True)
    with tarfile.open(source) as tar, tarfile.open(path, mode, format=tarfile.GNU_FORMAT) as new:
        for number, member in enumerate(tar):
            if kind == "climbs" and number == 3:
                add_member(new, f"{below}/../../../x.jpg", b"x")
            if kind == "absolute" and number == 3:
                add_member(new, "/tmp/x.jpg", b"x")
            if kind == "link" and number == 5:
                new.addfile(link(f"{below}/2008_000001.{'mat' if mode == 'w:gz' else 'jpg'}"))
            if kind != "empty" or member.isdir():
                new.addfile(member, tar.extractfile(member) if member.isreg() else None)
            if kind == "twice" and number == 5:
                new.addfile(member, tar.extractfile(member))
    data = path.read_bytes()
    if kind == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "cut at the end":
        blocks = -(-len(data.rstrip(b"\0")) // 512)
        path.write_bytes(data[: blocks * 512] if mode == "w" else data[:-4])
    elif kind == "web page":
        path.write_bytes(b"<html>not found</html>" * 99)
    elif kind == "other compression":
        path.write_bytes(gzip.compress(data) if mode == "w" else gzip.decompress(data))
    elif kind == "bit":
        path.write_bytes(data[:-700] + bytes([data[-700] ^ 1]) + data[-699:])


TARS = {
    "climbs": "holds 'VOCdevkit/VOC2012/JPEGImages/../../../x.jpg', which leads out of it; get it",
    "absolute": "holds '/tmp/x.jpg', which leads out of it",
    "link": "JPEGImages/2008_000001.jpg is no file, or larger than any published",
    "twice": "holds VOCdevkit/VOC2012/.* twice",
    "empty": "holds no VOCdevkit/VOC2012",
    "cut": r"is (damaged or no tar file|cut short or damaged)",
    "cut at the end": "is cut short or damaged after VOCdevkit/VOC2012/SegmentationClass/.*.png",
    "web page": "is damaged or no tar file",
    "other compression": "is damaged or no tar file",
}
TGZS = {
    "climbs": "holds 'benchmark_RELEASE/dataset/cls/../../../x.jpg', which leads out of it",
    "absolute": "holds '/tmp/x.jpg', which leads out of it",
    "link": "cls/2008_000001.mat is no file, or larger than any published",
    "empty": "has no benchmark_RELEASE/dataset/train.txt",
    "cut": "is damaged or no archive of SBD",
    "cut at the end": "is damaged or no archive of SBD",
    "bit": "is damaged or no|MATLAB 5",
    "web page": "is damaged or no archive of SBD .*gzip",
    "other compression": "is damaged or no archive of SBD .*gzip",
}


@pytest.mark.parametrize("kind", TARS)
def test_a_spoilt_tar_is_refused(kind, made, tmp_path):
    source = tmp_path / "whole.tar"
    made_voc.write_voc_archive(made.folder, source)
    path = manual(tmp_path / "a") / "VOCtrainval_11-May-2012.tar"
    spoil_archive(source, path, kind, f"{TREE}/JPEGImages")
    text = refused(TARS[kind], tmp_path / "a")
    assert text.startswith(str(path)) and text.endswith("again")
    files = {file for file in tmp_path.rglob("*") if file.is_file()}
    notes = {tmp_path / "a" / name for name in (f".{NAME}.lock", f"{NAME}/.config/metadata.json")}
    assert files == {source, path, *notes}


@pytest.mark.parametrize("kind", TGZS)
def test_a_spoilt_archive_of_sbd_is_refused(kind, made, tmp_path):
    source = tmp_path / "whole.tgz"
    made_voc.write_sbd_archive(made, source)
    as_tree(made, tmp_path / "a")
    path = manual(tmp_path / "a") / "benchmark.tgz"
    spoil_archive(source, path, kind, f"{SBD}/cls")
    text = refused(TGZS[kind], tmp_path / "a", "train_aug")
    assert text.startswith(str(path)) and text.endswith("again")


def test_huge_members_are_refused(made, tmp_path, monkeypatch):
    as_tree(made, tmp_path / "a")
    as_archive(made, tmp_path / "a")
    as_tar(made, tmp_path / "b")
    monkeypatch.setattr(files, "LARGEST_FILE", 400)
    refused("cls/.*mat is no file, or larger than any published", tmp_path / "a", "train_aug")
    refused("VOC2012/.* is no file, or larger than any published", tmp_path / "b")
