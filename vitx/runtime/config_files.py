"""The package's own experiments, in `configs/`: finding them by name, and what their comments say of each option."""

import ast
import difflib
import importlib.util
import io
import sys
import tokenize
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ml_collections import ConfigDict

_PACKAGE: Final = Path(__file__).parents[1]


def folder() -> Path:
    """The folder of the experiments: inside the installed package, or in a clone beside it."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def names() -> list[str]:
    """The names of all experiments."""
    return sorted(path.stem for path in folder().glob("*.py") if path.stem != "__init__")


def find(wanted: str) -> Path:
    """The file of an experiment: a path as it is, or the name of one of ours, with or without ".py".

    Raises:
        ValueError: there is no such file and no such name.
    """
    name = wanted.removeprefix("configs/").removesuffix(".py")
    if Path(wanted).is_file() or name not in names():
        if "/" in wanted or wanted.endswith(".py"):
            if importlib.util.find_spec("configs") is None:
                _make_importable()  # for an own experiment that begins with one of ours
            return Path(wanted)
        near = difflib.get_close_matches(name, names(), n=3, cutoff=0.5)
        raise ValueError(
            f"there is no experiment {wanted!r}; nearest: {', '.join(near) or 'none'} (vitx configs lists all)"
        )
    _make_importable()
    return folder() / f"{name}.py"


def with_found(arguments: Sequence[str]) -> list[str]:
    """Arguments of a command line in which `--config NAME` has the path of the experiment.

    Raises:
        ValueError: see `find`.
    """
    found = list(arguments)
    for place, word in enumerate(found):
        if word in ("--config", "-config") and place + 1 < len(found):
            found[place + 1] = str(find(found[place + 1]))
        elif word.startswith(("--config=", "-config=")):
            flag, _, wanted = word.partition("=")
            found[place] = f"{flag}={find(wanted)}"
    return found


def load(name: str) -> tuple[str, ConfigDict]:
    """An experiment's docstring and its options; ValueError for an unknown name."""
    path = find(name)
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(
            f"there is no experiment {name!r}: give a name of `vitx configs`, or a .py file"
        )
    spec = importlib.util.spec_from_file_location(f"configs.{path.stem}", path)
    assert spec and spec.loader  # of a path that ends with ".py"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.__doc__ or "", module.get_config()


def comments(path: Path) -> dict[str, str]:
    """What an experiment's comments say of its options, by their keys, also those of the experiments it begins with."""
    text = path.read_text("utf-8")
    said: dict[str, str] = {}
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "configs":
            for alias in node.names:
                said = comments(path.with_name(f"{alias.name}.py")) | said
    lines = _comment_lines(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            key = ast.unparse(node.targets[0]).removeprefix("config.")
            if words := _comment_of(node, lines):
                said[key] = words
    return said


def _make_importable() -> None:
    """Lets experiments import others as `configs.NAME`, wherever the package's own are."""
    if "configs" not in sys.modules:
        start = folder() / "__init__.py"
        spec = importlib.util.spec_from_file_location(
            "configs", start, submodule_search_locations=[str(folder())]
        )
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules["configs"] = module
        spec.loader.exec_module(module)


def _comment_lines(text: str) -> dict[int, tuple[str, bool]]:
    """The comment of each line, and whether it has the line to itself."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {
        token.start[0]: (token.string.lstrip("# "), not token.line[: token.start[1]].strip())
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def _comment_of(node: ast.Assign, lines: dict[int, tuple[str, bool]]) -> str:
    """The comment lines directly above an assignment, then those on its own lines."""
    nothing: Any = ("", False)
    first = node.lineno
    while lines.get(first - 1, nothing)[1]:
        first -= 1
    last = node.end_lineno or node.lineno
    said = [lines[line][0] for line in range(first, last + 1) if line in lines]
    return " ".join(said)
