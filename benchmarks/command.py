"""Command lines: the keyword arguments of a function become options."""

import argparse
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.tables import print_figures


def parse_options(
    function: Callable[..., Any], argv: Sequence[str] | None = None
) -> dict[str, Any]:
    """The function's keyword arguments, read from the command line.

    An option is named like its argument and has the type of the argument's default; those of a tuple are separated by
    commas, and False becomes a flag. --help prints the docstrings of the module and of the function.
    """
    module = inspect.getmodule(function)
    parser = argparse.ArgumentParser(
        description=f"{module.__doc__}\n{function.__doc__}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, parameter in inspect.signature(function).parameters.items():
        option, default = f"--{name.replace('_', '-')}", parameter.default
        if default is False:
            parser.add_argument(option, action="store_true")
        else:
            parser.add_argument(
                option, default=default, type=_reader(default), help=f"default: {default!r}"
            )
    return vars(parser.parse_args(argv))


def run(benchmark: str, figures: Callable[..., Mapping[str, float]]) -> None:
    """Measures with the options of the command line, and prints options, figures and targets."""
    import jax  # not for every command line: `python -m benchmarks` leaves it to its children

    options = parse_options(figures)
    found = figures(**options)
    described = ", ".join(f"{name} {value}" for name, value in options.items())
    print(f"{described}; {jax.devices()[0].device_kind}\n")
    print_figures(benchmark, found)


def _reader(default: Any) -> Callable[[str], Any]:
    if isinstance(default, tuple):
        kind = type(default[0])
        return lambda text: tuple(kind(word) for word in text.split(","))
    return type(default)
