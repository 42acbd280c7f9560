"""Command `explain`: the user's images in, pictures and raw maps out, whatever the files are."""

import io
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from flax import nnx
from ml_collections import ConfigDict, config_flags
from PIL import ExifTags, Image
from small_models import filled, small_vit

import vitx
from configs import explain as config_file
from tests.runs import KNOWN, begun
from vitx.data.class_names import find_classes, imagenet_names, read_names
from vitx.data.user_images import find_images, read_user_image, result_name
from vitx.models.affinitynet import AffinityNet
from vitx.models.resnet import ConvStem
from vitx.models.vit import Preprocess
from vitx.pipeline import explain, explainer
from vitx.pipeline.explain import explain_images
from vitx.relevance import explain as relevance
from vitx.report.figure import PANEL, Row, draw_figure, load_font, panel
from vitx.report.pictures import heatmap_overlay
from vitx.runtime.experiment import Run, run_stages
from vitx.runtime.files import read_npz, write_json
from vitx.runtime.signals import Stopped, StopRequest

METHODS = "raw_attention,transformer_attribution"
SUMMARY = re.compile(r"explain: (\d+) written, (\d+) done before, (\d+) broken; in (.*)")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, images of 8 x 12, a grid of 2 x 3."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    vitx.save(small_vit(), path)
    return path


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write(path: Path, image: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)
    return path


def run_for(folder: Path, checkpoint: Path | str, images: object, **changes: object) -> Run:
    config: ConfigDict = config_file.get_config()
    config.checkpoint, config.methods, config.batch_size = str(checkpoint), METHODS, 2
    config.start_layer.rollout = 0
    with config.ignore_type():
        config.images = images if isinstance(images, tuple) else str(images)
        config.update_from_flattened_dict(changes)
    return begun(config, folder)


def explained(run: Run, capsys: pytest.CaptureFixture[str]) -> tuple[int, int, int]:
    """Runs the command; how many images it wrote, left alone, and could not read."""
    capsys.readouterr()
    run_stages(run, [KNOWN["explain"]])
    written, unchanged, broken, place = SUMMARY.search(capsys.readouterr().out).groups()
    assert Path(place) == run.workdir.folder.resolve()
    return int(written), int(unchanged), int(broken)


def results(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Arrays by the image's name; there is a picture beside each, and nothing else but the lock."""
    files = sorted(folder.glob("*.explained.npz"))
    pictures = {path.with_suffix(".png") for path in files}
    assert set(folder.iterdir()) - {folder / ".lock"} == {*files, *pictures}
    for path in pictures:
        with Image.open(path) as picture:
            picture.load()
            assert picture.format == "PNG"
    arrays = [read_npz(path) for path in files]
    return {Path(str(found["source"])).name: found for found in arrays}


# Names of classes


def test_imagenet_has_a_thousand_names() -> None:
    names = imagenet_names()
    assert len(names) == len({name.casefold() for name in names}) == 1000
    assert all(name and name == name.strip() and "," not in name for name in names)
    known = {
        0: "tench",
        1: "goldfish",
        2: "great white shark",
        134: "crane (bird)",
        207: "golden retriever",
        243: "bull mastiff",
        264: "Cardigan Welsh corgi",
        281: "tabby",
        340: "zebra",
        386: "African elephant",
        474: "cardigan",
        517: "crane (machine)",
        638: "maillot",
        779: "school bus",
        999: "toilet tissue",
    }
    assert {number: names[number] for number in known} == known


def test_names_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffchat\r\nMöwe, die\r\n\n".encode())
    assert read_names(path, 2) == ("chat", "Möwe, die")
    with pytest.raises(ValueError, match=r"names\.txt has 2 class names, but the model 3 outputs"):
        read_names(path, 3)
    path.write_text("a\n\nc\n")
    with pytest.raises(ValueError, match="line 2 is blank"):
        read_names(path, 3)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_names(path, 1)
    with pytest.raises(ValueError, match=r"cannot read the class names in .*nowhere"):
        read_names(tmp_path / "nowhere", 1)


def test_classes_are_found_by_number_and_name() -> None:
    names = ("tabby", "Great Dane", "dog, hot", "tabby")
    assert find_classes("2, great dane,2", names) == (2, 1)
    assert find_classes("Dog, hot", names) == (2,)
    assert find_classes(("dog, hot", 0), names) == (2, 0)
    for wanted, message in (
        ("4", "class 4 is not one of the model's, 0 to 3"),
        ("-1", "class -1 is not"),
        ("tabby", "several classes are named 'tabby': give a number of 0, 3"),
        ("great dan", "no class is named 'great dan'; nearest: Great Dane"),
        ("0,", "no class is named ''"),
    ):
        with pytest.raises(ValueError, match=message):
            find_classes(wanted, names)


# Files


def test_images_are_found_once_and_in_order(tmp_path: Path) -> None:
    for name in ("b/z.JPG", "b/a.png", "b/deep/er.webp", "c.png", "b/.hid.png", "b/.d/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("notes.txt", "x-0123.explained.png", "weights.h5"):
        (tmp_path / "b" / name).touch()
    (tmp_path / "other").symlink_to(tmp_path / "b")
    wanted = f"{tmp_path}/c.png, {tmp_path}/b/, {tmp_path}/b/../c.png,{tmp_path}/other,"
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(wanted)]
    assert found == ["c.png", "b/a.png", "b/z.JPG", "b/deep/er.webp"]


def test_paths_may_have_commas(tmp_path: Path) -> None:
    path = write(tmp_path / "a,b.png", photo(2, 2))
    assert find_images(str(path)) == [path]
    assert find_images((str(path), str(tmp_path / "c.png"))) == [path, tmp_path / "c.png"]


@pytest.mark.parametrize("wanted", ["", " , "])
def test_naming_no_image_is_an_error(wanted: str) -> None:
    with pytest.raises(ValueError, match="names nothing"):
        find_images(wanted)


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"there is no image in {tmp_path}"):
        find_images(str(tmp_path))


