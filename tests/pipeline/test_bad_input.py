"""Bad input of every kind: one message that names the culprit and what to do, and nothing half-written.

Ranges of options are in tests/runtime/test_options.py, what checkpoints may be in tests/weights/test_weights.py.
"""

import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vitx
from configs import imagenet_segmentation
from tests.forked import Ended, Programs, programs
from tests.made_voc import annotation, make_voc
from tests.pipeline.test_own_data import NAMES, own_run
from tests.runs import KNOWN, STAGES, begun
from tests.small_models import CLASS_TOKEN_METHODS, small_vit
from vitx.data.palette import encode_mask
from vitx.evaluation import metrics, perturbation
from vitx.pseudomasks.affinity import affinities
from vitx.pseudomasks.crf import dense_crf
from vitx.pseudomasks.seeds import seed_maps_of, seed_mask
from vitx.pseudomasks.walk import random_walk
from vitx.runtime.experiment import Run, run_stages
from vitx.runtime.files import WorkdirError

pytestmark = pytest.mark.slow


# The command line: exit code 2, one line, no traceback, and no stage begun.


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    with programs(tmp_path_factory.mktemp("programs")) as started:
        yield started


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


COMMANDS = {
    "unknown option": (
        ["--config.classifier.epoch=3"],
        "--config.classifier.epoch: the config has no option 'epoch': did you mean 'epochs'?",
    ),
    "unknown section": (
        ["--config.clasifier.epochs=3"],
        "--config.clasifier.epochs: the config has no option 'clasifier'",
    ),
    "unknown flag": (
        ["--work_dir=x"],
        "Unknown command line flag 'work_dir'. Did you mean: workdir",
    ),
    "wrong type": (
        ["--config.classifier.epochs=three"],
        "--config.classifier.epochs=three: invalid",
    ),
    "no flag": (["runs/mine"], "unexpected argument 'runs/mine': flags begin with --"),
    "no such config": (
        ["--config=configs/none.py"],
        "cannot read the config: [Errno 2] No such file or directory: 'configs/none.py'",
    ),
    "out of range": (
        ["--config.walk.beta=(4.0,-1.0)"],
        "config.walk.beta must be a number above 0",
    ),
    "contradiction": (
        ["--config.classifier.warmup_epochs=2"],
        "config.classifier.warmup_epochs must be less than classifier.epochs, 2",
    ),
    "unknown stage": (["--config.stages=clasifier"], "config.stages has no stage 'clasifier'"),
    "unknown dataset": (["--config.data.name=voc"], "unknown dataset 'voc'; there is folder"),
    "empty split": (
        ["--config.classifier.val_split=train[5:5]"],
        "config.classifier.val_split=train[5:5]: split 'train[5:5]' of shapes/tiny/2.1.0 has no examples",
    ),
    "batch larger than the split": (
        ["--config.affinity.batch_size=64"],
        "config.affinity.train_split=train[:8] has 8 images, fewer than a batch",
    ),
    "unknown model": (["--config.model.name=vit_bas"], "unknown model 'vit_bas'; nearest: "),
    "image size and patch": (
        ["--config.model.image_size=50", "--config.affinity.grid=10"],
        "image size (50, 50) is not a multiple of the patch, 4 pixels",
    ),
    "layer that is not there": (
        ["--config.seeds.start_layer=9"],
        "config.seeds.start_layer 9 must be less than the model's 2 blocks",
    ),
    "no such checkpoint": (
        ["--config.model.checkpoint=none.safetensors"],
        "none.safetensors: there is no such file",
    ),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_a_wrong_command_is_one_line(
    case: str, started: Programs, data: Path, tmp_path: Path
) -> None:
    arguments, message = COMMANDS[case]
    config = [] if arguments[0].startswith("--config=") else ["--config=configs/testing.py"]
    places = [f"--workdir={tmp_path}", *([f"--config.data.root={data}"] if config else [])]
    ended = started.run("train.py", *config, *places, *arguments)
    _assert_one_line(ended, message)
    assert not list(tmp_path.glob("*/checkpoints")) and not list(tmp_path.glob("*/metrics.jsonl"))


def _assert_one_line(ended: Ended, message: str) -> None:
    assert ended.code == 2, ended.errors
    (line,) = [line for line in ended.errors.splitlines() if "error:" in line]
    assert line.startswith("error: ") and message in line
    assert "Traceback" not in ended.errors


def test_a_workdir_that_is_a_file_is_one_line(started: Programs, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    ended = started.run("train.py", "--config=configs/testing.py", f"--workdir={tmp_path / 'file'}")
    assert ended.code == 1 and "Traceback" not in ended.errors
    assert f"cannot write {tmp_path / 'file'}: File exists" in ended.errors
    assert (tmp_path / "file").read_text() == "mine"


def test_a_config_with_a_mistake_of_its_own_shows_where(started: Programs, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def get_config():\n    return None.attribute\n")
    ended = started.run("train.py", f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path}")
    assert ended.code == 1
    assert 'mine.py", line 2' in ended.errors and "'attribute'" in ended.errors


# Data, in a folder laid out like VOC. Each case spoils one thing of it.


def _first(folder: Path, place: str) -> Path:
    return sorted((folder / "own" / place).iterdir())[0]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _list(folder: Path, line: str) -> None:
    path = folder / "own/ImageSets/Segmentation/val.txt"
    path.write_text(path.read_text() + line + "\n", "utf-8")


def _mask(folder: Path, mask: np.ndarray) -> None:
    _first(folder, "SegmentationClass").write_bytes(encode_mask(mask))


def _text(folder: Path, place: str, text: str) -> None:
    _first(folder, place).write_text(text, "utf-8")


SKIP = r"\. Repair or remove them, or leave such images out with --config\.on_bad_image=skip$"
DATA: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated JPEG": (
        lambda f: _cut(_first(f, "JPEGImages")),
        r"1 of \d+ images of \w+ cannot be read: cannot read the image .*000\.jpg: .*truncated.*"
        + SKIP,
    ),
    "empty file": (
        lambda f: _first(f, "JPEGImages").write_bytes(b""),
        r"cannot read the image .*000\.jpg: cannot identify.*" + SKIP,
    ),
    "text for an image": (
        lambda f: _text(f, "JPEGImages", "<svg/>"),
        r"cannot read the image .*000\.jpg: cannot identify.*" + SKIP,
    ),
    "truncated mask": (
        lambda f: _cut(_first(f, "SegmentationClass")),
        r"cannot read the label mask .*SegmentationClass.*\.png.*" + SKIP,
    ),
    "mask of another size": (
        lambda f: _mask(f, np.zeros((7, 9), np.uint8)),
        r"the mask .*\.png is 9 pixels wide and 7 high, but its image 52 and 40.*" + SKIP,
    ),
    "label beyond the classes": (
        lambda f: _mask(f, np.full((40, 52), 9, np.uint8)),
        r"the mask .*\.png has the label 9, wanted 0 to 3 for the 4 classes, or 255.*" + SKIP,
    ),
    "missing mask and annotation": (
        lambda f: (_first(f, "Annotations").unlink(), _first(f, "SegmentationClass").unlink()),
        r"nothing says what .*000\.jpg shows: wanted Annotations/.*\.xml, without objects",
    ),
    "class that is not listed": (
        lambda f: _text(f, "Annotations", annotation("x", (4, 4), [("owl", False, 1, 1, 2, 2)])),
        r"Annotations/.*\.xml: an object is named 'owl', which is no class of .*classes\.txt; correct",
    ),
    "damaged annotation": (
        lambda f: _text(f, "Annotations", "<annotation><object>"),
        r"Annotations/.*\.xml is no annotation: .*; wanted <annotation> with <object><name>",
    ),
    "image that is not there": (
        lambda f: _list(f, "2007_999999"),
        r"val\.txt, line 5: JPEGImages has no image '2007_999999'",
    ),
    "image listed twice": (
        lambda f: _list(f, (f / "own/ImageSets/Segmentation/val.txt").read_text().split()[0]),
        r"val\.txt, line 5: '2007_.*' again; keep one",
    ),
    "id that climbs out": (
        lambda f: _list(f, "../../secret"),
        r"val\.txt, line 5: .*'\.\./\.\./secret'",
    ),
    "two images of one name": (
        lambda f: Image.new("RGB", (4, 4)).save(_first(f, "JPEGImages").with_suffix(".png")),
        r"two files are named '2007_.*': .*\.jpg and .*\.png; rename one",
    ),
    "class listed twice": (
        lambda f: (f / "classes.txt").write_text("background\nring\nring\n"),
        r"classes\.txt, line 3: 'ring' again; name each class once",
    ),
    "no background": (
        lambda f: (f / "classes.txt").write_text("ring\nkite\n"),
        r"classes\.txt, line 1: found 'ring', wanted 'background', then the classes",
    ),
    "no images": (
        lambda f: (f / "own/JPEGImages").rename(f / "own/Images"),
        r"own has no folder JPEGImages",
    ),
}


@pytest.mark.parametrize("case", DATA)
def test_bad_data_is_named_before_anything_is_trained(case: str, tmp_path: Path) -> None:
    spoil, message = DATA[case]
    (tmp_path / "classes.txt").write_text("\n".join(NAMES), "utf-8")
    make_voc(tmp_path / "own", train=8, val=4, size=(40, 52), classes=NAMES, keep=False)
    spoil(tmp_path)
    run = own_run(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        run_stages(run, STAGES)
    assert len(str(error.value).splitlines()) == 1
    assert not any((tmp_path / "run" / stage.name).exists() for stage in STAGES)


ODD = {  # names and pictures that are unusual, and none the less images
    "one pixel": Image.new("RGB", (1, 1), "red"),
    "a 'quoted\" name": Image.new("CMYK", (30, 20), (10, 200, 30, 0)),
    "ünïcode 图": Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100),
    "%2e%2e%2fpercent": Image.new("P", (30, 20), 3),
    "long" * 40: Image.new("LA", (30, 20), (100, 7)),
    "wide": Image.new("RGB", (20_000, 2), "blue"),
    "black and white": Image.new("1", (30, 20), 1),
}


@pytest.mark.exhaustive
def test_odd_images_go_through_and_bad_ones_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "classes.txt").write_text("\n".join(NAMES), "utf-8")
    made = make_voc(tmp_path / "own", train=8, val=4, size=(40, 52), classes=NAMES, keep=False)
    for name, picture in ODD.items():
        suffix = "jpg" if picture.mode == "CMYK" else "png"
        picture.save(tmp_path / f"own/JPEGImages/{name}.{suffix}")
        xml = annotation(name, picture.size[::-1], [("ring", False, 1, 1, 1, 1)])
        (tmp_path / f"own/Annotations/{name}.xml").write_text(xml, "utf-8")
        _list(tmp_path, name)
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "green")]
    frames[0].save(tmp_path / "own/JPEGImages/moving.png", save_all=True, append_images=frames[1:])
    (tmp_path / "own/Annotations/moving.xml").write_text(annotation("moving", (20, 30), []))
    _list(tmp_path, "moving")
    bad = made.splits["val"][0]
    _cut(tmp_path / f"own/JPEGImages/{bad}.jpg")
    # The exact CRF refuses the wide one.
    options = {"on_bad_image": "skip", "labels.backend": "jax"}
    run = own_run(tmp_path, **options)
    run_stages(run, STAGES)
    names = {*ODD, "moving", *made.splits["val"]} - {bad}
    for name in names:
        with (
            Image.open(run.stage("masks").item(name, ".png", "val")) as mask,
            Image.open(next((tmp_path / "own/JPEGImages").glob(f"{_escaped(name)}.*"))) as image,
        ):
            assert mask.size == image.size, name
    assert len(list((tmp_path / "run/masks/val").iterdir())) == len(names)
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["dataset"]["images"] == len(names)
    assert list(results["dataset"]["left_out"]["val"]) == [bad]
    assert (
        f"val: 1 of {len(names) + 1} images cannot be read and are left out"
        in capsys.readouterr().err
    )
    assert "truncated" in (tmp_path / "run/report.html").read_text()
    again = own_run(tmp_path, **options)  # goes by what it found, and is not refused
    run_stages(again, STAGES)
    assert "reading val" not in capsys.readouterr().err
    assert own_run(tmp_path, **options).sources.left_out() == results["dataset"]["left_out"]


