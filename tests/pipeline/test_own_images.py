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

import vitx
from configs import explain as config_file
from tests.runs import KNOWN, begun
from tests.small_models import filled, guessing, small_vit
from vitx.data.class_names import find_classes, imagenet_names, read_names
from vitx.data.user_images import find_images, read_user_image, result_name
from vitx.models.affinitynet import AffinityNet
from vitx.models.design import Preprocess
from vitx.models.resnet import ConvStem
from vitx.pipeline import explain
from vitx.pipeline.explain import explain_images
from vitx.pipeline.explainer import DEMO, Explainer, nearest_grid
from vitx.relevance import explain as relevance
from vitx.report.figure import PANEL, draw_figure, load_font, panel
from vitx.report.overlay import nothing_in, overlay
from vitx.runtime.experiment import Run, check_options, run_stages
from vitx.runtime.files import read_npz, write_json
from vitx.runtime.signals import Stopped, StopRequest

SUMMARY = re.compile(r"explain: (\d+) written, (\d+) done before, (\d+) broken; in (.*)")
SIZE = (8, 12)  # of the checkpoint's images


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, a grid of 2 x 3."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    vitx.save(small_vit(), path)
    return path


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def write_photos(folder: Path, count: int) -> list[Path]:
    return [write(folder / f"{seed}.png", photo(*SIZE, seed)) for seed in range(count)]


def config_for(checkpoint: Path | str, images: object = "x", **changes: object) -> ConfigDict:
    config: ConfigDict = config_file.get_config()
    config.checkpoint, config.images = str(checkpoint), str(images)
    config.methods, config.batch_size, config.start_layer.rollout = "raw_attention", 2, 0
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    return config


class Command:
    """The command on the images in `folder` with results in `out`."""

    def __init__(self, folder: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]):
        self.folder, self.out = folder / "in", folder / "out"
        self.checkpoint, self._capsys = checkpoint, capsys

    def begun(self, images: object = None, **changes: object) -> Run:
        config = config_for(self.checkpoint, images or self.folder, **changes)
        return begun(config, self.out)

    def __call__(self, images: object = None, **changes: object) -> tuple[int, int, int]:
        """Runs it; how many images it wrote, left alone, and could not read."""
        run_stages(self.begun(images, **changes), [KNOWN["explain"]])
        self.printed = self._capsys.readouterr().out
        written, unchanged, broken, place = SUMMARY.search(self.printed).groups()
        assert Path(place) == self.out.resolve()
        return int(written), int(unchanged), int(broken)

    def results(self) -> dict[str, dict[str, np.ndarray]]:
        """Arrays by the image's name; beside each there is a sheet, a picture of each map, and nothing else."""
        files = sorted(self.out.glob("*.explained.npz"))
        pictures = {path.with_suffix(".png") for path in files}
        for path in files:
            found, name = read_npz(path), path.name.removesuffix(".explained.npz")
            drawn = [method for method in vitx.METHODS if method in found]
            pictures |= {
                path.with_name(f"{name}.{method}.{number}.explained.png")
                for method in drawn
                for number in found["classes"]
            }
        assert set(self.out.iterdir()) == {*files, *pictures}
        for path in pictures:
            with Image.open(path) as picture:
                picture.load()
                assert picture.format == "PNG"
        arrays = [read_npz(path) for path in files]
        return {Path(str(found["source"])).name: found for found in arrays}


