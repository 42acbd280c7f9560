"""The command line from outside: exit codes, and one line where the input is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _train(workdir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "train.py", "--config", "configs/testing.py"]
    command += ["--workdir", str(workdir), f"--config.data.root={workdir / 'data'}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_config_of_the_other_script_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "train.py", "--config", "configs/explain.py"]
    command += ["--workdir", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "error: config.stages=explain names no stage of this script" in ended.stderr


@pytest.mark.slow
def test_half_a_description_of_several_hosts_is_one_line(tmp_path: Path) -> None:
    ended = _train(tmp_path, "--num_processes=2")
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "error: cannot start the processes together: " in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.stages=clasifier", "error: config.stages has no stage 'clasifier'"),
        ("--config.model.name=vit_bas_patch16_224", "error: unknown model 'vit_bas_patch16_224'"),
        ("--config.data.name=voc", "error: unknown dataset 'voc'"),
        ("--config.model.image_size=50", "error: config.affinity.grid 12 must divide"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    tmp_path: Path, argument: str, message: str
) -> None:
    ended = _train(tmp_path, argument)
    assert ended.returncode == 2, ended.stderr
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "Traceback" in (tmp_path / "error.txt").read_text()


@pytest.mark.slow
def test_unknown_option_is_refused_before_anything_runs(tmp_path: Path) -> None:
    ended = _train(tmp_path, "--config.classifier.epoch=3")
    assert ended.returncode != 0
    assert "epoch" in ended.stderr
    assert not (tmp_path / "classifier").exists()
