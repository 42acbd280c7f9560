"""The command `vitx`: what it hands on, what it lists, and its errors."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vitx
from tests.small_models import small_vit
from vitx import commands
from vitx.data.user_images import find_images
from vitx.models.families import MODELS
from vitx.pipeline.stages import EVALUATE, TRAIN
from vitx.runtime import command_line, config_files
from vitx.runtime.experiment import check_options, ranges_of
from vitx.runtime.options import flat, range_of

ROOT = Path(__file__).parents[2]
STAGES = {stage.name: stage for stage in (*TRAIN, *EVALUATE)}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], list[str]]]:
    """The arguments and the names of the stages of each launch, none of which runs."""
    calls: list[tuple[list[str], list[str]]] = []

    def launch(stages, before=(), after=()) -> None:
        calls.append((sys.argv[1:], [stage.name for stage in stages]))

    monkeypatch.setattr(command_line, "launch", launch)
    monkeypatch.setattr(sys, "argv", ["vitx"])
    return calls


def _vitx(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vitx", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_train_and_evaluate_hand_on_their_flags(launched) -> None:
    commands.main(["train", "shapes", "--workdir", "w", "--config.seed=1"])
    commands.main(["evaluate", "--config.seed=1", "shapes"])
    assert launched == [
        (["--config=shapes", "--workdir=w", "--config.seed=1"], [s.name for s in TRAIN]),
        (["--config=shapes", "--config.seed=1"], [s.name for s in EVALUATE]),
    ]


def test_explain_fills_in_its_experiment(launched) -> None:
    commands.main(
        ["explain", "a b.jpg", "c/", "--model=m.npz", "--classes=cat,dog", "--config.top=5"]
    )
    (arguments, stages) = launched[0]
    assert stages == ["explain"] and arguments[0] == "--config=explain"
    given = dict(word.removeprefix("--").split("=", 1) for word in arguments)
    assert given == {
        "config": "explain",
        "workdir": "explained",
        "config.images": "a b.jpg,c/",
        "config.checkpoint": "m.npz",
        "config.methods": "auto",
        "config.classes": "cat,dog",
        "config.best": "1",
        "config.top": "5",
    }
    _, config = config_files.load("explain")
    assert {name.removeprefix("config.") for name in given if "." in name} <= set(config)


def test_compare_fills_in_its_experiment(launched) -> None:
    commands.main(["compare", "m.pth", "--config.count=1"])
    assert launched == [
        (
            ["--config=compare", "--workdir=runs/compare", "--config.checkpoint=m.pth", "--config.count=1"],
            ["parity"],
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "invalid choice: 'nonsense'"),
        ([], "required: COMMAND"),
        (["explain"], "required: IMAGE"),
        (["explain", "a,b.jpg", "c.jpg"], "a,b.jpg: a name with a comma must be the only image"),
        (["models", "--config.x=1"], "unexpected argument '--config.x=1'"),
        (["models", "vgg99"], "no model's name has 'vgg99'"),
        (["configs", "shape"], "there is no experiment 'shape'; nearest: shapes"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], message: str, launched, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        commands.main(arguments)
    assert ended.value.code == 2 and not launched
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["", "explain", "train", "evaluate", "compare", "models", "configs"])  # fmt: skip
def test_help_describes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        commands.main([*([command] if command else []), "--help"])
    assert not ended.value.code
    assert f"usage: vitx {command}".strip() in capsys.readouterr().out


def test_a_missing_package_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "vitx.pipeline.stages", None)
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError, match="stages"):  # not of an extra: a defect, shown whole
        commands.main(["train", "shapes"])
    error = ModuleNotFoundError("No module named 'grain'", name="grain.python")
    assert "pip install 'vitx[train]'" in command_line.explained(error)
    assert command_line.explained(ValueError("x")) == "x"


# Listings


def test_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    commands.main(["models"])
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    assert {*MODELS, "vgg16_cam", "resnet50_cam"} <= set(listed)
    commands.main(["models", "dinov2"])
    lines = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert len(lines) == 1 + sum("dinov2" in name for name in MODELS)


def test_every_experiment_is_listed_and_can_be_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    commands.main(["configs"])
    listed = capsys.readouterr().out
    files = {path.stem for path in (ROOT / "configs").glob("*.py")} - {"__init__"}
    assert {*config_files.names()} == files
    for name in files:
        described, config = config_files.load(name)
        assert f"{name} " in listed and described.splitlines()[0] in listed
        check_options(config, STAGES)


@pytest.mark.parametrize("name", ["explain", "shapes", "voc_best"])
def test_options_have_values_comments_and_ranges(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.main(["configs", name])
    text = capsys.readouterr().out
    _, config = config_files.load(name)
    ranges = ranges_of(STAGES)
    for key, value in flat(config).items():
        assert f"--config.{key}={value!r}\n" in text
        assert range_of(key, ranges) is None or f"--config.{key}=" in text
    said = config_files.comments(config_files.find(name))
    assert len({*said} & {*flat(config)}) > 10


def test_comments_are_those_of_the_option(tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text("config.a = 1  # of base\nconfig.b = 2  # stays\n")
    (tmp_path / "own.py").write_text(
        "from configs import base\n\n# Not of a.\n\n# Above,\n# two lines.\nconfig.a = (\n    3  # and beside\n)\n"
        "config.c = 4\nconfig.d = '# no comment'\n"
    )
    said = config_files.comments(tmp_path / "own.py")
    assert said == {"a": "Above, two lines. and beside", "b": "stays"}


# Finding


def test_experiments_are_found_by_name_and_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ours = ROOT / "configs/shapes.py"
    for wanted in ("shapes", "shapes.py", "configs/shapes.py"):
        assert config_files.find(wanted) == ours
    assert config_files.find("nowhere/x.py") == Path("nowhere/x.py")  # the flag's own error
    Path("shapes").touch()
    found = config_files.with_found(["x", "--config", "voc", "--config=testing", "--config.seed=1"])
    assert found == [
        "x", "--config", str(ROOT / "configs/voc.py"), f"--config={ROOT / 'configs/testing.py'}",
        "--config.seed=1",
    ]  # fmt: skip


# From outside


@pytest.mark.slow
def test_a_photograph_is_explained_from_outside(tmp_path: Path) -> None:
    """In a folder of the user's own, with a package of theirs named configs."""
    vitx.save(small_vit(), tmp_path / "model.safetensors")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/__init__.py").touch()
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    script = (
        f"import sys; sys.path.insert(1, {str(ROOT)!r}); from vitx.commands import main; main()"
    )
    command = [sys.executable, "-c", script, "explain", "photo.jpg", "--model", "model.safetensors"]
    ended = subprocess.run(
        [*command, "--method=raw_attention"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "explain: 1 written" in ended.stdout
    written = sorted(path.name for path in (tmp_path / "explained").glob("photo-*"))
    assert [name.split(".", 1)[1] for name in written] == [
        "explained.npz", "explained.png", f"raw_attention.{written[2].split('.')[2]}.explained.png",
    ]  # fmt: skip
    assert find_images(str(tmp_path)) == [tmp_path / "photo.jpg"]  # results are no images


@pytest.mark.slow
def test_an_architecture_is_no_checkpoint(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    ended = _vitx(
        "explain", f"{tmp_path}/a.png", "--model=vit_base_patch16_224", f"--out={tmp_path}/out"
    )
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "names an architecture, whose weights would be random" in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [["-m", "vitx", "train", "nonsense"], ["train.py", "--config", "nonsense"]],
    ids=["vitx", "script"],
)
def test_an_unknown_experiment_is_one_line(command: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("error: there is no experiment 'nonsense'")
