"""Tables 2 and 3 from files in the real formats, by the command line: killed, resumed, and the same numbers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import pytest

import vitx
from tests.made_imagenet import make_gtsegs, make_validation_tar
from tests.small_models import recognising, small_vit
from vitx.data.loader import evaluation_batches
from vitx.data.source import open_source

ROOT = Path(__file__).parents[2]
IMAGES = 64


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the made data, and a small ViT with ImageNet's 1000 outputs that knows the images."""
    folder = tmp_path_factory.mktemp("inputs")
    manual = folder / "downloads" / "manual"
    manual.mkdir(parents=True)
    make_validation_tar(manual / "ILSVRC2012_img_val.tar", IMAGES, 0)
    make_gtsegs(manual / "gtsegs_ijcv.mat", IMAGES, 0)
    model = small_vit(size=(32, 32), patch=8, width=24, num_classes=1000)
    source = open_source("imagenet2012", "validation", folder)
    batch = evaluation_batches(source, preprocess=model.preprocess, batch_size=IMAGES)[0]
    recognising(model, jnp.asarray(batch["image"]), batch["labels"].argmax(1))
    vitx.save(model, folder / "model.safetensors")
    return folder


def _command(inputs: Path, workdir: Path, config: str, *options: str) -> list[str]:
    return [
        sys.executable,
        "evaluate.py",
        "--config",
        f"configs/{config}.py",
        "--workdir",
        str(workdir),
        f"--config.data.root={inputs}",
        f"--config.model.checkpoint={inputs / 'model.safetensors'}",
        "--config.model.num_heads=2",
        "--config.model.final_norm_eps=1e-5",
        "--config.methods.batch_size=4",
        "--config.report.images=3",
        *options,
    ]


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended


def _kill_after_a_batch(command: list[str], workdir: Path) -> int:
    """SIGKILL once something has been measured; how many batches there were then."""
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    folder = workdir / "methods" / "batches"
    try:
        while process.poll() is None and len(list(folder.glob("*.npz"))) < 2:
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    return len(list(folder.glob("*.npz")))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("config", "options", "figures"),
    [
        ("imagenet_perturbation", ("--config.methods.compared=('rollout','lrp')",), 2 + 4),
        ("imagenet_segmentation", (), 6 * 3),
    ],
)
def test_killed_and_resumed_is_undisturbed(
    inputs: Path, tmp_path: Path, config: str, options: tuple[str, ...], figures: int
) -> None:
    command = _command(inputs, tmp_path / "killed", config, *options)
    left = _kill_after_a_batch(command, tmp_path / "killed")
    assert 2 <= left < IMAGES // 4
    resumed = _run(command)
    _run(_command(inputs, tmp_path / "whole", config, *options))
    found, expected = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("killed", "whole")
    )
    assert found["methods"] == expected["methods"]
    if "perturbation" in config:
        assert found["methods"]["accuracy"] > 0.9, (
            "figures of a model that is always wrong tell nothing"
        )
        assert 0.1 < found["methods"]["perturbation"]["lrp"]["negative_target"]["auc"] < 0.8
    assert found["methods"]["images"] == IMAGES == found["dataset"]["images"]
    assert len(found["checkpoint"]) == 16
    assert found["options"]["methods"]["batch_size"] == 4
    assert resumed.stdout.count("Beside the published figures") == 1
    assert len(found["published"]["figures"]) == figures and not found["published"]["differing"]
    rows = [line for line in resumed.stdout.splitlines() if line.count("│") == 7]
    assert len(rows) >= figures
    page = (tmp_path / "killed" / "report.html").read_text()
    assert "Beside the published figures" in page and page.count("<img") >= 3 * 3


@pytest.mark.exhaustive
def test_missing_checkpoint_is_one_line_and_spoils_nothing(inputs: Path, tmp_path: Path) -> None:
    options = "--config.methods.compared=('rollout',)"
    command = _command(inputs, tmp_path / "run", "imagenet_segmentation", options)
    without = [part for part in command if "model.checkpoint" not in part]
    ended = subprocess.run(without, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert "--config.model.checkpoint=FILE" in line and "Traceback" not in ended.stderr
    _run(command)


@pytest.mark.slow
def test_gallery_of_a_dataset_with_other_classes(inputs: Path, tmp_path: Path) -> None:
    command = _command(
        inputs, tmp_path, "gallery", "--config.methods.compared=('rollout','gradcam')"
    )
    options = ["--config.data.name=imagenet_segmentation", "--config.data.val_split=test"]
    ended = _run([*command, *options])
    page = (tmp_path / "gallery.html").read_text()
    assert str(tmp_path / "gallery.html") in ended.stdout
    assert page.count("<img") == 3 * 3 and "target:" not in page