def _bad_folder(folder: Path) -> tuple[Run, Path]:
    """A run on class folders of six good images, and the path of one to spoil."""
    for number in range(6):
        path = folder / "own" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7), (40 * number, 9, 9)).save(path)
    config = imagenet_segmentation.get_config()
    config.data.name, config.data.root, config.data.val_split = "folder", str(folder / "own"), "all"
    return begun(config, folder / "run"), path


def test_a_part_that_can_be_read_is_not_refused(tmp_path: Path) -> None:
    run, path = _bad_folder(tmp_path)
    _cut(path)
    run.sources.require_readable("all[:2]")
    with pytest.raises(ValueError, match=r"1 of 6 images of all cannot be read: .*5\.png"):
        run.sources.require_readable("all")
    with pytest.raises(ValueError, match=r"1 of 2 images of all\[4:\] cannot be read"):
        run.sources.require_readable("all[4:]")


def test_a_disk_that_hiccups_leaves_nothing_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, path = _bad_folder(tmp_path)
    run.config.on_bad_image = "skip"
    read = Path.read_bytes

    def stale(self: Path) -> bytes:
        if self == path:
            raise OSError(errno.ESTALE, "Stale file handle")
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", stale)
    with pytest.raises(WorkdirError, match=r"5\.png.*Stale file handle; nothing is left out"):
        run.source("all")
    monkeypatch.undo()
    assert len(run.source("all")) == 6 and run.sources.left_out() == {}