def test_results_have_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a/x.jpg", "b/x.jpg", "x.png", "x.jpg", ".jpg", "..png", "é" * 127, "%2e", "a b\n.gif"]
    named = {result_name(tmp_path / name) for name in names}
    assert len(named) == len(names)
    for name in named:
        assert Path(name).name == name and not name.startswith(".")
        (tmp_path / f"{name}.png").touch()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    assert result_name(Path("a/../x.png")) == result_name(tmp_path / "x.png")
    assert re.fullmatch(r"x-[0-9a-f]{12}\.explained", result_name(Path("x.png")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot read .*x.jpg: it is empty"),
        (b"hello", "cannot read .*x.jpg: no picture of a kind that Pillow knows"),
        (None, "there is no file .*x.jpg"),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "x.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        _ = read_user_image(path).pixels
    assert "\n" not in str(raised.value) and str(raised.value).count("x.jpg") == 1


def test_damage_of_any_kind_is_an_image_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow's plugins raise more than they document: RuntimeError for a damaged AVIF."""

    def broken(data: bytes) -> np.ndarray:
        raise RuntimeError("Failed to decode image\nmore")

    monkeypatch.setattr("vitx.data.user_images.read_image", broken)
    path = write(tmp_path / "x\x1b.png", photo(2, 2))
    with pytest.raises(ValueError, match=r"cannot read .*x\?\.png: Failed to decode image$"):
        _ = read_user_image(path).pixels


# Options


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections'
def test_options_are_read_from_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*options: str) -> ConfigDict:
        line = ["evaluate.py", f"--config={config_file.__file__}"]
        line += [f"--config.{option}" for option in options]
        monkeypatch.setattr(sys, "argv", line)  # where ml_collections looks
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values)
        values(line)
        return values.config

    config = read("images=a b.jpg,c/", "image_size=224,336", "classes=3,17", "norm_eps=1e-12")
    assert (config.images, config.image_size, config.classes) == ("a b.jpg,c/", (224, 336), "3,17")
    assert config.norm_eps == 1e-12
    assert explainer._image_size(read("image_size=224").image_size) == (224, 224)
    assert explainer._image_size(read("image_size=0").image_size) is None
    assert explainer._image_size(read().image_size) is None


# Sizes


@pytest.mark.parametrize(
    ("image", "grid"),
    [
        ((480, 480), (14, 14)),
        ((480, 640), (12, 17)),  # 4:3
        ((600, 400), (17, 12)),  # 2:3
        ((1080, 1920), (10, 20)),  # 16:9
        ((50, 3000), (7, 28)),
        ((1, 1), (14, 14)),
    ],
)
def test_grids_keep_the_aspect(image: tuple[int, int], grid: tuple[int, int]) -> None:
    assert explainer.nearest_grid(image, 196) == grid
    assert explainer.nearest_grid(image[::-1], 196) == grid[::-1]