@pytest.fixture
def command(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path, checkpoint, capsys)


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
    for content, count, message in (
        (b"a\nb", 3, r"names\.txt has 2 class names, but the model 3 outputs"),
        (b"a\n\nc\n", 3, "line 2 is blank"),
        (b"\xff\xfe", 1, "not UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_names(path, count)
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
    for name in ("b/z.JPG", "b/a.png", "b/deep/er.webp", "c.png", "d,e.png", "b/.hid.png",
                 "b/.d/x.png", "b/notes.txt", "b/x-0123.explained.png", "b/weights.h5"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "other").symlink_to(tmp_path / "b")
    wanted = f"{tmp_path}/c.png, {tmp_path}/b/, {tmp_path}/b/../c.png,{tmp_path}/other,"
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(wanted)]
    assert found == ["c.png", "b/a.png", "b/z.JPG", "b/deep/er.webp"]
    comma, missing = tmp_path / "d,e.png", tmp_path / "missing.png"
    assert find_images(str(comma)) == [comma]
    assert find_images((str(comma), str(missing))) == [comma, missing]


def test_naming_no_image_is_an_error(tmp_path: Path) -> None:
    for wanted in ("", " , "):
        with pytest.raises(ValueError, match="names nothing"):
            find_images(wanted)
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
        (b"", "cannot read .*: it is empty"),
        (b"hello", "cannot read .*: no picture of a kind that Pillow knows"),
        (None, "there is no file .*"),
        # Pillow's plugins raise more than they document: RuntimeError for a damaged AVIF.
        (b"avif", "cannot read .*: Failed to decode image$"),
    ],
)
def test_what_is_no_image_is_named(
    tmp_path: Path, content: bytes | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(data: bytes) -> np.ndarray:
        raise RuntimeError("Failed to decode image\nmore")

    path = tmp_path / "x\x1b.jpg"
    if content is not None:
        path.write_bytes(content)
    if content == b"avif":
        monkeypatch.setattr("vitx.data.user_images.read_image", broken)
    with pytest.raises(ValueError, match=message) as raised:
        read_user_image(path)
    assert "\n" not in str(raised.value) and str(raised.value).count("x?.jpg") == 1


# Options


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections'
def test_options_are_read_from_the_command_line(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    def read(*options: str) -> ConfigDict:
        line = ["evaluate.py", f"--config={config_file.__file__}"]
        line += [f"--config.{option}" for option in (f"checkpoint={checkpoint}", *options)]
        monkeypatch.setattr(sys, "argv", line)  # where ml_collections looks
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values)
        values(line)
        return values.config

    config = read("images=a b.jpg,c/", "image_size=224,336", "classes=3,17", "norm_eps=1e-12")
    assert (config.images, config.image_size, config.classes) == ("a b.jpg,c/", (224, 336), "3,17")
    assert config.norm_eps == 1e-12
    for sides, size in (("16", (16, 16)), ("4,8", (4, 8)), ("0", SIZE), ("0,0", SIZE)):
        assert Explainer(read(f"image_size={sides}")).model.preprocess.size == size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": "gradcam,lpr"}, "config.methods: 'lpr' is none of rollout, raw_attention"),
        ({"rules": "best"}, "config.rules must be one of published, stable, not 'best'"),
        ({"aspect": "fit"}, "config.aspect must be one of squash, keep, crop"),
        ({"scores": "x"}, "config.scores must be one of auto, softmax, sigmoid"),
        ({"high_norm": "mean"}, "config.high_norm must be one of keep, median, not 'mean'"),
        ({"batch_size": 0}, "config.batch_size must be a whole number from 1 up, not 0"),
        ({"image_size": (1, 2, 3)}, r"image_size must be a side or \(H, W\).*not \[1, 2, 3\]"),
        ({"image_size": (6,)}, r"image_size \(6, 6\) is not a multiple of the patch"),
        ({"classes": "clas 1"}, "no class is named 'clas 1'; nearest: class 1"),
        ({"start_layer.raw_attention": 2}, r"start_layer must be an int in \[0, 2\)"),
        ({"font": __file__}, "config.font: cannot read the font"),
    ],
)
def test_wrong_options_are_named(
    command: Command, changes: dict[str, object], message: str
) -> None:
    write_photos(command.folder, 2)
    run = command.begun(**changes)
    with pytest.raises(ValueError, match=message):
        check_options(run.config, KNOWN)
        explain_images(run, run.stage("explain"))
    assert not list(command.out.iterdir())


