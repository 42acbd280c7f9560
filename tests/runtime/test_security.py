"""Files from strangers: none runs code, opens another file, or takes unbounded memory."""

import ast
import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import time
import tracemalloc
import warnings
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import EpsImagePlugin, Image
from safetensors import safe_open
from safetensors.numpy import save_file

import vitx
from tests.made_imagenet import add_member, make_gtsegs
from tests.made_voc import sbd_mat
from tests.runtime.scripts import ended
from tests.small_models import small_vit
from vitx.data.class_names import read_classes, read_names
from vitx.data.datasets import imagenet2012
from vitx.data.formats import sbd
from vitx.data.formats.gtsegs import read_gtsegs
from vitx.data.formats.voc_annotations import PASCAL, labels_in_xml
from vitx.data.formats.voc_layout import Tree
from vitx.data.palette import decode_mask
from vitx.data.transforms import image_size, read_image
from vitx.data.user_images import find_images, read_user_image
from vitx.images import pictures
from vitx.runtime import files
from vitx.runtime.files import WorkdirError, read_npz
from vitx.runtime.workdir import StageFolder
from vitx.training.checkpointing import Checkpoints
from vitx.weights.files import open_checkpoint

ROOT = Path(__file__).parents[2]
MB = 2**20


class Planted:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.fixture
def marker(tmp_path):
    """A folder that hostile files try to create; none may."""
    path = tmp_path / "ran"
    yield path
    assert not path.exists(), "a file ran code"


def test_planted_pickles_would_run(tmp_path):
    pickle.loads(pickle.dumps(Planted(tmp_path / "ran")))
    assert (tmp_path / "ran").is_dir()


# Every kind of pickle, for every reader of files


def legacy_torch(planted):
    """Before version 1.6: a magic number, a protocol version, sizes, and the pickle."""
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {"weight": planted}, [])
    return b"".join(pickle.dumps(part, 2) for part in parts)


def zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in members.items():
            file.writestr(name.replace("__", "/").replace("_", "."), data)
    return buffer.getvalue()


def saved(save, planted, **options):
    buffer = io.BytesIO()
    save(buffer, np.array([planted], object), **options)
    return buffer.getvalue()


PICKLES = {
    **{f"protocol {n}": lambda planted, n=n: pickle.dumps(planted, n) for n in (0, 1, 2, 5)},
    "legacy torch": legacy_torch,
    "torch": lambda planted: zipped(
        archive__data_pkl=pickle.dumps({"weight": planted}, 2), archive__version="3"
    ),
    "npy": lambda planted: saved(np.save, planted, allow_pickle=True),
    "npz": lambda planted: saved(np.savez, planted),
    "pickle as npy": lambda planted: zipped(arr_npy=pickle.dumps(planted)),
    "gzip": lambda planted: gzip.compress(pickle.dumps(planted)),
    "safetensors' length": lambda planted: struct.pack("<Q", 9) + b"{" + pickle.dumps(planted),
}


def read_stage(path):
    path.rename(path.parent / "stage.json")
    StageFolder(path.parent, {})


