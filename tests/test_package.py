"""The package: what is in the wheel, what an installation that only explains does not import, and its files."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import vitx

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HEAVY = ("array_record", "grain", "h5py", "orbax", "tensorboardX", "tensorflow_datasets", "torch")


def test_every_package_is_in_the_wheel() -> None:
    setuptools = PYPROJECT["tool"]["setuptools"]
    folders = [path.parent.relative_to(ROOT) for path in (ROOT / "vitx").rglob("__init__.py")]
    inside = {".".join(folder.parts) for folder in folders}
    assert {*setuptools["packages"]} == inside | {"vitx.configs"}
    assert setuptools["package-dir"] == {"vitx.configs": "configs"}
    for package, files in setuptools["package-data"].items():
        for file in files:
            assert (ROOT / package.replace(".", "/") / file).is_file()
    module, function = PYPROJECT["project"]["scripts"]["vitx"].split(":")
    assert (module, function) == ("vitx.commands", "main")


def test_the_extras_are_what_is_imported_lazily() -> None:
    project = PYPROJECT["project"]
    named = " ".join(project["dependencies"])
    for package in ("array_record", "grain", "h5py", "tensorboardX", "tensorflow-datasets"):
        assert package not in named
    extras = project["optional-dependencies"]
    assert {re.split("[<>=]", line)[0] for line in extras["data"]} == {
        "array_record", "grain", "h5py", "tensorflow-datasets",
    }  # fmt: skip
    assert "vitx[data]" in extras["train"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "imported",
    [
        "vitx",
        "vitx.commands, vitx.pipeline.listing",
        "vitx.pipeline.explain, vitx.pipeline.compare, vitx.runtime.command_line",
    ],
)
def test_explaining_imports_nothing_of_datasets_and_training(imported: str) -> None:
    """As where these packages are not installed at all."""
    script = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
import {imported}
"""
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_versions_agree() -> None:
    version = vitx.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