def test_classifier_of_train_py_brings_names_and_sigmoid(tmp_path: Path, checkpoint: Path) -> None:
    write_json(tmp_path / "scores.json", {"average_precision": {"z": 0.5, "b": None, "a": 1.0}})
    own = Path(shutil.copy(checkpoint, tmp_path / "model.safetensors"))
    (tmp_path / "names.txt").write_text("p\nq\nr\n")
    changes = {"class_names": str(tmp_path / "names.txt"), "scores": "softmax"}
    for path, options, names, scores in (
        (tmp_path, {}, ("z", "b", "a"), "sigmoid"),
        (own, {}, ("z", "b", "a"), "sigmoid"),
        (own, changes, ("p", "q", "r"), "softmax"),
        (checkpoint, {}, ("class 0", "class 1", "class 2"), "softmax"),
    ):
        explainer = Explainer(config_for(path, **options))
        assert (explainer.names, explainer.scores) == (names, scores)


def test_a_file_says_its_kind_of_scores(tmp_path: Path) -> None:
    model = small_vit()
    model.name_classes(scores="sigmoid")
    vitx.save(model, tmp_path)
    assert Explainer(config_for(tmp_path)).scores == "sigmoid"
    assert Explainer(config_for(tmp_path, scores="softmax")).scores == "softmax"


def test_guessed_heads_are_noted(tmp_path: Path, checkpoint: Path) -> None:
    heads = guessing(tmp_path / "model.safetensors")
    note = f"{heads} heads are guessed from the width, 128, as no file specifies them"
    assert Explainer(config_for(tmp_path)).note((20, 30)) == note
    assert Explainer(config_for(tmp_path, num_heads=4)).note((20, 30)) == ""
    assert Explainer(config_for(checkpoint)).note((20, 30)) == ""


def test_the_demo_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="run `make demo` first, or give"):
        Explainer(config_for(""))
    vitx.save(small_vit(num_classes=5), tmp_path / DEMO)
    explainer = Explainer(config_for(""))
    assert explainer.names == ("disc", "square", "triangle", "cross", "ring")
    assert explainer.scores == "sigmoid"


def test_a_thousand_outputs_are_imagenets(tmp_path: Path) -> None:
    vitx.save(small_vit(num_classes=1000), tmp_path)
    explainer = Explainer(config_for(tmp_path))
    assert explainer.names == imagenet_names() and explainer.scores == "softmax"


def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    def affinity_net() -> AffinityNet:
        stem, preprocess = ConvStem((8,), 4, rngs=nnx.Rngs(0)), Preprocess(size=(8, 8))
        sizes = {"hidden": 8, "features": 8, "groups": 4}
        return AffinityNet(stem, (2, 2), preprocess=preprocess, **sizes, rngs=nnx.Rngs(0))

    vitx.save(filled(affinity_net), tmp_path)
    with pytest.raises(ValueError, match="holds an AffinityNet, which has no classes to explain"):
        Explainer(config_for(tmp_path))


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
    assert nearest_grid(image, 196) == grid
    assert nearest_grid(image[::-1], 196) == grid[::-1]


def test_grids_are_few_and_of_one_size() -> None:
    sides = [(100, side) for side in range(1, 2000, 7)]
    shapes = sides + [shape[::-1] for shape in sides]
    grids = {nearest_grid(shape, 196) for shape in shapes}
    assert len(grids) == 9
    assert all(abs(height * width - 196) <= 0.05 * 196 for height, width in grids)
    assert {nearest_grid(shape, 1) for shape in shapes} <= {(1, 1), (1, 2), (2, 1)}


# The command