READERS = {
    **{
        f"checkpoint {name}": lambda path, name=name: vitx.load(path.rename(path.with_name(name)))
        for name in ("w.safetensors", "w.pth", "w.pt", "w.bin", "w.npz", "w.npy")
    },
    "checkpoint folder": lambda path: vitx.load(
        path.rename(path.with_name("model.safetensors")).parent
    ),
    "cues": read_npz,
    "stage.json": read_stage,
    "image": read_image,
    "user's image": read_user_image,
    "mask": lambda path: decode_mask(path.read_bytes(), str(path)),
    "image size": lambda path: image_size(path.read_bytes(), str(path)),
    "upright image size": lambda path: image_size(path.read_bytes(), str(path), upright=True),
    "annotation": lambda path: labels_in_xml(path.read_bytes(), PASCAL, str(path)),
    "classes": read_classes,
    "class names": lambda path: read_names(path, 10),
    "SBD's mask": lambda path: sbd.segmentation(path.read_bytes(), str(path)),
    "SBD's archive": lambda path: sbd.open_masks(path, ()),
    "VOC's archive": Tree,
    "ImageNet's archive": imagenet2012.tar_images,
    "ImageNet-Segmentation": lambda path: list(read_gtsegs(path)),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", PICKLES)
def test_no_reader_unpickles(kind, reader, tmp_path, marker):
    path = tmp_path / "folder" / "x"
    path.parent.mkdir()
    path.write_bytes(PICKLES[kind](Planted(marker)))
    with pytest.raises(ValueError) as raised:
        READERS[reader](path)
    assert str(path.parent) in str(raised.value) and "\n" not in str(raised.value)


def test_checkpoints_of_a_run_are_no_pickles(tmp_path, marker):
    state = {"x": np.arange(3.0)}
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, state)
    kept = [path for path in (tmp_path / "c").rglob("*") if path.is_file()]
    assert kept
    for path in kept:
        path.write_bytes(pickle.dumps(Planted(marker)))
    damaged = pytest.raises(WorkdirError, match=r"all checkpoints in .* are damaged")
    with Checkpoints(tmp_path / "c") as checkpoints, damaged:
        checkpoints.restore_latest(state)


UNSAFE = {
    "eval", "exec", "compile", "__import__", "loadmat", "extract", "extractall", "unpack_archive", "system", "popen",
    "unsafe_load", "full_load", "read_pickle", "XMLParser", "iterparse",
}  # fmt: skip


def test_nothing_unsafe_is_called():
    """PyTorch's `eval` of a model runs no text; the parser is the one that refuses document types."""
    found, seen = [], 0
    for path in [*ROOT.glob("vitx/**/*.py"), *ROOT.glob("configs/*.py"), *ROOT.glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            name = called.rpartition(".")[2]
            options = {word.arg: ast.unparse(word.value) for word in node.keywords}
            seen += 1
            bad = (
                (name in UNSAFE and called not in ("re.compile", "built.eval", "ET.XMLParser"))
                or called.startswith(("pickle.", "yaml.", "marshal.", "shelve.", "dill."))
                or (called == "np.load" and options.get("allow_pickle") != "False")
                or (called == "torch.load" and options.get("weights_only") != "True")
                or (called == "Image.open" and "formats" not in options)
                or options.get("shell") == "True"
            )
            if bad:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)[:80]}")
    assert seen > 3000 and not found


# Checkpoints


def weights(folder):
    path = folder / "model.safetensors"
    save_file({"cls_token": np.ones((1, 1, 64), np.float32)}, path)
    return path


