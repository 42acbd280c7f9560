"""README and docs: every block of code runs, every link leads somewhere, and the site builds.

Commands of vitx run in the setting of tests/small_commands.py, on made data and weights. `NOT_RUN` lists those that do
not run, each with a reason and what is checked of it instead.
"""

import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from flax import nnx
from ml_collections import ConfigDict
from PIL import Image

import vitx
import vitx.runtime.command_line  # its flags
from tests.documents import Block, blocks_of, commands_of, one_script
from tests.made_imagenet import make_gtsegs, make_validation_tar
from tests.made_voc import make_voc, write_sbd
from tests.small_commands import made_small
from tests.small_models import filled, small_vit
from vitx import commands
from vitx.data.formats.voc_annotations import VOC_CLASSES
from vitx.data.source import open_source
from vitx.models.affinitynet import AffinityNet, vgg16_affinity_net

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
DIRECTIVES = ("{toctree}", "{eval-rst}", "{include}")  # of the site: no code


def _is_target(command: list[str]) -> None:
    subprocess.run(["make", "-n", *command[1:]], cwd=ROOT, check=True, capture_output=True)


def _can_be_installed(command: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    arguments = command[command.index("install") + 1 :]
    for argument in arguments:
        if argument == ".":
            assert project["name"] == "vitx"
        elif extra := re.fullmatch(r"\.\[(\w+)]", argument):
            assert extra[1] in project["optional-dependencies"]
        elif argument.startswith("jax["):
            assert [argument] in project["optional-dependencies"].values()
        else:
            assert argument == "-r" or (ROOT / argument).is_file()


def _makes_it(command: list[str]) -> None:
    assert (
        command == [".", ".venv/bin/activate"]
        and "-m venv .venv" in (ROOT / "Makefile").read_text()
    )


def _is_a_command(command: list[str]) -> None:
    commands._parser().parse_args(command[1:])


def _has_options(command: list[str]) -> None:
    """The script, the config, its keys and the flags exist."""
    python, name, *arguments = command
    assert python == "python" and (ROOT / name).is_file()
    words = (
        " ".join(arguments).replace("--config ", "--config=").replace("--workdir ", "--workdir=")
    )
    options = dict(word.removeprefix("--").partition("=")[::2] for word in words.split())
    config = importlib.import_module(options["config"].removesuffix(".py").replace("/", "."))
    for option in options:
        if option.startswith("config."):
            assert _holds(config.get_config(), option.removeprefix("config.")), option
        else:
            assert option in flags.FLAGS, option


def _holds(config: ConfigDict, key: str) -> bool:
    first, _, rest = key.partition(".")
    return first in config and (not rest or _holds(config[first], rest))


# What a command contains -> why it is not run, and what is checked instead.
NOT_RUN: dict[str, tuple[str, Callable[[list[str]], None]]] = {
    "make demo": ("minutes; the quick start has its two commands, which run", _is_target),
    ".venv/bin/activate": ("the tests' environment stands for it", _makes_it),
    "-m pip install": ("fetches packages; .ci/run installs the requirements", _can_be_installed),
    "vitx compare": ("wants PyTorch; tests/pipeline/test_compare.py runs it", _is_a_command),
    "--coordinator_address": (
        "wants two hosts; tests/runtime/test_processes.py runs it",
        _has_options,
    ),
    "gs://": ("wants a bucket; tests/runtime/test_cloud.py runs it", _has_options),
}
# Blocks of text, by their first line: what they are.
TEXT = {"DIR/JPEGImages/<id>.jpg": "files in a folder; tests/made_voc.py makes them"}


def _blocks(language: str) -> list[Block]:
    found = [block for page in PAGES for block in blocks_of(ROOT / page, page)]
    return [block for block in found if block.language == language]


def _reason(command: list[str]) -> str | None:
    return next((known for known in NOT_RUN if known in " ".join(command)), None)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#:]+)[^):]*\)", text)
    missing = [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_listed(page: str) -> None:
    for block in blocks_of(ROOT / page, page):
        if block.language == "text":
            assert any(block.text.startswith(first) for first in TEXT), f"{block}: in no table"
            continue
        kind = block.language.split(" ")[0]
        assert kind in ("python", "bash", *DIRECTIVES), f"{block}: a block of {kind or 'nothing'}"


def test_the_tables_have_nothing_else() -> None:
    commands = [command for block in _blocks("bash") for command in commands_of(block)]
    assert {_reason(command) for command in commands} - {None} == set(NOT_RUN)
    texts = [block.text for block in _blocks("text")]
    assert all(any(text.startswith(first) for text in texts) for first in TEXT)


@pytest.mark.parametrize(
    "command",
    [c for block in _blocks("bash") for c in commands_of(block) if _reason(c)],
    ids=" ".join,
)
def test_what_is_not_run_could_be(command: list[str]) -> None:
    _, check = NOT_RUN[_reason(command) or ""]
    check(command)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made data and weights."""
    folder = tmp_path_factory.mktemp("inputs")
    make_validation_tar(folder / "imagenet/downloads/manual/ILSVRC2012_img_val.tar", 4, 0)
    make_gtsegs(folder / "imagenet/downloads/manual/gtsegs_ijcv.mat", 4, 0)
    # As many images and classes as VOC's below, so that both share what is compiled.
    make_voc(folder / "voc", train=16, val=8, size=(40, 52), prefix="own_")
    (folder / "classes.txt").write_text("\n".join(VOC_CLASSES))
    made = make_voc(folder / "voc2012/VOCdevkit/VOC2012", train=8, aug=8, val=8, size=(40, 52))
    write_sbd(made, folder / "voc2012/benchmark_RELEASE/dataset")
    for number in range(3):
        _draw(folder / f"folders/{'ab'[number % 2]}/{number}.jpg", number)
        _draw(folder / f"photos/{number}.png", number)
        _draw(folder / f"own/{number + 1:04d}.jpg", number)
    _draw(folder / "a.jpg", 9)
    vitx.save(small_vit(size=(32, 32), patch=8, num_classes=1000), folder / "vit.safetensors")
    hybrid = filled(lambda: vitx.create("vit_test_conv_s4_48", num_classes=5))
    for path in ("hybrid.safetensors", "classifier/model.safetensors"):
        vitx.save(hybrid, folder / path)
    trained = filled(lambda: vitx.create("vit_test_conv_s4_48", num_classes=20))
    vitx.save(trained, folder / "given/classifier.safetensors")
    net = AffinityNet(trained.stem, (12, 12), preprocess=trained.preprocess, rngs=nnx.Rngs(0))
    vitx.save(net, folder / "given/affinity.safetensors")
    vgg = filled(lambda: vitx.create("vgg_test_cam", num_classes=20, image_size=96))
    for path in ("vgg.safetensors", "given/vgg.safetensors"):
        vitx.save(vgg, folder / path)
    levels = vgg16_affinity_net(vgg, (12, 12), features=56, rngs=nnx.Rngs(0))
    vitx.save(levels, folder / "given/vgg_affinity.safetensors")
    (folder / "voc_masks").mkdir()
    for name in made.splits["val"]:
        shutil.copy(made.folder / f"SegmentationClass/{name}.png", folder / "voc_masks")
    return folder


def _draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A reader's, but for programs that are compiled quickly, and once for all commands."""
    changes = {
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return os.environ | changes


@pytest.fixture
def sandbox(inputs: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A clone as a reader has it, with pictures of their own and, but for the quick start, the demo's model."""
    for name in ("configs", "docs", "train.py", "evaluate.py", "vitx"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("photos", "a.jpg"):
        (tmp_path / name).symlink_to(inputs / name)
    (tmp_path / "photo.jpg").symlink_to(inputs / "a.jpg")
    (tmp_path / "weights.safetensors").symlink_to(inputs / "vit.safetensors")
    shutil.copytree(inputs / "own", tmp_path / "own/JPEGImages")
    if request.node.callspec.params["page"] != "docs/quickstart.md":
        (tmp_path / "runs/shapes").mkdir(parents=True)
        (tmp_path / "runs/shapes/classifier").symlink_to(inputs / "classifier")
    return tmp_path


PYTHON_PAGES = [page for page in PAGES if any(b.page == page for b in _blocks("python"))]
SHELL_PAGES = [
    page
    for page in PAGES
    if any(b.page == page and not all(map(_reason, commands_of(b))) for b in _blocks("bash"))
]


@pytest.mark.slow
@pytest.mark.parametrize("page", PYTHON_PAGES)
def test_python_runs(page: str, sandbox: Path, environment: dict[str, str]) -> None:
    file = sandbox / f"{Path(page).stem}.py"
    file.write_text(one_script([block for block in _blocks("python") if block.page == page]))
    # Of warnings, those are errors that the page's own lines cause.
    _run(["-W", "error:::__main__", str(file)], sandbox, environment)
    if page == "docs/data.md":
        _check_own_folder(sandbox)


def _check_own_folder(folder: Path) -> None:
    """What the page's script writes is read as it says."""
    splits = [
        open_source("voc_segmentation", split, folder / "own", classes=folder / "classes.txt")
        for split in ("train", "val")
    ]
    labels = {e.id: e.labels.tolist() for split in splits for e in split}
    assert labels == {"0002": [1, 1], "0003": [0, 0], "0001": [1, 0]}


@pytest.mark.exhaustive
@pytest.mark.parametrize("page", SHELL_PAGES)
def test_shell_runs(page: str, sandbox: Path, inputs: Path, environment: dict[str, str]) -> None:
    for block in _blocks("bash"):
        for command in commands_of(block):
            if block.page == page and not _reason(command):
                _run(made_small(command, page, inputs), sandbox, environment)


def _run(arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ended.returncode == 0, f"{' '.join(arguments)}\n{ended.stderr}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    (command,) = re.findall(r"sphinx-build (.*) build/docs", (ROOT / "Makefile").read_text())
    words = [sys.executable, "-m", "sphinx", *command.split(), str(folder)]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.mark.exhaustive
def test_the_site_needs_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert {str(page.relative_to(site).with_suffix(".md")) for page in pages} >= {
        str(Path(page).relative_to("docs")) for page in PAGES if page != "README.md"
    }
    loaded = r"""<(?:script|img|iframe|link)[^>]*(?:src|href)=["'](?:https?:)?//[^"']*"""
    fetched = r"""@import|url\(\s*["']?(?:https?:)?//"""
    for file in (*pages, *site.rglob("*.css")):
        assert not re.search(loaded if file.suffix == ".html" else fetched, file.read_text()), file