def save_every_kind(folder: Path) -> None:
    """Twelve images, and three files that are none."""
    rgb = Image.fromarray(photo(20, 30))
    write(folder / "a" / "x.jpg", photo(30, 20, 1))
    write(folder / "b" / "x.jpg", photo(40, 50, 2))
    write(folder / "b" / "x.png", photo(1, 1))
    write(folder / "strip.png", photo(5, 300))
    write(folder / "grey.png", photo(20, 30)[..., 0])
    write(folder / "deep.png", photo(20, 30)[..., 0].astype(np.uint16) * 257)
    rgb.convert("RGBA").save(folder / "alpha.png")
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("P").save(folder / "привет мир.gif", save_all=True, append_images=[rgb])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    rgb.save(folder / "turned.jpg", exif=exif)
    rgb.save(folder / "odd.jpg", exif=exif.tobytes()[:20])  # Pillow warns of it
    rgb.save(os.fsencode(folder) + b"/\xff.bmp")
    whole = (folder / "a" / "x.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("no image")
    (folder / "empty.png").touch()


@pytest.mark.slow
def test_every_kind_of_image(command: Command) -> None:
    folder = command.folder
    save_every_kind(folder)
    assert command(f"{folder},{folder}/a/x.jpg,{folder}/nowhere.png") == (12, 0, 4)
    for name in ("cut.jpg", "text.jpg", "empty.png", "nowhere.png"):
        assert command.printed.count(name) == 1
    assert len(list(command.out.glob("*.npz"))) == 12
    found = command.results()
    for arrays in found.values():
        assert arrays["raw_attention"].shape == (1, 2, 3)
        assert arrays["classes"] == arrays["logits"].argmax()
        assert list(arrays["class_names"]) == ["class 0", "class 1", "class 2"]
        assert arrays["input_size"].tolist() == [*SIZE]
        np.testing.assert_allclose(arrays["probabilities"].sum(), 1, rtol=1e-5)
    assert found["turned.jpg"]["image_size"].tolist() == [30, 20]
    assert found["strip.png"]["image_size"].tolist() == [5, 300]


def resized(path: Path, size: tuple[int, int] = SIZE) -> np.ndarray:
    """The model's input (H, W, 3) for an image file: mean and std are 0.5."""
    with Image.open(path) as image:
        small = image.resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(small, np.float32) / np.float32(127.5) - 1


@pytest.mark.slow
def test_maps_are_those_of_the_image_alone(command: Command, checkpoint: Path) -> None:
    """Whatever shares or fills its batch; read and resized here without the project's code."""
    paths = [write(command.folder / f"{n}.png", photo(16 + n, 24, n)) for n in range(3)]
    methods, model = ("transformer_attribution", "raw_attention"), vitx.load(checkpoint)
    for classes, scores in (("class 2,0", "sigmoid"), ("", "softmax")):
        changes = {"classes": classes, "best": 2, "scores": scores, "methods": ",".join(methods)}
        assert command(**changes) == (3, 0, 0)
        found = command.results()
        for path in paths:
            pair, arrays = (
                np.stack([resized(path), np.zeros((*SIZE, 3), np.float32)]),
                found[path.name],
            )
            logits = np.asarray(vitx.explain(model, pair, [[2, 0]] * 2, methods[0])[0][0])
            order = [2, 0] if classes else np.argsort(-logits)[:2].tolist()
            assert arrays["classes"].tolist() == order
            assert tuple(arrays)[:2] == methods
            for method in methods:
                _, maps = vitx.explain(model, pair, [order, [0, 1]], method)
                np.testing.assert_allclose(arrays[method], maps[0], rtol=2e-3, atol=1e-6)
            np.testing.assert_allclose(arrays["logits"], logits, rtol=1e-4, atol=1e-5)
            powers = np.exp(logits)
            probabilities = powers / (1 + powers if classes else powers.sum())
            np.testing.assert_allclose(arrays["probabilities"], probabilities, rtol=1e-4)


@pytest.mark.slow
def test_tokens_of_high_norm_are_named_and_smoothed(command: Command, checkpoint: Path) -> None:
    """The patch embedding's bias along a position of the grid makes it an outlier in every image."""
    model = vitx.load(checkpoint)
    model.pos_embed.set_value(model.pos_embed[...].at[:, 3].mul(100))
    command.checkpoint = command.folder / "outlier.safetensors"
    write_photos(command.folder, 2)
    vitx.save(model, command.checkpoint)
    named = "images with patch tokens of high norm: 2"
    found = {}
    for high_norm in ("keep", "median"):
        command.out = command.folder.parent / high_norm
        counts = command(
            methods="raw_attention,lrp",
            high_norm=high_norm,
            images=f"{command.folder}/0.png,{command.folder}/1.png",
        )
        assert counts == (2, 0, 0)
        assert (
            named in command.printed and f"{command.folder}/1.png: 1 of 6 tokens" in command.printed
        )
        found[high_norm] = command.results()["1.png"]
    mask = np.zeros((2, 3), bool)
    mask[0, 2] = True
    for arrays in found.values():
        np.testing.assert_array_equal(arrays["high_norm"], mask)
    kept, smooth = (found[name]["raw_attention"][0] for name in ("keep", "median"))
    np.testing.assert_array_equal(smooth[~mask], kept[~mask])
    assert smooth[0, 2] == pytest.approx(np.median([kept[0, 1], kept[1, 1], kept[1, 2]]))
    np.testing.assert_array_equal(found["median"]["lrp"], found["keep"]["lrp"])  # of pixels


@pytest.mark.slow
def test_each_size_is_compiled_once(command: Command) -> None:
    write_photos(command.folder, 5)
    before = relevance._explain_many._cache_size()
    assert command(batch_size=3) == (5, 0, 0)
    assert relevance._explain_many._cache_size() == before + 1


@pytest.mark.slow
def test_aspect_is_kept(command: Command, checkpoint: Path) -> None:
    tall = write(command.folder / "tall.png", photo(40, 20))
    write(command.folder / "wide.png", photo(20, 30, 1))
    assert command(aspect="keep") == (2, 0, 0)
    found = command.results()
    assert found["wide.png"]["input_size"].tolist() == [*SIZE]
    arrays = found["tall.png"]
    assert arrays["input_size"].tolist() == [12, 8] and arrays["raw_attention"].shape == (1, 3, 2)

    model = vitx.load(checkpoint, image_size=(12, 8))
    logits, maps = vitx.explain(model, resized(tall, (12, 8))[None], [[0]], "raw_attention")
    np.testing.assert_allclose(arrays["raw_attention"], maps[0], rtol=1e-4)
    np.testing.assert_allclose(arrays["logits"], logits[0], rtol=1e-4, atol=1e-5)


def test_sizes_share_their_weights(checkpoint: Path) -> None:
    explainer = Explainer(config_for(checkpoint))
    own, other = explainer.model, explainer.at((16, 8))
    assert other.head.kernel[...] is own.head.kernel[...]
    assert other.pos_embed.shape == (1, 9, 12) and own.pos_embed.shape == (1, 7, 12)


@pytest.mark.slow
def test_what_is_done_is_left_alone_unless_made_of_something_else(
    command: Command, tmp_path: Path
) -> None:
    command.checkpoint = Path(shutil.copy(command.checkpoint, tmp_path / "mine.safetensors"))
    _, second, third = write_photos(command.folder, 3)
    assert command() == (3, 0, 0)
    first = {path: path.read_bytes() for path in command.out.iterdir()}
    assert command(batch_size=1) == (0, 3, 0)
    assert {path: path.read_bytes() for path in command.out.iterdir()} == first
    for change in ({"classes": "1"}, {"rules": "stable"}, {"top": 1}, {"scores": "sigmoid"}):
        assert command(**change) == (3, 0, 0)
        assert command(**change) == (0, 3, 0)
    assert command() == (3, 0, 0)
    assert {path: path.read_bytes() for path in command.out.iterdir()} == first

    lost, damaged, begun = sorted(command.out.glob("*.npz"))
    lost.with_suffix(".png").unlink()
    damaged.write_bytes(b"PK")
    begun.unlink()
    assert command() == (3, 0, 0)
    write(second, photo(*SIZE, 9))
    third.write_bytes(b"damaged")
    assert command() == (1, 1, 1)

    vitx.save(small_vit(norm_eps=1e-5), command.checkpoint)
    assert command() == (2, 0, 1)


def test_a_picture_and_maps_of_other_options_are_not_mixed(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, arrays: object) -> None:
        raise KeyboardInterrupt

    write_photos(command.folder, 2)
    assert command() == (2, 0, 0)
    run = command.begun(top=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(explain, "write_npz", killed)
        explain_images(run, run.stage("explain"))
    assert command() == (1, 1, 0)


def test_stopped_command_goes_on(command: Command) -> None:
    class AfterTheFirstBatch(StopRequest):
        def check(self) -> None:
            if list(command.out.glob("*.npz")):
                raise Stopped(15)

    write_photos(command.folder, 5)
    run = command.begun()
    run.stop = AfterTheFirstBatch()
    with pytest.raises(Stopped):
        explain_images(run, run.stage("explain"))
    assert len(command.results()) == 2
    assert command() == (3, 2, 0)


def test_a_bad_image_ends_the_command_where_that_is_wanted(command: Command) -> None:
    write(command.folder / "a.png", photo(*SIZE))
    (command.folder / "b.png").touch()
    with pytest.raises(ValueError, match=r"b\.png: it is empty; .*--config.on_bad_image=skip$"):
        command(on_bad_image="stop")


def test_nothing_readable_is_an_error(command: Command, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_text("no image")
    message = r"none of 2 files is an image: .*x\.jpg.*; .*y\.jpg"
    with pytest.raises(ValueError, match=message) as raised:
        command(f"{tmp_path}/x.jpg,{tmp_path}/y.jpg")
    assert "\n" not in str(raised.value)


# The figure


def has(picture: np.ndarray, part: np.ndarray) -> bool:
    """Whether one picture (H, W, 3) is a part of another."""
    height, width = part.shape[:2]
    places = np.argwhere((picture == part[0, 0]).all(-1))
    return any(np.array_equal(picture[y : y + height, x : x + width], part) for y, x in places)


def drawn(*arguments: object) -> np.ndarray:
    with Image.open(io.BytesIO(draw_figure(*arguments))) as picture:
        return np.asarray(picture)


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((48, 48), (336, 336)),  # a whole multiple
        ((1, 1), (360, 360)),
        ((480, 640), (360, 480)),
        ((1080, 1920), (270, 480)),
        ((3000, 50), (360, 45)),
        ((50, 3000), (60, 480)),
    ],
)
def test_panels_are_of_a_size(size: tuple[int, int], shown: tuple[int, int]) -> None:
    image = photo(*size)
    assert panel(image).shape == (*shown, 3)
    assert shown[0] <= PANEL[1] and shown[1] <= PANEL[0]
    if size == (48, 48):  # hard pixels
        np.testing.assert_array_equal(panel(image)[2::7, 5::7], image)


def test_figure_shows_the_image_and_each_map() -> None:
    shown = panel(photo(48, 64))
    maps = {name: photo(3, 4, n)[..., 0] / 7.0 for n, name in enumerate(("GradCAM", "LRP"), 5)}
    nothing = {"GradCAM": np.full((3, 4), np.nan), "LRP": np.ones((3, 4))}
    scores = [("cat", 0.75), ("dog", 0.25)]
    picture = drawn(shown, "a/cat.png", (48, 64), scores, [("cat", maps), ("dog", nothing)])
    assert has(picture, shown)
    assert all(has(picture, overlay(shown, heatmap)) for heatmap in maps.values())
    assert (picture == (232, 232, 236)).all(-1).sum() > shown.shape[0] * shown.shape[1]  # pale
    for edge in (picture[:3], picture[-3:], picture[:, :3], picture[:, -3:]):
        assert (edge == 255).all()  # nothing is cut off


def test_probabilities_are_bars() -> None:
    shown, rows = panel(np.zeros((48, 48, 3), np.uint8)), [("x", {"LRP": np.eye(2)})]

    def blue(probability: float) -> int:
        picture = drawn(shown, "x", (48, 48), [("x", probability)], rows)
        return int((picture == (52, 98, 168)).all(-1).sum())

    assert blue(0.5) > 0
    assert blue(1.0) == pytest.approx(2 * blue(0.5), rel=0.02)
    assert blue(0.0) == blue(float("nan")) == 0


def test_long_and_foreign_names_fit() -> None:
    shown = panel(photo(300, 20))
    rows = [("many words " * 30, {"a method of a long name " * 5: np.eye(3)})]
    names = ["a" * 300, "Überlänge, привет 日本 " * 9]
    picture = drawn(shown, names[1], (300, 20), [(name, 0.3) for name in names], rows)
    assert picture.shape[1] < 840
    assert (picture[:, -8:] == 255).all()


def test_font_of_a_file_is_used(tmp_path: Path) -> None:
    path = tmp_path / "own.ttf"
    path.write_bytes(Path(load_font("", 15).path).read_bytes())
    assert (
        load_font(str(path), 15).getname() == load_font("", 15).getname() == ("DejaVu Sans", "Book")
    )


def test_maps_that_show_nothing_are_named(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explained(
        model: object, images: object, classes: np.ndarray, methods: tuple, *options: object
    ) -> tuple:
        maps = np.where(classes == 1, np.nan, 1)[..., None, None] * np.ones((2, 3))
        return None, dict.fromkeys(methods, maps)

    assert nothing_in(np.eye(2)) == ""
    assert nothing_in(np.diag([np.inf, 0])) == "not finite"
    write_photos(command.folder, 2)
    monkeypatch.setattr("vitx.pipeline.explainer.explain_many", explained)
    assert command(classes="2,1") == (2, 0, 0)
    lines = command.printed.splitlines()
    assert lines[0] == "images with maps that show nothing: 2"
    named = "raw attention of class 2 is constant, raw attention of class 1 is not finite"
    assert lines[1:3] == [f"  {command.folder / name}: {named}" for name in ("0.png", "1.png")]


def test_the_demos_model_says_that_it_knows_five_shapes(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the output and on the pictures, for images of another size than its own."""
    monkeypatch.chdir(tmp_path)
    vitx.save(small_vit(num_classes=5), tmp_path / DEMO)
    command.checkpoint, said = "", {}
    for name, size in (("own.png", SIZE), ("photo.png", (30, 40))):
        command.folder = tmp_path / Path(name).stem
        command.out = command.folder / "out"
        write(command.folder / "in" / name, photo(*size))
        command(command.folder / "in")
        said[name] = "knows nothing but 5 drawn shapes (disc," in command.printed
        for picture in command.out.glob("*.png"):
            with Image.open(picture) as drawn:
                assert (np.asarray(drawn) == (176, 32, 16)).all(-1).any() == said[name]
    assert said == {"own.png": False, "photo.png": True}


def test_overlays_follow_the_options(command: Command) -> None:
    write_photos(command.folder, 1)
    assert command(classes="1,2") == (1, 0, 0)
    each = {path: path.read_bytes() for path in command.out.glob("*.raw_attention.?.*.png")}
    assert [path.name.split(".")[2] for path in sorted(each)] == ["1", "2"]
    assert command(classes="1,2", overlay="blend") == (1, 0, 0)
    assert all(path.read_bytes() != before for path, before in each.items())
    assert command(classes="1", overlays=False) == (1, 0, 0)
    assert len(list(command.out.iterdir())) == 2  # the sheet and the maps
