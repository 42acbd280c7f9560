import gzip
import io
import os
import pickle
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorflow_datasets.core import shuffle

from tests.made_imagenet import add_member, make_validation_tar
from vitx.data.class_names import imagenet_names
from vitx.data.datasets import imagenet2012 as imagenet
from vitx.data.loader import Augment, evaluation_batches, training_loader
from vitx.data.source import open_source

ROOT = Path(__file__).parents[2]
NAME = "imagenet2012"
# As the widely used script valprep.sh sorts them into class folders.
SORTED = {
    911: "n01514668",
    967: "n13040303",
    1000: "n03018349",
    1079: "n15075141",
    1108: "n01739381",
    1147: "n02105855",
    1228: "n02085782",
    1272: "n01768244",
}


def place(root):
    return root / "downloads" / "manual" / "ILSVRC2012_img_val.tar"


def wnid(name):
    return imagenet.wnids()[imagenet.class_of(name)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return root, make_validation_tar(place(root), 64, seed=1)


def in_class_folders(folder, files):
    for name, data in files.items():
        (folder / wnid(name)).mkdir(parents=True, exist_ok=True)
        (folder / wnid(name) / name).write_bytes(data)


def in_one_folder(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


LAYOUTS = {
    "class folders": lambda root, files: in_class_folders(root / "val", files),
    "class folders at the root": in_class_folders,
    "one folder": lambda root, files: in_one_folder(root / "val", files),
    "one folder at the root": in_one_folder,
}


def pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_classes_are_those_of_the_1000_synsets():
    assert len(imagenet.wnids()) == 1000 == len(set(imagenet.wnids()))
    assert list(imagenet.wnids()) == sorted(imagenet.wnids())
    # tench, tiger cat, toilet tissue: as models with ImageNet's outputs count them
    assert [imagenet.wnids()[n] for n in (0, 282, 999)] == ["n01440764", "n02123159", "n15075141"]


def test_numbers_in_names_tell_the_class():
    for number, expected in SORTED.items():
        assert wnid(f"ILSVRC2012_val_{number:08d}.JPEG") == expected
    classes = [imagenet.class_of(f"ILSVRC2012_val_{n:08d}.JPEG") for n in range(1, 50001)]
    np.testing.assert_array_equal(np.bincount(classes), np.full(1000, 50))
    for name in ("00000000.JPEG", "00050001.JPEG", "00000001.png", "1.JPEG", "00000001.JPEG\n"):
        assert imagenet.class_of(f"ILSVRC2012_val_{name}") is None
    assert imagenet.class_of("n01440764_10026.JPEG") is None


def test_the_tar_holds_what_the_real_one_does(made):
    _, files = made
    images = [Image.open(io.BytesIO(data)) for data in files.values()]
    assert {(i.format, i.mode) for i in images} == {
        ("JPEG", "RGB"),
        ("JPEG", "L"),
        ("JPEG", "CMYK"),
        ("PNG", "RGB"),
    }
    assert any(image.getexif().get(0x0112) == 6 for image in images)
    with tarfile.open(place(made[0])) as tar:
        assert sorted(tar.getnames()) == sorted(files) != tar.getnames()


def test_images_come_by_their_numbers_with_their_labels(made):
    root, files = made
    source = open_source(NAME, "validation", root)
    assert len(source) == 64 and source.classes == ("background", *imagenet_names())
    assert source.most_classes == 1 and source.name == "imagenet2012_validation/1.0.0"
    for example, (name, data) in zip(source, sorted(files.items()), strict=True):
        assert f"{example.id}.JPEG" == name and example.mask is None
        assert example.image.dtype == np.uint8
        # The orientation is not applied, as torchvision does not; see docs/protocol.md, "Images".
        np.testing.assert_array_equal(example.image, pillow(data))
        assert example.labels.shape == (1000,) and example.labels.dtype == np.float32
        assert np.flatnonzero(example.labels).tolist() == [imagenet.class_of(name)]
    np.testing.assert_array_equal(source.labels(-2), source[62].labels)
    with pytest.raises(IndexError):
        source.labels(64)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_examples(layout, made, tmp_path):
    root, files = made
    LAYOUTS[layout](tmp_path, files)
    (tmp_path / "shapes").mkdir()  # other data of the same root
    (tmp_path / "notes.txt").write_text("not an image")
    source, built = (open_source(NAME, "validation", place) for place in (tmp_path, root))
    assert source.name == NAME and source.classes == built.classes and source.most_classes == 1
    assert not source.has_masks and not built.has_masks
    for example, other in zip(source, built, strict=True):
        assert example.id == other.id
        np.testing.assert_array_equal(example.image, other.image)
        np.testing.assert_array_equal(example.labels, other.labels)
    part = open_source(NAME, "validation[25%:50%][:4]", tmp_path)
    assert [e.id for e in part] == [e.id for e in open_source(NAME, "validation[16:20]", root)]


def test_a_half_sorted_folder_is_whole(made, tmp_path):
    files = dict(list(made[1].items())[:12])
    in_class_folders(tmp_path / "val", dict(list(files.items())[:5]))
    in_one_folder(tmp_path / "val", dict(list(files.items())[5:]))
    source = open_source(NAME, "validation", tmp_path)
    assert [f"{e.id}.JPEG" for e in source] == sorted(files)
    in_one_folder(tmp_path / "val", dict(list(files.items())[4:5]))
    with pytest.raises(ValueError, match=r"two images 'ILSVRC2012_val_00000005': .* rename one"):
        open_source(NAME, "validation", tmp_path)


def test_a_part_of_the_classes_keeps_their_numbers(made, tmp_path):
    names = [f"n{i:08d}_7.JPEG" for i in range(2)]
    for name, folder in zip(names, ("n02123159", "n15075141"), strict=True):
        in_one_folder(tmp_path / folder, {name: next(iter(made[1].values()))})
    source = open_source(NAME, "validation", tmp_path)
    assert [int(source.labels(i).argmax()) for i in range(2)] == [282, 999]
    in_one_folder(tmp_path / "n00007846", {"n00007846_1.JPEG": b""})  # ImageNet-21k's person
    with pytest.raises(ValueError, match="n00007846 is none of the 1000 classes"):
        open_source(NAME, "validation", tmp_path)


def one_per_line(pairs):
    return "".join(f"{name} {label}\n" for name, label in pairs)


def kaggle(pairs):
    boxes = "{1} 85 1 499 272 n02085782 3 4 50 60 "
    lines = [f"{name},{boxes.format(name, label)}" for name, label in pairs]
    return "\r\n".join(["ImageId,PredictionString", *lines, ""])


RENAMED = {"b 1.png": 282, "a.jpeg.webp": 999, "10.GIF": 0, "9.tif": 0}


def renamed(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(RENAMED):
        Image.new("RGB", (9, 7), (50 * number, 0, 0)).save(folder / name)
    for other in (".hidden.png", "Thumbs.db", "notes.md"):
        (folder / other).write_bytes(b"no image")


LABEL_FILES = {
    "val.txt": one_per_line(RENAMED.items()),
    "labels.txt": "\n".join(  # of the images as they were before converting
        f"  val/{Path(name).stem}\t{imagenet.wnids()[label]}  \n"
        for name, label in reversed(RENAMED.items())
    ),
    "LOC_val_solution.csv": kaggle(
        (Path(name).stem, imagenet.wnids()[label])
        for name, label in [*RENAMED.items(), ("not here", 5)]
    ),
}


@pytest.mark.parametrize("name", LABEL_FILES)
@pytest.mark.parametrize(("folder", "beside"), [("val", "val"), ("val", "."), (".", ".")])
def test_a_file_labels_images_of_any_name(name, folder, beside, tmp_path):
    renamed(tmp_path / folder)
    (tmp_path / beside / name).write_text(LABEL_FILES[name], "utf-8-sig")
    source = open_source(NAME, "validation", tmp_path)
    assert [e.id for e in source] == ["10", "9", "a.jpeg", "b 1"]
    assert [int(e.labels.argmax()) for e in source] == [0, 0, 999, 282]
    np.testing.assert_array_equal(source[2].image.shape, (7, 9, 3))


def test_published_names_may_be_labelled_too(made, tmp_path):
    in_one_folder(tmp_path, made[1])
    named = open_source(NAME, "validation", tmp_path)
    labels = [(Path(name).stem, wnid(name)) for name in made[1]]
    (tmp_path / "LOC_val_solution.csv").write_text(kaggle(labels))
    assert open_source(NAME, "validation", tmp_path).fingerprint == named.fingerprint
    converted = tmp_path / "converted" / "val"
    in_one_folder(converted, {f"{stem}.png": made[1][f"{stem}.JPEG"] for stem, _ in labels})
    numbers = [(name, imagenet.class_of(name)) for name in made[1]]  # Caffe's val.txt
    (converted.parent / "val.txt").write_text(one_per_line(numbers))
    source = open_source(NAME, "validation", converted.parent)
    for index in range(64):
        np.testing.assert_array_equal(source.labels(index), named.labels(index))


def test_fingerprints_follow_the_labels(tmp_path):
    renamed(tmp_path)
    prints = []
    for label in (999, 998, 999):
        labels = one_per_line({**RENAMED, "a.jpeg.webp": label}.items())
        (tmp_path / "val.txt").write_text(labels)
        prints.append(open_source(NAME, "validation", tmp_path).fingerprint)
    assert prints[0] == prints[2] != prints[1]


WHOLE = LABEL_FILES["val.txt"]


KAGGLE = "LOC_val_solution.csv"
BAD_LABELS = [
    ("val.txt", "10 0\n9.tif 0\n", " has no line for 2 of the 4 images in {}, the first a.jpeg"),
    ("val.txt", f"{WHOLE}\nx n00007846", ", line 6: 'n00007846' is no class; wanted a WordNet"),
    ("val.txt", f"{WHOLE}x 1000", ", line 5: '1000' is no class; .* from 0 to 999"),
    ("val.txt", "10 -1", ", line 1: '-1' is no class"),
    ("val.txt", "10 0.0", ", line 1: '0.0' is no class"),
    ("val.txt", f"{WHOLE}x n01440764", ", line 5: some classes are numbers and some WordNet"),
    ("val.txt", f"{WHOLE}a.jpeg 999", ", line 5: a.jpeg again; keep one line"),
    ("labels.txt", "490\n361\n", ", line 1: wanted an image's name and its class, found '490'"),
    ("labels.txt", "tench, Tinca tinca\n", ", line 1: 'tinca' is no class"),
    (
        "val.txt",
        "ILSVRC2012_val_00000911.JPEG 1",
        r", line 1: .* \(n01514668\), not 1; count from 0",
    ),
    (KAGGLE, kaggle([("a.jpeg", "n0")]), ", line 2: 'n0' is no class"),
    (KAGGLE, "ImageId,PredictionString\na,\n", ", line 2: wanted .* found 'a,'"),
    (KAGGLE, "a,n0144 " * 20_000, ", line 1: 'n0144' is no class"),
    ("val.txt", "10 0\n\udcff 0", ": 'utf-8' codec"),
]


@pytest.mark.parametrize(("file", "text", "message"), BAD_LABELS)
def test_bad_labels_are_named_by_file_and_line(file, text, message, tmp_path):
    renamed(tmp_path / "val")
    (tmp_path / file).write_bytes(text.encode(errors="surrogateescape"))
    match = f"{tmp_path / file}{message.format(tmp_path / 'val')}"
    with pytest.raises(ValueError, match=match) as e:
        open_source(NAME, "validation", tmp_path)
    assert "\n" not in str(e.value)


def test_two_files_of_labels_are_one_too_many(tmp_path):
    renamed(tmp_path / "val")
    for path in (tmp_path / "val.txt", tmp_path / "val" / "labels.txt"):
        path.write_text(WHOLE)
    with pytest.raises(ValueError, match=r"val/labels.txt and .*/val.txt both label .* keep one"):
        open_source(NAME, "validation", tmp_path)


def test_images_of_no_known_class_are_not_dropped(made, tmp_path):
    folder = tmp_path / "val"
    renamed(folder)
    wanted = rf"of 4 of the 4 images in {folder}, the first 10.GIF: .*{folder}/val.txt, with lines"
    with pytest.raises(ValueError, match=wanted):
        open_source(NAME, "validation", tmp_path)
    in_one_folder(folder, made[1])
    with pytest.raises(ValueError, match=r"of 4 of the 68 images .* name them as published"):
        open_source(NAME, "validation", tmp_path)
    truth = "ILSVRC2012_validation_ground_truth.txt"
    (tmp_path / truth).write_text("490\n361\n")
    with pytest.raises(ValueError, match=rf"first 10.GIF \({truth} does not: it names no images"):
        open_source(NAME, "validation", tmp_path)
    for name in RENAMED:
        (folder / name).unlink()
    assert len(open_source(NAME, "validation", tmp_path)) == 64  # by their names


def test_unknown_splits_and_configs(made, tmp_path):
    in_class_folders(tmp_path, made[1])
    for root in (made[0], tmp_path):
        for split in ("train", "val", "validation[:99]", "validation[a:b]"):
            with pytest.raises(ValueError, match=r"has no (split|part) 'val|has no split 'train'"):
                open_source(NAME, split, root)
        with pytest.raises(ValueError, match="has no config 'small'; it has none"):
            open_source(f"{NAME}/small", "validation", root)
        with pytest.raises(ValueError, match=r"'validation\[7:7\]' .*has no examples"):
            open_source(NAME, "validation[7:7]", root)


def test_missing_images_are_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        open_source(NAME, "validation", tmp_path)
    message = str(raised.value)
    for part in ("ILSVRC2012_img_val.tar", "image-net.org", f"put it at {place(tmp_path)}"):
        assert part in message
    assert f"{tmp_path}/val" in message and "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_a_broken_image_is_named_when_it_is_read(made, tmp_path):
    files = {
        **dict(list(made[1].items())[:6]),
        "ILSVRC2012_val_00000003.JPEG": b"\xff\xd8\xff junk",
    }
    in_class_folders(tmp_path / "folders", files)
    path = place(tmp_path / "tar")
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            add_member(tar, name, data)
    for root, named in (
        ("folders", rf"{tmp_path}/.*/ILSVRC2012_val_00000003.JPEG of imagenet2012:"),
        ("tar", "ILSVRC2012_val_00000003 of imagenet2012_validation/1.0.0:"),
    ):
        source = open_source(NAME, "validation", tmp_path / root)
        assert source[1].image.ndim == 3
        assert source.labels(2).sum() == 1
        with pytest.raises(ValueError, match=rf"cannot read the image {named}"):
            source[2]


def test_fingerprints_follow_the_tar(made, tmp_path):
    root, _ = made
    make_validation_tar(place(tmp_path), 64, seed=2)
    sources = [
        open_source(NAME, "validation", root),
        open_source(NAME, "validation", tmp_path),
        open_source(NAME, "validation[:63]", root),
    ]
    assert len({source.fingerprint for source in sources}) == 3
    assert open_source(NAME, "validation", root).fingerprint == sources[0].fingerprint


def test_loaders_read_both_forms(made, tmp_path):
    root, files = made
    in_class_folders(tmp_path, files)

    class Preprocess:
        mean, std, size = (0.5,) * 3, (0.5,) * 3, (24, 24)

    batches = []
    for place_of_data in (root, tmp_path):
        source = pickle.loads(pickle.dumps(open_source(NAME, "validation", place_of_data)))
        batch = evaluation_batches(source, preprocess=Preprocess, batch_size=32)[1]
        assert batch["labels"].shape == (32, 1000) and batch["image"].shape == (32, 24, 24, 3)
        trained = next(
            training_loader(
                source, preprocess=Preprocess, batch_size=8, epochs=1, seed=0, augment=Augment()
            )
        )
        batches.append((batch, trained))
    for one, other in zip(*batches, strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["labels"], other["labels"])


def add_link(tar, name, data):
    link = tarfile.TarInfo(name)
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
    tar.addfile(link)


FIRST, SECOND = (f"ILSVRC2012_val_{n:08d}.JPEG" for n in (1, 2))
# What a tar has after its first image, and the error.
MEMBERS = {
    "climbs": (f"../../{SECOND}", add_member, f" holds '../../{SECOND}', which leads out of it"),
    "absolute": (f"/tmp/{SECOND}", add_member, f" holds '/tmp/{SECOND}', which leads out of it"),
    "another name": ("n01440764_18.JPEG", add_member, " holds 'n01440764_18.JPEG', but .* has only"),
    "number 50001": (
        "ILSVRC2012_val_00050001.JPEG", add_member, " holds 'ILSVRC2012_val_00050001.JPEG', but"
    ),
    "link": (SECOND, add_link, f": {SECOND} is no file"),
    "twice": (FIRST, add_member, f" holds {FIRST} twice"),
}  # fmt: skip
# What becomes of the bytes of a tar of two images, of which the second begins at a place, and the error.
BYTES = {
    "compressed": (lambda whole, place: gzip.compress(whole), " is damaged or no tar file"),
    "web page": (lambda whole, place: b"<html>log in</html>" * 99, " is damaged or no tar file"),
    "cut in an image": (
        lambda whole, place: whole[: place + 600],
        r" is damaged or no tar file \(unexpected end of data\)",
    ),
    "cut in a header": (
        lambda whole, place: whole[: place + 100],
        f" is cut short or damaged after {FIRST}",
    ),
    "cut between images": (
        lambda whole, place: whole[:place],
        f" is cut short or damaged after {FIRST}",
    ),
    "damaged header": (
        lambda whole, place: whole[: place + 80] + b"!!!!" + whole[place + 84 :],
        f" is cut short or damaged after {FIRST}",
    ),
    "empty": (lambda whole, place: bytes(10240), " holds no images"),
}


@pytest.mark.parametrize("kind", [*MEMBERS, *BYTES])
def test_a_spoilt_tar_is_refused_in_one_line(kind, made, tmp_path):
    root = tmp_path / "a" / "b"
    path = place(root)
    path.parent.mkdir(parents=True)
    data = made[1][FIRST]
    name, add, message = MEMBERS.get(kind, (SECOND, add_member, ""))
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        add_member(tar, FIRST, data)
        add(tar, name, data)
    if kind in BYTES:
        spoil, message = BYTES[kind]
        path.write_bytes(spoil(path.read_bytes(), 512 + -(-len(data) // 512) * 512))
    with pytest.raises(ValueError, match=f"^{path}{message}") as raised:
        open_source(NAME, "validation", root)
    assert str(raised.value).endswith("again") and "\n" not in str(raised.value)
    # Nothing is left half built, and nothing was written elsewhere.
    files = [found for found in tmp_path.rglob("*") if found.is_file()]
    assert sorted(files) == sorted([path, root / ".imagenet2012_validation.lock"])


def test_a_tar_with_dots_and_folders_before_the_names(made, tmp_path):
    path = place(tmp_path)
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:  # as `tar -C val -c .` writes
        folder = tarfile.TarInfo("./")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in list(made[1].items())[:5]:
            add_member(tar, f"./{name}", data)
    source = open_source(NAME, "validation", tmp_path)
    np.testing.assert_array_equal(source[4].image, pillow(list(made[1].values())[4]))


def test_more_than_fits_tfds_memory_needs_no_tensorflow(monkeypatch, tmp_path):
    """Beyond this TFDS's own writer sorts in files, through TensorFlow; ImageNet is 6.3 GB."""
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 100)
    files = make_validation_tar(place(tmp_path), 8)
    source = open_source(NAME, "validation", tmp_path)
    assert [f"{example.id}.JPEG" for example in source] == list(files)
    assert "tensorflow" not in sys.modules


FULL = """
    import resource, signal, sys
    from vitx.data import source
    from vitx.runtime.files import WriteError

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    try:
        source.open_source("imagenet2012", "validation", sys.argv[1])
    except WriteError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_full_disk_is_explained(tmp_path):
    make_validation_tar(place(tmp_path), 64)
    command = [sys.executable, "-c", textwrap.dedent(FULL), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(f"cannot build imagenet2012_validation in {tmp_path}: ")
    assert "File too large" in ended.stdout and len(ended.stdout.splitlines()) == 1
    assert os.listdir(tmp_path / "imagenet2012_validation") == []