def test_another_limit_on_pixels_reads_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, path = _bad_folder(tmp_path)
    run.config.on_bad_image = "skip"
    Image.new("RGB", (30, 20)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert len(run.source("all")) == 5
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    later = begun(run.config, run.workdir.folder)
    assert len(later.source("all")) == 6


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"unreadable": [1]}',
        b'{"unreadable": {"0": null}}',
        b'{"unreadable": {"gone": "cut"}}',
    ],
)
def test_a_damaged_record_of_what_is_left_out_is_named(tmp_path: Path, content: bytes) -> None:
    run, path = _bad_folder(tmp_path)
    run.config.on_bad_image = "skip"
    _cut(path)
    assert len(run.source("all")) == 5
    (record,) = (tmp_path / "run/unreadable").iterdir()
    record.write_bytes(content)
    later = begun(run.config, run.workdir.folder)
    message = rf"unreadable/{re.escape(record.name)} is damaged \(.*\): delete it and start again"
    for read in (lambda: later.source("all"), later.sources.left_out):
        with pytest.raises(ValueError, match=message) as error:
            read()
        assert len(str(error.value).splitlines()) == 1
    record.unlink()
    assert len(begun(run.config, run.workdir.folder).source("all")) == 5


def test_a_comparison_of_all_images_looks_at_them_first(tmp_path: Path) -> None:
    run, path = _bad_folder(tmp_path)
    _cut(path)
    with pytest.raises(
        ValueError, match=r"1 of 6 images of all cannot be read.*on_bad_image=skip$"
    ):
        KNOWN["methods"].check(run)
    run.config.limit = 2
    KNOWN["methods"].check(run)


