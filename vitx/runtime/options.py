"""Checks ranges, choices and combinations of options, before anything else is done.

The flags themselves check names and types.
"""

import fnmatch
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from vitx.data.pictures import pixel_limit
from vitx.data.unreadable import POLICIES
from vitx.evaluation.comparison import Comparison
from vitx.parallel import MODES
from vitx.pipeline.artifacts import pool_factor
from vitx.pipeline.compare import TOLERANCES
from vitx.pipeline.explainer import ASPECTS, SCORES
from vitx.pseudomasks import walk
from vitx.pseudomasks.affinity import require_pairs
from vitx.pseudomasks.crf import BACKENDS
from vitx.relevance.explain import RULES
from vitx.runtime.experiment import wanted_stages
from vitx.training.optimizer import COMPUTE, OPTIMIZERS
from vitx.weights.pytorch_reference import LIBRARIES


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


def _jitter(value: Any) -> bool:
    each = number(0).fits
    return (
        isinstance(value, tuple | list)
        and len(value) == 4
        and all(map(each, value))
        and value[3] <= 0.5
    )


_POSITIVE = number(0, above=True)
MOST_WORKERS = 256  # processes; beyond, most hosts run out of memory while they start

# Patterns of keys, sections first; the first that fits a key is the one that counts.
WANTED: Mapping[str, Wanted] = {
    "seed": whole(0, 2**31 - 1),
    "parallel": among(MODES),
    "on_bad_image": among(POLICIES),
    "*workers": whole(0, MOST_WORKERS),
    "model.image_size": whole(0),
    "model.dtype": among(("float32", "float64")),
    "*num_heads": whole(0),
    "*norm_eps": number(0),
    "*batch_size": whole(1),
    "*.accumulate": whole(1),
    "*.epochs": whole(1),
    "*.warmup_epochs": whole(0),
    "*.learning_rate": _POSITIVE,
    "*.weight_decay": number(0),
    "*.clip_norm": number(0),
    "*.optimizer": among(OPTIMIZERS),
    "*.compute": among(COMPUTE),
    "*.jitter": Wanted(_jitter, "four numbers from 0 up, the last of at most 0.5"),
    "*start_layer*": whole(0),
    "*rules": among(RULES),
    "seeds.root": _POSITIVE,
    "seeds.background": candidates(number(0, 1)),
    "labels.backend": among(BACKENDS),
    "labels.crf.iterations": whole(0),
    "labels.crf.compat_*": number(0),
    "labels.crf.s*": _POSITIVE,
    "labels.alpha_*": _POSITIVE,
    "walk.alpha": candidates(_POSITIVE),
    "affinity.grid": whole(1),
    "affinity.radius": whole(2),
    "affinity.features": whole(1),
    "walk.method": among(walk.METHODS),
    "walk.beta": candidates(_POSITIVE),
    "walk.log2_steps": candidates(whole(0, 30)),
    "methods.images": whole(0),
    "report.images": whole(0),
    "report.extremes": whole(0),
    "limit": whole(0),
    "aspect": among(ASPECTS),
    "scores": among(SCORES),
    "best": whole(1),
    "top": whole(1),
    "reference": among(("auto", *LIBRARIES)),
    "precision": among(tuple(TOLERANCES)),
    "tolerance": number(0),
    "num_classes": whole(0),
    "count": whole(1),
}


def check_options(config: ConfigDict) -> None:
    """Raises ValueError naming the first option whose value cannot be, and what it must be."""
    wanted_stages(config)
    for key, value in flat(config):
        wanted = wanted_of(key)
        if wanted is not None and not wanted.fits(value):
            raise ValueError(f"config.{key} must be {wanted.text}, not {value!r}")
    _check_together(config)


def wanted_of(key: str) -> Wanted | None:
    """What the option at a key must be; None where any value of its type will do."""
    return next((WANTED[name] for name in WANTED if fnmatch.fnmatchcase(key, name)), None)


def flat(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The options and their keys, as on the command line."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _check_together(config: ConfigDict) -> None:
    """What single options cannot tell, for the stages that are to run."""
    wanted = wanted_stages(config)
    for name in ("classifier", "affinity"):
        if name in wanted and config[name].warmup_epochs >= config[name].epochs:
            raise ValueError(
                f"config.{name}.warmup_epochs must be less than {name}.epochs, {config[name].epochs}, "
                f"not {config[name].warmup_epochs}"
            )
    if "classifier" in wanted and not config.model.image_size:
        raise ValueError("config.model.image_size must be above 0 to train at, not 0")
    if "labels" in wanted and config.labels.alpha_low > config.labels.alpha_high:
        raise ValueError(
            f"config.labels.alpha_low must be at most alpha_high, {config.labels.alpha_high:g}, not "
            f"{config.labels.alpha_low:g}"
        )
    if {"labels", "affinity", "masks"} & {*wanted}:
        grid = config.affinity.grid
        pool_factor(config.model.image_size, grid)
        try:
            require_pairs((grid, grid), config.affinity.radius)
        except ValueError as error:
            raise ValueError(f"config.affinity.radius or grid: {error}") from None
    if "methods" in wanted:
        Comparison.from_config(config.methods)
    pixel_limit()  # VITX_MAX_PIXELS, which is no option but one of the environment
