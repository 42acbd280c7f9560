"""The command line from outside: exit codes, and one line where the input is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vitx.runtime.command_line import _as_note

ROOT = Path(__file__).parents[2]


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
def test_a_damaged_record_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds/stage.json").write_text("{")
    result = _train(tmp_path, "--config.stages=classifier")
    assert (result.returncode, result.stderr.count("Traceback")) == (2, 0)
    assert "seeds/stage.json is damaged" in result.stderr
    assert "Traceback" in (tmp_path / "error.txt").read_text()


@pytest.mark.slow
def test_unknown_option_is_refused_before_anything_runs(tmp_path: Path) -> None:
    ended = _train(tmp_path, "--config.classifier.epoch=3")
    assert ended.returncode != 0
    assert "epoch" in ended.stderr
    assert not (tmp_path / "classifier").exists()


def _refused(workdir: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A run that its first check refuses, started in another folder than the repository."""
    command = [sys.executable, str(ROOT / "train.py"), f"--config={ROOT / 'configs/testing.py'}"]
    command += [f"--workdir={workdir}", "--config.stages=none"]
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_workdir_in_the_home_folder(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    ended = _refused("~/runs/x", tmp_path / "here", HOME=str(tmp_path / "home"))
    assert "no stage 'none'" in ended.stderr
    assert (tmp_path / "home/runs/x/error.txt").exists()
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workdir", "message"),
    [
        ("", "error: --workdir is empty: name a folder, or leave the flag out"),
        (" ", "error: --workdir is empty"),
        ("~nobody-of-that-name/x", "error: --workdir=~nobody-of-that-name/x: the home folder is"),
        ("/".join(["a" * 200] * 30), "is too long (6,"),
        (("/tmp/" + "/".join(["a" * 200] * 30))[:4085], "is too long (4,085 bytes"),
        ("a" * 300, "its longest name 300)"),
    ],
    ids=["empty", "blank", "no home", "relative path", "nearly the longest path", "name"],
)
def test_a_workdir_that_cannot_be_is_one_line(workdir: str, message: str, tmp_path: Path) -> None:
    ended = _refused(workdir, tmp_path)
    assert ended.returncode == 2, ended.stderr[-500:]
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ") and message in line and len(line) < 500
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_user_without_a_home_folder_can_run(tmp_path: Path) -> None:
    script = """
import os, pathlib, runpy, sys
del os.environ["HOME"]
os.environ.pop("XDG_CACHE_HOME", None)
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
def unknown(path):
    raise KeyError("getpwuid(): uid not found")
import pwd
pwd.getpwuid = unknown  # as in a container that is run under any number
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    command = [sys.executable, "-c", script, "train.py", "--config=configs/testing.py"]
    command += [f"--workdir={tmp_path / 'run'}", "--config.stages=none"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr, ended.stderr
    assert "compiled programs are not kept: the home folder is not known" in ended.stderr
    assert "error: config.stages has no stage 'none'" in ended.stderr


def test_warnings_for_users_do_not_read_like_faults() -> None:
    assert _as_note("3 heads are guessed", UserWarning, "a.py", 7, "x()") == (
        "note: 3 heads are guessed\n"
    )
    assert _as_note("old", DeprecationWarning, "a.py", 7).startswith("a.py:7: DeprecationWarning")
