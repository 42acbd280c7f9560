"""The explanation methods by name, and the decorator that registers one.

A method is a function that runs the forward pass. What else the comparison, the tables and the reports need are the
arguments of `method`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from vitx.explainable import Explainable
from vitx.ops import Array, Ops
from vitx.relevance import rulesets

Forward = tuple[Array, Callable[[Array], Array]]
"""The output (B, C), and a function from a value's gradient at the output (B, C) to raw maps (B, h, w).

The gradient of a class is a one-hot row."""
ATTENTION = "blocks with attention"
LINEAR_HEAD = "a linear head on the mean of its patches or of its last feature map"
LEVELS = ("pixels", "tokens")
"""A map of x times a gradient is taken at the image, or at the tokens that enter the first block."""
_LARGEST = 2**32 - 1  # of an option: JAX's seeds end there
Run = Callable[..., Forward]
"""(model, images (B, H, W, 3), operations, first block of the product, lean memory, options) -> `Forward`."""


@dataclass(frozen=True)
class Method:
    """An explanation method.

    Attributes:
      name: as in `vitx.explain`.
      title: in tables and on pages.
      run: the forward pass, and what goes back from a class.
      by_class: whether its maps depend on the class.
      rule_sets: its operations by the name of the rules; empty where it needs no relevance rules.
      published_start_layer: the first block of its product in the published tables; None where it has no product.
      pixels: whether its maps are of pixels, by default; see `gives_pixels`.
      above_stem: whether it ends above a stem, and so gives a hybrid's maps on the token grid.
      options: its parameters by name, with their defaults: the keyword-only ones of `run`.
      ranges: the least and the greatest value of some of them; of others any from 0 (seeds, floats) or 1 (counts) up.
      of_probability: whether it explains the probability of a class, and so no other value.
      needs: what a model must have for it, `ATTENTION` or `LINEAR_HEAD`; "" for any model.
    """

    name: str
    title: str
    run: Run
    by_class: bool
    rule_sets: Mapping[str, Ops]
    published_start_layer: int | None
    pixels: bool
    above_stem: bool
    options: Mapping[str, Any]
    ranges: Mapping[str, tuple[float, float]]
    of_probability: bool
    needs: str

    def explains(self, model: Explainable) -> bool:
        """Whether a model has what the method needs."""
        if self.needs == ATTENTION:
            return bool(model.attention_shapes())
        return model.linear_head if self.needs == LINEAR_HEAD else True

    def gives_pixels(self, model: Any) -> bool:
        """Whether its maps of a model are of pixels, with the options' defaults."""
        return self.pixels and not (self.above_stem and model.stem is not None)

    def require(self, model: Explainable) -> None:
        """Raises ValueError for a model that does not have what the method needs."""
        if not self.explains(model):
            raise ValueError(
                f"method {self.name} needs a model with {self.needs}, which this {type(model).__name__} does not have; "
                f"it has {', '.join(methods_of(model))}"
            )

    def operations(self, rules: str) -> Ops:
        """The operations under "published" or "stable" rules; plain ones at full precision where it has no rules."""
        return self.rule_sets[rules] if self.rule_sets else rulesets.EXACT

    def checked(self, options: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
        """The options in an order of their own, as static arguments; ValueError for an unknown one or a wrong value."""
        if not isinstance(options, Mapping):
            raise ValueError(f"options must map names to values, not {options!r:.100}")
        for name, value in options.items():
            if name not in self.options:
                known = ", ".join(self.options) or "none"
                raise ValueError(f"{self.name} has no option {name!r:.100}; it has {known}")
            default = self.options[name]
            usual = (0 if name == "seed" or isinstance(default, float) else 1, _LARGEST)
            if wanted := _unfit(value, default, *self.ranges.get(name, usual)):
                raise ValueError(
                    f"{self.name}'s option {name} must be {wanted}, not {value!r:.100}"
                )
        return tuple(sorted(options.items()))


def _unfit(value: Any, default: Any, least: float, most: float) -> str:
    """What an option must be, where the value is of another kind than its default or out of range; otherwise ""."""
    if isinstance(default, str):
        return "" if value in LEVELS else f"one of {', '.join(LEVELS)}"
    kinds = (
        (int, float, np.integer, np.floating) if isinstance(default, float) else (int, np.integer)
    )
    fits = isinstance(value, kinds) and not isinstance(value, bool)
    fits = fits and bool(least <= value <= most)
    kind = "a number" if isinstance(default, float) else "a whole number"
    reach = f"from {least:g} up" if most == _LARGEST else f"in [{least:g}, {most:g}]"
    return "" if fits else f"{kind} {reach}"


_REGISTERED: dict[str, Method] = {}
REGISTRY: Mapping[str, Method] = MappingProxyType(_REGISTERED)
"""All methods by name, those of the published tables first."""


STABLE = "/stable"
"""Ends the name of a method under stable rules, as in "lrp/stable"."""


def method_names() -> tuple[str, ...]:
    """The names that `method_of` knows: of all methods, then of those under stable rules."""
    return (*REGISTRY, *(name + STABLE for name, each in REGISTRY.items() if each.rule_sets))


def method_of(name: str) -> Method:
    """The method of a name: LRP for "lrp/stable".

    Raises:
      ValueError: where there is none, or it has no rules.
    """
    if name not in method_names():
        raise ValueError(f"method must be one of {', '.join(method_names())}, not {name!r:.100}")
    return REGISTRY[name.removesuffix(STABLE)]


def methods_of(model: Explainable) -> tuple[str, ...]:
    """The names of the methods that can explain a model."""
    return tuple(name for name, each in REGISTRY.items() if each.explains(model))


def method(
    title: str,
    *,
    by_class: bool = True,
    rule_sets: Mapping[str, Ops] = MappingProxyType({}),
    published_start_layer: int | None = None,
    pixels: bool = False,
    above_stem: bool = False,
    needs: str = ATTENTION,
    ranges: Mapping[str, tuple[float, float]] = MappingProxyType({}),
    of_probability: bool = False,
) -> Callable[[Run], Run]:
    """Registers a function as the method of its name, without the leading underscore; see `Method`."""

    def register(run: Run) -> Run:
        name = run.__name__.removeprefix("_")
        parameters = inspect.signature(run).parameters.values()
        options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        _REGISTERED[name] = Method(
            name=name,
            title=title,
            run=run,
            by_class=by_class,
            rule_sets=rule_sets,
            published_start_layer=published_start_layer,
            pixels=pixels or options.get("level") == "pixels",
            above_stem=above_stem,
            options=options,
            ranges=ranges,
            of_probability=of_probability,
            needs=needs,
        )
        return run

    return register
