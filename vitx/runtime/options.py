"""Ranges of options, and the check of a config against them before anything else is done.

The flags themselves check names and types. A stage declares the ranges of its own options, see `Stage.options`.
"""

import copy
import fnmatch
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from vitx import parallel
from vitx.data.unreadable import POLICIES
from vitx.images.pictures import pixel_limit


class Wanted(NamedTuple):
    """Whether a value fits, and what one must be."""

    fits: Callable[[Any], bool]
    text: str


def among(names: Sequence[str]) -> Wanted:
    """One of some names."""
    return Wanted(lambda value: value in names, f"one of {', '.join(names)}")


def whole(low: int, high: int | None = None) -> Wanted:
    """A whole number from `low` up, to `high` where that is given."""
    text = f"a whole number from {low} up" if high is None else f"a whole number in [{low}, {high}]"

    def fits(value: Any) -> bool:
        most = math.inf if high is None else high
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= most

    return Wanted(fits, text)


def number(low: float, high: float = math.inf, *, above: bool = False) -> Wanted:
    """A finite number in [low, high], or `above` low."""
    if math.isfinite(high):
        text = f"a number in {'(' if above else '['}{low:g}, {high:g}]"
    else:
        text = f"a number {'above' if above else 'from'} {low:g}{'' if above else ' up'}"

    def fits(value: Any) -> bool:
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and math.isfinite(value)
            and low <= value <= high
            and not (above and value == low)
        )

    return Wanted(fits, text)


def candidates(wanted: Wanted) -> Wanted:
    """A value, or several to choose from."""

    def fits(value: Any) -> bool:
        values = value if isinstance(value, tuple | list) else (value,)
        return bool(values) and all(map(wanted.fits, values))

    return Wanted(fits, f"{wanted.text}, or a tuple of such candidates")


def several(wanted: Wanted) -> Wanted:
    """A tuple of one value or more."""

    def fits(value: Any) -> bool:
        return isinstance(value, tuple | list) and bool(value) and all(map(wanted.fits, value))

    return Wanted(fits, f"a tuple, of which each is {wanted.text}")


def _are_levels(value: Any) -> bool:
    return (
        isinstance(value, tuple | list)
        and all(
            isinstance(level, str)
            and re.fullmatch(r"(stem|block)\.[1-9]\d*|(conv|fc|layer)[1-9]", level)
            for level in value
        )
        and len(set(value)) == len(value)
    )


LEVELS = Wanted(
    _are_levels, "a tuple of different levels such as 'stem.2', 'block.1' and, of a CNN, 'conv4'"
)
POSITIVE = number(0, above=True)
BELOW_ONE = Wanted(lambda value: number(0, 1).fits(value) and value < 1, "a number in [0, 1)")
AUTO = "auto"
MOST_WORKERS = 256  # processes; most hosts run out of memory when they start more

# Ranges of options that no stage owns. The first pattern that fits a key counts, here and in a stage's ranges.
COMMON: dict[str, Wanted] = {
    "seed": whole(0, 2**31 - 1),
    "parallel": among(parallel.MODES),
    "on_bad_image": among(POLICIES),
    "*workers": whole(0, MOST_WORKERS),
    "model.image_size": whole(0),
    "model.dtype": among(("float32", "float64")),
    "*num_heads": whole(0),
    "*norm_eps": number(0),
    "*batch_size": whole(1),
    "*start_layer*": whole(0),
    "limit": whole(0),
}


def check_ranges(config: ConfigDict, ranges: Mapping[str, Wanted]) -> None:
    """Raises ValueError that names the first option outside its range, and the range."""
    for key, value in flat(config).items():
        wanted = range_of(key, ranges)
        if wanted is not None and not wanted.fits(value):
            raise ValueError(f"config.{key} must be {wanted.text}, not {value!r}")
    pixel_limit()  # an option in the environment, VITX_MAX_PIXELS


def range_of(key: str, ranges: Mapping[str, Wanted]) -> Wanted | None:
    """The range of the option at a key; None where any value of its type will do."""
    return next((ranges[name] for name in ranges if fnmatch.fnmatchcase(key, name)), None)


def flat(config: ConfigDict) -> dict[str, Any]:
    """The options by their keys, as on the command line."""
    return flatten_dict(config.to_dict(), sep=".")


def settled(config: ConfigDict, recorded: Mapping[str, Any]) -> ConfigDict:
    """A copy of the config without `compute` "auto": what a run has recorded for it, else what suits the device.

    That is bfloat16 on a TPU and on a GPU that multiplies it faster than float32, so not on NVIDIA's before the A100.

    Args:
        config: An experiment.
        recorded: Options that decided results of the run, by their keys, see `Workdir.recorded`.
    """
    config = copy.deepcopy(config)
    backend, capability = jax.default_backend(), parallel.compute_capability()
    fast = backend == "tpu" or (backend == "gpu" and not 0 < capability < parallel.AMPERE)
    for name, section in config.items():
        if isinstance(section, ConfigDict) and section.get("compute") == AUTO:
            section.compute = recorded.get(f"{name}.compute", "bfloat16" if fast else "float32")
    return config