def test_grids_are_few_and_of_one_size() -> None:
    shapes = [(100, width) for width in range(1, 2000, 7)] + [
        (height, 100) for height in range(1, 2000, 7)
    ]
    grids = {explainer.nearest_grid(shape, 196) for shape in shapes}
    assert len(grids) == 9
    assert all(abs(height * width - 196) <= 0.05 * 196 for height, width in grids)
    assert {explainer.nearest_grid(shape, 1) for shape in shapes} <= {(1, 1), (1, 2), (2, 1)}


# The command


@pytest.mark.slow
def test_every_kind_of_image(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "in"
    rgb = Image.fromarray(photo(20, 30))
    write(images / "a" / "x.jpg", photo(30, 20, 1))
    write(images / "b" / "x.jpg", photo(40, 50, 2))
    write(images / "b" / "x.png", photo(1, 1))
    write(images / "strip.png", photo(5, 300))
    write(images / "grey.png", photo(20, 30)[..., 0])
    write(images / "deep.png", photo(20, 30)[..., 0].astype(np.uint16) * 257)
    rgb.convert("RGBA").save(images / "alpha.png")
    rgb.convert("CMYK").save(images / "cmyk.jpg")
    rgb.convert("P").save(images / "привет мир.gif", save_all=True, append_images=[rgb])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    rgb.save(images / "turned.jpg", exif=exif)
    rgb.save(images / "odd.jpg", exif=exif.tobytes()[:20])  # Pillow warns of it
    rgb.save(os.fsencode(images) + b"/\xff.bmp")
    whole = (images / "a" / "x.jpg").read_bytes()
    (images / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "text.jpg").write_text("no image")
    (images / "empty.png").touch()

    run = run_for(tmp_path / "out", checkpoint, f"{images},{images}/a/x.jpg,{tmp_path}/nowhere.png")
    with run.workdir.lock():
        run_stages(run, [KNOWN["explain"]])

    printed = capsys.readouterr().out
    assert SUMMARY.search(printed).groups()[:3] == ("12", "0", "4")
    for name in ("cut.jpg", "text.jpg", "empty.png", "nowhere.png"):
        assert printed.count(name) == 1
    found = results(tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.npz"))) == 12
    for arrays in found.values():
        assert arrays["transformer_attribution"].shape == (1, 2, 3)
        assert arrays["classes"] == arrays["logits"].argmax()
        assert list(arrays["class_names"]) == ["class 0", "class 1", "class 2"]
        assert arrays["input_size"].tolist() == [8, 12]
        np.testing.assert_allclose(arrays["probabilities"].sum(), 1, rtol=1e-5)
    assert found["turned.jpg"]["image_size"].tolist() == [30, 20]
    assert found["strip.png"]["image_size"].tolist() == [5, 300]


@pytest.mark.slow
def test_maps_are_those_of_the_image_alone(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever shares or fills its batch; read and resized here without the project's code."""
    paths = [write(tmp_path / f"{n}.png", photo(16 + n, 24, n)) for n in range(3)]
    run = run_for(tmp_path / "out", checkpoint, tmp_path, classes="2", scores="sigmoid")
    assert explained(run, capsys) == (3, 0, 0)
    found = results(tmp_path / "out")
    for path in paths:
        pair = np.stack([resized(path, (8, 12)), np.zeros((8, 12, 3), np.float32)])
        arrays = found[path.name]
        for method in METHODS.split(","):
            logits, maps = vitx.explain(vitx.load(checkpoint), pair, [[2], [0]], method)
            np.testing.assert_allclose(arrays[method], maps[0], rtol=2e-3, atol=1e-6)
        assert arrays["classes"].tolist() == [2]
        np.testing.assert_allclose(arrays["logits"], logits[0], rtol=1e-4, atol=1e-5)
        sigmoid = 1 / (1 + np.exp(-np.asarray(logits[0])))
        np.testing.assert_allclose(arrays["probabilities"], sigmoid, rtol=1e-4)


@pytest.mark.slow
def test_several_classes_have_maps_in_their_order(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "x.png", photo(8, 12))
    model, image = vitx.load(checkpoint), resized(path, (8, 12))[None]
    best = np.argsort(-model(image)[0])[:2].tolist()
    for classes, order in (("class 2,0", [2, 0]), ("", best)):
        changes = {"methods": "partial_lrp", "classes": classes, "best": 2}
        run = run_for(tmp_path / "out", checkpoint, path, **changes)
        assert explained(run, capsys) == (1, 0, 0)
        (arrays,) = results(tmp_path / "out").values()
        assert arrays["classes"].tolist() == order
        _, maps = vitx.explain(model, image, [order], "partial_lrp")
        np.testing.assert_allclose(arrays["partial_lrp"], maps[0], rtol=2e-3)


def resized(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The model's input (H, W, 3) for an image file: mean and std are 0.5."""
    with Image.open(path) as image:
        small = image.resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(small, np.float32) / np.float32(127.5) - 1


@pytest.mark.slow
def test_each_size_is_compiled_once(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(5):
        write(tmp_path / "in" / f"{number}.png", photo(8, 12, number))
    before = relevance._explain._cache_size()
    run = run_for(tmp_path / "out", checkpoint, tmp_path / "in", methods="rollout", batch_size=3)
    assert explained(run, capsys) == (5, 0, 0)
    assert relevance._explain._cache_size() == before + 1


@pytest.mark.slow
def test_aspect_is_kept(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "in"
    write(images / "tall.png", photo(40, 20))
    write(images / "wide.png", photo(20, 30, 1))
    run = run_for(tmp_path / "out", checkpoint, images, aspect="keep", methods="raw_attention")
    assert explained(run, capsys) == (2, 0, 0)
    found = results(tmp_path / "out")
    assert found["wide.png"]["input_size"].tolist() == [8, 12]  # the model's own
    tall = found["tall.png"]
    assert tall["input_size"].tolist() == [12, 8] and tall["raw_attention"].shape == (1, 3, 2)

    image = resized(images / "tall.png", (12, 8))[None]
    model = vitx.load(checkpoint, image_size=(12, 8))
    logits, maps = vitx.explain(model, image, [[0]], "raw_attention")
    np.testing.assert_allclose(tall["raw_attention"], maps[0], rtol=1e-4)
    np.testing.assert_allclose(tall["logits"], logits[0], rtol=1e-4, atol=1e-5)


def test_sizes_share_their_weights(checkpoint: Path) -> None:
    made = explainer.Explainer(run_for(Path(os.devnull).parent, checkpoint, "x").config)
    own, other = made._at((8, 12)), made._at((16, 8))
    assert other.head.kernel[...] is own.head.kernel[...]
    assert other.pos_embed.shape == (1, 9, 12) and own.pos_embed.shape == (1, 7, 12)


@pytest.mark.slow
def test_what_is_done_is_left_alone_unless_made_of_something_else(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = Path(shutil.copy(checkpoint, tmp_path / "mine.safetensors"))
    images, out = tmp_path / "in", tmp_path / "out"
    for number in range(3):
        write(images / f"{number}.png", photo(8, 12, number))

    def again(**changes: object) -> tuple[int, int, int]:
        options = {"methods": "raw_attention", **changes}
        return explained(run_for(out, mine, images, **options), capsys)

    assert again() == (3, 0, 0)
    first = {path: path.read_bytes() for path in out.iterdir()}
    assert again(batch_size=1) == (0, 3, 0)
    assert {path: path.read_bytes() for path in out.iterdir()} == first
    for change in ({"classes": "1"}, {"rules": "stable"}, {"top": 1}, {"scores": "sigmoid"}):
        assert again(**change) == (3, 0, 0)
        assert again(**change) == (0, 3, 0)
    assert again() == (3, 0, 0)
    assert {path: path.read_bytes() for path in out.iterdir()} == first

    lost, damaged, begun = sorted(out.glob("*.npz"))
    lost.with_suffix(".png").unlink()
    damaged.write_bytes(b"PK")
    begun.unlink()
    assert again() == (3, 0, 0)
    write(images / "1.png", photo(8, 12, 9))
    (images / "2.png").write_bytes(b"damaged")
    assert again() == (1, 1, 1)

    vitx.save(small_vit(norm_eps=1e-5), mine)
    assert again() == (2, 0, 1)


@pytest.mark.slow
def test_a_picture_and_maps_of_other_options_are_not_mixed(
    tmp_path: Path,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def killed(path: Path, arrays: object) -> None:
        raise KeyboardInterrupt

    for number in range(2):
        write(tmp_path / "in" / f"{number}.png", photo(8, 12, number))
    run = run_for(tmp_path / "out", checkpoint, tmp_path / "in", methods="raw_attention")
    assert explained(run, capsys) == (2, 0, 0)
    run.config.top = 1
    with monkeypatch.context() as patch:
        patch.setattr(explain, "write_npz", killed)
        with pytest.raises(KeyboardInterrupt):
            explain_images(run, run.stage("explain"))
    run.config.top = 3
    assert explained(run, capsys) == (1, 1, 0)


@pytest.mark.slow
def test_stopped_command_goes_on(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class AfterTheFirstBatch(StopRequest):
        def check(self) -> None:
            if list((tmp_path / "out").glob("*.npz")):
                raise Stopped(15)

    for number in range(5):
        write(tmp_path / "in" / f"{number}.png", photo(8, 12, number))
    run = run_for(tmp_path / "out", checkpoint, tmp_path / "in", methods="raw_attention")
    run.stop = AfterTheFirstBatch()
    with pytest.raises(Stopped):
        explain_images(run, run.stage("explain"))
    assert len(results(tmp_path / "out")) == 2
    run.stop = StopRequest()
    assert explained(run, capsys) == (3, 2, 0)


def test_classifier_of_train_py_brings_names_and_sigmoid(tmp_path: Path, checkpoint: Path) -> None:
    folder = tmp_path / "classifier"
    folder.mkdir()
    shutil.copy(checkpoint, folder / "model.safetensors")
    write_json(folder / "scores.json", {"average_precision": {"z": 0.5, "b": None, "a": 1.0}})
    for path in (folder, folder / "model.safetensors"):
        made = explainer.Explainer(run_for(tmp_path / "out", path, "x").config)
        assert (made.names, made.scores) == (("z", "b", "a"), "sigmoid")
    other = explainer.Explainer(run_for(tmp_path / "out", checkpoint, "x").config)
    assert (other.names[0], other.scores) == ("class 0", "softmax")
    names = tmp_path / "names.txt"
    names.write_text("p\nq\nr\n")
    changes = {"class_names": str(names), "scores": "softmax"}
    made = explainer.Explainer(run_for(tmp_path / "out", folder, "x", **changes).config)
    assert (made.names, made.scores) == (("p", "q", "r"), "softmax")


def test_the_demo_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = run_for(tmp_path / "out", "", "x").config
    with pytest.raises(ValueError, match="run `make demo` first, or give"):
        explainer.Explainer(config)
    vitx.save(small_vit(num_classes=5), tmp_path / explainer.DEMO)
    made = explainer.Explainer(config)
    assert made.names == ("disc", "square", "triangle", "cross", "ring")
    assert made.scores == "sigmoid"


def test_a_thousand_outputs_are_imagenets(tmp_path: Path) -> None:
    vitx.save(small_vit(num_classes=1000), tmp_path)
    made = explainer.Explainer(run_for(tmp_path / "out", tmp_path, "x", image_size=(16, 16)).config)
    assert made.names == imagenet_names() and made.scores == "softmax"
    assert made.input_size((5, 9)) == (16, 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": "gradcam,lpr"}, "config.methods: 'lpr' is none of rollout, raw_attention"),
        ({"rules": "best"}, "config.rules must be one of published, stable, not 'best'"),
        ({"aspect": "crop"}, "config.aspect must be one of squash, keep"),
        ({"scores": "x"}, "config.scores must be one of auto, softmax, sigmoid"),
        ({"batch_size": 0}, "config.batch_size must be at least 1, not 0"),
        ({"image_size": (1, 2, 3)}, "config.image_size must be a side or"),
        ({"image_size": (6,)}, r"image_size \(6, 6\) is not a multiple of the patch"),
        ({"classes": "clas 1"}, "no class is named 'clas 1'; nearest: class 1"),
        ({"start_layer.transformer_attribution": 2}, r"start_layer must be an int in \[0, 2\)"),
        ({"font": __file__}, "config.font: cannot read the font"),
    ],
)
def test_wrong_options_are_named(
    tmp_path: Path, checkpoint: Path, changes: dict[str, object], message: str
) -> None:
    image = write(tmp_path / "x.png", photo(8, 12))
    run = run_for(tmp_path / "out", checkpoint, image, **changes)
    with pytest.raises(ValueError, match=message):
        explain_images(run, run.stage("explain"))
    assert not list((tmp_path / "out").glob("*.npz"))


def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    model = filled(
        lambda: AffinityNet(
            ConvStem((8,), 4, rngs=nnx.Rngs(0)),
            (2, 2),
            preprocess=Preprocess(size=(8, 8)),
            hidden=8,
            features=8,
            groups=4,
            rngs=nnx.Rngs(0),
        )
    )
    vitx.save(model, tmp_path)
    with pytest.raises(ValueError, match="holds an AffinityNet, which has no classes to explain"):
        explainer.Explainer(run_for(tmp_path / "out", tmp_path, "x").config)


def test_nothing_readable_is_an_error(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "x.jpg").write_text("no image")
    run = run_for(tmp_path / "out", checkpoint, f"{tmp_path / 'x.jpg'},{tmp_path / 'y.jpg'}")
    with pytest.raises(ValueError, match=r"none of 2 files is an image: .*x\.jpg.*; .*y\.jpg") as e:
        explain_images(run, run.stage("explain"))
    assert "\n" not in str(e.value)


# The figure


def has(picture: np.ndarray, part: np.ndarray) -> bool:
    """Whether one picture (H, W, 3) stands somewhere in another."""
    height, width = part.shape[:2]
    places = np.argwhere((picture == part[0, 0]).all(-1))
    return any(np.array_equal(picture[y : y + height, x : x + width], part) for y, x in places)


def drawn(*arguments: object) -> np.ndarray:
    with Image.open(io.BytesIO(draw_figure(*arguments))) as picture:
        return np.asarray(picture.convert("RGB"))


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((48, 48), (192, 192)),  # a whole multiple
        ((1, 1), (224, 224)),
        ((480, 640), (224, 299)),
        ((1080, 1920), (169, 300)),
        ((3000, 50), (224, 28)),
        ((50, 3000), (38, 300)),
    ],
)
def test_panels_are_of_a_size(size: tuple[int, int], shown: tuple[int, int]) -> None:
    found = panel(photo(*size))
    assert found.shape == (*shown, 3)
    assert shown[0] <= PANEL[1] and shown[1] <= PANEL[0]


def test_small_images_keep_hard_pixels() -> None:
    image = photo(48, 48)
    np.testing.assert_array_equal(panel(image)[2::4, 1::4], image)


def test_figure_shows_the_image_and_each_map() -> None:
    shown = panel(photo(48, 64))
    maps = {name: photo(3, 4, n)[..., 0] / 7.0 for n, name in enumerate(("GradCAM", "LRP"), 5)}
    rows = [Row("cat", maps), Row("dog", {"GradCAM": maps["LRP"], "LRP": "map is constant"})]
    picture = drawn(shown, "a/cat.png", (48, 64), [("cat", 0.75), ("dog", 0.25)], rows)
    assert has(picture, shown)
    assert all(has(picture, heatmap_overlay(shown, heatmap)) for heatmap in maps.values())
    for edge in (picture[:3], picture[-3:], picture[:, :3], picture[:, -3:]):
        assert (edge == 255).all()  # nothing is cut off


def test_probabilities_are_bars() -> None:
    shown, rows = panel(np.zeros((48, 48, 3), np.uint8)), [Row("x", {"LRP": np.eye(2)})]

    def blue(probability: float) -> int:
        picture = drawn(shown, "x", (48, 48), [("x", probability)], rows)
        return int((picture == (52, 98, 168)).all(-1).sum())

    assert blue(0.5) > 0
    assert blue(1.0) == pytest.approx(2 * blue(0.5), rel=0.02)
    assert blue(0.0) == blue(float("nan")) == 0


def test_long_and_foreign_names_fit() -> None:
    shown = panel(photo(300, 20))
    rows = [Row("many words " * 30, {"a method of a long name " * 5: np.eye(3)})]
    names = ["a" * 300, "Überlänge, привет 日本 " * 9]
    picture = drawn(shown, names[1], (300, 20), [(name, 0.3) for name in names], rows)
    assert picture.shape[1] < 640
    assert (picture[:, -8:] == 255).all()


def test_font_of_a_file_is_used(tmp_path: Path) -> None:
    path = tmp_path / "own.ttf"
    path.write_bytes(load_font("", 15).font_bytes)
    assert load_font(str(path), 15).getname() == load_font("", 15).getname()


def test_maps_that_show_nothing_are_told() -> None:
    maps = np.stack([np.eye(2), np.ones((2, 2)), np.full((2, 2), np.nan)]).astype(np.float32)
    found = explainer.Explanation(
        np.arange(3, dtype=np.int32), np.zeros(3), np.zeros(3), {"gradcam": maps}
    )
    rows, odd = explain._rows(found, ("a", "b", "c"))
    assert odd == ["GradCAM of b is constant", "GradCAM of c is not finite"]
    np.testing.assert_array_equal(rows[0].maps["GradCAM"], np.eye(2))
    assert [row.maps["GradCAM"] for row in rows[1:]] == ["map is constant", "map is not finite"]
