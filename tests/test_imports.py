from pathlib import Path

from importlinter.cli import lint_imports


def test_imports_go_one_way(capsys):
    """The contracts are in pyproject.toml; `make lint` shows them too."""
    config = Path(__file__).parents[1] / "pyproject.toml"
    code = lint_imports(config_filename=str(config), no_cache=True, no_logo=True)
    assert code == 0, capsys.readouterr().out