def test_a_name_that_is_no_unicode_is_one_line(started: Programs, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("\n".join(NAMES), "utf-8")
    make_voc(tmp_path / "own", train=8, val=4, size=(40, 52), classes=NAMES, keep=False)
    for place, name in (("JPEGImages", b"caf\xe9.jpg"), ("Annotations", b"caf\xe9.xml")):
        os.rename(
            _first(tmp_path, place), os.path.join(os.fsencode(tmp_path / "own" / place), name)
        )
    (_first(tmp_path, "SegmentationClass")).unlink()
    with open(os.path.join(os.fsencode(tmp_path / "own/JPEGImages"), b"caf\xe9.jpg"), "wb") as file:
        file.write(b"no picture")
    splits = ("data.train_split=all", "data.val_split=all")
    ended = started.run(
        "train.py",
        "--config=configs/voc_small.py",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.root={tmp_path / 'own'}",
        f"--config.data.classes={tmp_path / 'classes.txt'}",
        *(f"--config.{split}" for split in splits),
    )
    _assert_one_line(ended, "1 of 12 images of all cannot be read")
    assert "Traceback" in (tmp_path / "run/error.txt").read_text()


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


# Calls of the public functions: `vitx.explain` has a table of its own in tests/relevance/test_explain.py.

IMAGES = np.zeros((2, 8, 12, 3), np.uint8)
MAPS = np.full((2, 8, 12), 0.5, np.float32)
AFFINITY = np.ones((2, 34, 8, 12), np.float32)  # of radius 5
NAN = np.full((2, 8, 12), np.nan, np.float32)
CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "walk: wrong rank": (
        lambda: random_walk(AFFINITY[0, 0], MAPS),
        r"\(8, 12\).*\(\.\.\., P, H, W\)|affinity",
    ),
    "walk: NaN": (
        lambda: random_walk(AFFINITY * np.nan, MAPS[:, None]),
        r"affinity must be in \[0, 1\], found nan",
    ),
    "walk: wrong number": (
        lambda: random_walk(AFFINITY, MAPS[:, None], beta=-1),
        "beta must be a number above 0, not -1",
    ),
    "affinities: integers": (
        lambda: affinities(np.zeros((8, 12, 3), int)),
        r"features must be floats",
    ),
    "CRF: floats for an image": (
        lambda: dense_crf(IMAGES / 255, MAPS[:, None]),
        r"images must be uint8 \(B, H, W, 3\), not float64",
    ),
    "CRF: another size": (
        lambda: dense_crf(IMAGES, MAPS[:, None, :4]),
        r"probabilities \(2, 1, 4, 12\) do not fit the images \(2, 8, 12, 3\)",
    ),
    "seed mask: another batch": (
        lambda: seed_mask(MAPS, np.zeros(3, int)),
        r"classes \(3,\) must be \(2,\), as of the seed maps",
    ),
    "seed maps: root": (
        lambda: seed_maps_of(MAPS, (8, 12), (8, 12), root=0),
        "root must be above 0, not 0",
    ),
    "metrics: another size": (
        lambda: metrics.segmentation_scores(MAPS, np.zeros((2, 4, 4), np.uint8)),
        r"\(2, 8, 12\).*\(2, 4, 4\)",
    ),
    "metrics: NaN": (
        lambda: metrics.segmentation_scores(NAN, np.ones((2, 8, 12), np.uint8)),
        "finite",
    ),
    "metrics: class out of range": (
        lambda: metrics.confusion_matrix(np.full((4, 4), 9), np.zeros((4, 4), int), 3),
        "9",
    ),
    "metrics: no image": (
        lambda: metrics.segmentation_scores(MAPS[:0], np.ones((0, 8, 12), np.uint8)),
        r"maps \(0, 8, 12\) are empty",
    ),
    "perturbation: pixels in bytes": (
        lambda: _curve(pixels=IMAGES),
        "pixels are uint8: divide by 255",
    ),
    "perturbation: pixels beyond 1": (
        lambda: _curve(pixels=IMAGES + 2.0),
        r"pixels reach 2 to 2, not \[0, 1\]",
    ),
    "perturbation: map that is not finite": (
        lambda: _curve(heatmaps=NAN),
        "heatmap 0 is not finite",
    ),
    "perturbation: another number of targets": (
        lambda: _curve(targets=np.zeros(3, int)),
        r"targets \(3,\) must be \(2,\)",
    ),
    "create: size": (lambda: vitx.create("vit_base_patch16_224", image_size=-16), r"-16"),
    "save: suffix": (
        lambda: vitx.save(small_vit(), "model.pt"),
        r"model\.pt: vitx writes \.safetensors",
    ),
    "load: text": (lambda: vitx.load(__file__), r"test_bad_input\.py"),
}


def _curve(**changed: np.ndarray) -> object:
    given = {"pixels": IMAGES / np.float32(255), "heatmaps": MAPS, "targets": np.zeros(2, int)}
    model = small_vit()
    return perturbation.perturbation_curve(
        model, *(given | changed).values(), mean=model.preprocess.mean, std=model.preprocess.std
    )


@pytest.mark.parametrize("case", CALLS)
def test_a_wrong_call_says_what_is_wrong(case: str) -> None:
    call, message = CALLS[case]
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("method", CLASS_TOKEN_METHODS)
def test_a_constant_image_has_finite_maps(method: str) -> None:
    model = small_vit()
    images = np.full((1, *model.preprocess.size, 3), 0.25, np.float32)
    logits, maps = vitx.explain(model, images, method=method)
    assert np.isfinite(logits).all() and np.isfinite(maps).all()