@pytest.mark.parametrize(
    "name", ["config.json", "preprocessor_config.json", "processor_config.json"]
)
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"[" * 10**6, "it nests too deeply"),
        (b'{"a":' * 10**5, "it nests too deeply"),
        (b" " * (16 * MB) + b"{}", "it has 16,777,218 bytes"),
        (b'{"num_attention_heads": ' + b"9" * 5000 + b"}", "digits"),
        (b"\xff\xfe", "decode"),
    ],
)
def test_absurd_json_beside_a_checkpoint(name, content, what, tmp_path):
    path = weights(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as raised:
        vitx.load(path)
    text = str(raised.value)
    assert text.startswith(f"{path}: {name} beside it is damaged") and what in text
    assert len(text) < 500


def test_what_is_no_file_is_refused_before_it_is_read(tmp_path):
    """In a process of its own, since reading a FIFO or /dev/zero never ends."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    paths = ["/dev/zero", "/dev/null", tmp_path / "fifo", tmp_path / "link"]
    script = """
import sys, vitx
from vitx.weights import digest
for path in sys.argv[1:]:
    for read in (vitx.load, digest):
        try:
            read(path)
        except ValueError as error:
            print(error)
"""
    code, output, errors = ended(script, *paths)
    assert code == 0, errors
    lines = output.splitlines()
    assert len(lines) == 2 * len(paths) and all("not a regular file" in line for line in lines)
    for path, *named in zip(paths, lines[::2], lines[1::2], strict=True):
        assert all(str(path) in line for line in named)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mean", "[" * 10**5),
        ("std", f"[{'9' * 400}, 1, 1]"),
        ("norm_eps", "1" + "0" * 400),
        ("image_size", "1000000000"),
        ("grid", "[100000, 100000]"),
    ],
)
def test_absurd_metadata(name, value, tmp_path):
    model = small_vit()
    vitx.save(model, tmp_path / "good.safetensors")
    with safe_open(tmp_path / "good.safetensors", "np") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    path = tmp_path / "bad.safetensors"
    save_file(tensors, path, metadata | {name: value})
    with pytest.raises(ValueError) as raised:
        vitx.load(path)
    assert name in str(raised.value) and len(str(raised.value)) < 600


@pytest.mark.parametrize(
    ("length", "header"),
    [
        (2**63, b"{}"),
        (2**40, b"{}"),
        (200 * MB, b"{" + b" " * 4096),
        (10**6, b'{"a":' + b"[" * (10**6 - 5)),
        (90, b'{"a":{"dtype":"F32","shape":[99999999999,99999999999],"data_offsets":[0,4]}}'.ljust(90)),
        (90, b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,99999999999999]}}'.ljust(90)),
    ],
)  # fmt: skip
def test_absurd_safetensors(length, header, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", length) + header)
    if length == 200 * MB:
        os.truncate(path, length + 8)  # a hole on the disk
    with pytest.raises(ValueError, match=r"damaged or no \.safetensors file") as raised:
        vitx.load(path)
    assert str(path) in str(raised.value)


def npz(arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def open_weights(path):
    with open_checkpoint(path):
        pass


@pytest.mark.parametrize("read", [open_weights, read_npz])
def test_zip_bombs(read, tmp_path, monkeypatch):
    path, zeros = tmp_path / "w.npz", {"x": np.zeros(4 * MB, np.uint8)}
    path.write_bytes(npz(zeros))
    read(path)  # a few megabytes are no bomb, whatever they are
    monkeypatch.setattr(files, "_EXPANDED", MB)
    with pytest.raises(ValueError, match=r"it would expand from [\d,]+ to 4,194,\d+ bytes"):
        read(path)
    path.write_bytes(npz({"x": np.random.default_rng(0).random(MB)}))
    read(path)


@pytest.mark.parametrize("read", [open_weights, read_npz])
@pytest.mark.parametrize("shape", ["(1099511627776,)", "(9999999999999, 9999999999999)"])
def test_arrays_that_claim_more_than_there_is(read, shape, tmp_path):
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    array = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + bytes(64)
    path = tmp_path / "w.npz"
    path.write_bytes(zipped(x_npy=array))
    with pytest.raises(ValueError, match=r"damaged|claims|allocate"):
        read(path)


def test_damaged_deflate_is_named(tmp_path):
    path = tmp_path / "w.npz"
    data = bytearray(npz({"x": np.random.default_rng(0).integers(0, 9, 5000)}))
    data[300:600] = bytes(300)
    path.write_bytes(data)
    for read in (read_npz, vitx.load):
        with pytest.raises(ValueError, match=str(path)):
            read(path)


# XML

SECRET = "the content of another file"
LAUGHS = "".join(f'<!ENTITY a{n + 1} "{f"&a{n};" * 10}">' for n in range(9))


@pytest.mark.parametrize(
    "text",
    [
        f'<!DOCTYPE annotation [<!ENTITY a0 "ha">{LAUGHS}]><annotation>&a9;</annotation>',
        f'<!DOCTYPE a [<!ENTITY b "{"x" * 50_000}">]><annotation>{"&b;" * 50_000}</annotation>',
        '<!DOCTYPE a [<!ENTITY b SYSTEM "FILE">]>'
        "<annotation><object><name>&b;</name></object></annotation>",
        '<!DOCTYPE a SYSTEM "FILE"><annotation/>',
        '<!DOCTYPE a [<!ENTITY % b SYSTEM "FILE"> %b;]><annotation/>',
    ],
)
def test_entities_are_never_expanded(text, tmp_path):
    (tmp_path / "secret").write_text(SECRET)
    data = text.replace("FILE", (tmp_path / "secret").as_uri()).encode()
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(ValueError, match="x is no annotation: it declares a document") as raised:
        labels_in_xml(data, PASCAL, "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert SECRET not in str(raised.value)
    assert time.process_time() - began < 2 and peak < 8 * MB


def test_deeply_nested_xml_is_an_error(tmp_path):
    data = b"<annotation>" + b"<object>" * 300_000
    with pytest.raises(ValueError, match="x is no annotation"):
        labels_in_xml(data, PASCAL, "x")


# Pictures


def png(width, height):
    """The beginning of a PNG whose header claims so many pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IEND\xaeB`\x82"


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(("side", "count"), [(10_000, "100,000,000"), (40_000, "1,600,000,000")])
def test_pictures_beyond_the_limit_are_one_error(side, count, strict, tmp_path):
    """Pillow warns of the first and raises for the second."""
    path = tmp_path / "x.png"
    path.write_bytes(png(side, side))
    readers = ("image", "user's image", "mask", "image size")
    for reader in readers:
        with warnings.catch_warnings(), pytest.raises(ValueError) as raised:
            warnings.simplefilter("error" if strict else "ignore")
            READERS[reader](path)
        expected = (
            f"{path}: it has {count} pixels, over the limit of 89,478,485; where you trust it, set"
        )
        assert f"{expected} VITX_MAX_PIXELS={side**2} in the environment" in str(raised.value)


def test_the_limit_can_be_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    drawn = np.full((20, 20, 3), 7, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(drawn).save(buffer, "PNG")
    with pytest.raises(ValueError, match="set VITX_MAX_PIXELS=400 in the environment"):
        read_image(buffer.getvalue(), "x")
    monkeypatch.setenv(pictures.LIMIT, "400")
    np.testing.assert_array_equal(read_image(buffer.getvalue(), "x"), drawn)
    monkeypatch.setenv(pictures.LIMIT, "many")
    with pytest.raises(ValueError, match="VITX_MAX_PIXELS=many is no number of pixels"):
        read_image(buffer.getvalue(), "x")


def test_long_thin_pictures_are_read():
    buffer = io.BytesIO()
    Image.new("L", (20_000, 300)).save(buffer, "PNG")
    assert read_image(buffer.getvalue()).shape == (300, 20_000, 3)


def test_no_picture_starts_a_program(tmp_path, monkeypatch):
    """Pillow has Ghostscript run PostScript, whatever the file is called."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "gs"
    program.write_text(f"#!/bin/sh\n/bin/mkdir -p {tmp_path}/ran\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    path = tmp_path / "x.jpg"
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    )
    for reader in ("image", "user's image", "mask", "image size"):
        with pytest.raises(ValueError, match=str(path)):
            READERS[reader](path)
    assert not (tmp_path / "ran").exists()
    with Image.open(path) as image, pytest.raises(OSError):  # since nothing is drawn
        image.load()
    assert (tmp_path / "ran").exists(), "Pillow itself would have run it"
    path.rename(tmp_path / "x.eps")
    with pytest.raises(ValueError, match="there is no image in"):
        find_images(str(tmp_path))


# SBD and ImageNet-Segmentation


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_an_archive_that_expands_without_end(kind, tmp_path, monkeypatch):
    """A header of the last two kinds is read whole into memory."""
    monkeypatch.setattr(sbd, "LARGEST_FILE", MB)
    path = tmp_path / "benchmark.tgz"
    member = tarfile.TarInfo("benchmark_RELEASE/x")
    member.type, member.size = kind, 64 * MB
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(member.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(64):
            file.write(bytes(MB))
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"^{path} expands to more than 20 times its size"):
        sbd.open_masks(path, ())
    assert tracemalloc.get_traced_memory()[1] < 32 * MB
    tracemalloc.stop()


def test_an_archive_of_masks_is_no_bomb(tmp_path):
    path = tmp_path / "benchmark.tgz"
    mask = np.zeros((300, 300), np.uint8)
    with tarfile.open(path, "w:gz") as tar:
        for name in ("train.txt", "val.txt"):
            add_member(tar, f"benchmark_RELEASE/dataset/{name}", b"2008_000001\n")
        add_member(tar, "benchmark_RELEASE/dataset/cls/2008_000001.mat", sbd_mat(mask))
    np.testing.assert_array_equal(sbd.open_masks(path, ()).read("2008_000001"), mask)


def element(kind, data):
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def structure(shape, length, names):
    """A MATLAB 5 file, compressed, of an empty structure GTcls."""
    parts = ((6, struct.pack("<II", 2, 0)), (5, shape), (1, b"GTcls"), (5, length), (1, names))
    matrix = element(14, b"".join(element(*part) for part in parts))
    packed = zlib.compress(matrix)
    return bytes(124) + b"\0\1IM" + struct.pack("<II", 15, len(packed)) + packed


ONE = struct.pack("<i", 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (structure(ONE * 2, struct.pack("<i", 64), b"Other"), "GTcls has no Segmentation"),
        (structure(ONE * 2, ONE, bytes(16 * MB)), "names of GTcls's fields are damaged"),
        (structure(b"\1" * 16 * MB, ONE, b"x"), "its shape is damaged"),
    ],
)
def test_a_matlab_file_of_millions_of_parts_takes_no_memory(data, message):
    assert len(data) < MB
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"^x is damaged or no MATLAB 5 file.*({message})"):
        sbd.segmentation(data, "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80 * MB


@pytest.mark.parametrize("kind", ["external", "virtual", "link"])
def test_hdf5_reads_no_other_file(kind, tmp_path):
    path, secret = tmp_path / "gtsegs.mat", tmp_path / "secret"
    make_gtsegs(path, 2)
    if kind == "external":
        secret.write_bytes(SECRET.encode())
    else:
        make_gtsegs(secret, 2)
    with h5py.File(path, "r+") as file:
        if kind == "link":
            del file["value/img"]
            file["value/img"] = h5py.ExternalLink(str(secret), "value/img")
        elif kind == "external":
            outside = [(str(secret), 0, len(SECRET))]
            made = file.create_dataset("x", (1, 3, 9), np.uint8, external=outside)
            file["value/img"][0, 0] = made.ref
        else:
            layout = h5py.VirtualLayout((3, 9, 9), np.uint8)
            layout[:] = h5py.VirtualSource(str(secret), "x", (3, 9, 9))
            file["value/img"][0, 0] = file.create_virtual_dataset("x", layout).ref
    message = r"no array value/img" if kind == "link" else r"value/img\[0\] lies in another file"
    with pytest.raises(ValueError, match=message):
        list(read_gtsegs(path))


def test_hdf5_takes_no_memory_for_wide_types(tmp_path):
    path = tmp_path / "gtsegs.mat"
    make_gtsegs(path, 2)
    with h5py.File(path, "r+") as file:
        wide = file.create_dataset("x", (1, 1), np.dtype((np.void, 2**31 - 1)), chunks=None)
        file["value/img"][0, 0] = wide.ref
    with pytest.raises(ValueError, match=r"value/img\[0\] has the shape"):
        list(read_gtsegs(path))


# Names


@pytest.mark.parametrize(
    "identifier",
    ["../../x", "/etc/passwd", "..", ".", "a/../../b", "~", "x\0y", "a\nb", "C:\\x", ".vitx-1.tmp", "caf\udce9"],
)  # fmt: skip
def test_ids_lead_nowhere_else(identifier, tmp_path):
    stage = StageFolder(tmp_path / "seeds", {})
    path = stage.item(identifier, ".npz", "val")
    assert path.parent == tmp_path / "seeds" / "val"
    assert path.resolve().parent == path.parent
    files.write_bytes(path, b"")
    assert stage.items_done(".npz", "val") == {identifier}
    assert [found for found in tmp_path.rglob("*") if found.is_file()] == [path]


def test_a_record_that_nests_too_deeply(tmp_path):
    (tmp_path / "stage.json").write_text('{"options":' * 10**5)
    with pytest.raises(ValueError, match=r"stage\.json is damaged \(it nests too deeply\)"):
        StageFolder(tmp_path, {})
    assert json.loads("[]") == files.parse_json("[]")
