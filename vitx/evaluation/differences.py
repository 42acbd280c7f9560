"""How far two models' arrays are apart, stage by stage, and whether the models are the same."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Difference:
    """How far two arrays of one stage of the model are apart; NaN where either is not finite."""

    stage: str
    absolute: float  # largest |ours - theirs|
    relative: float  # `absolute` over the largest |theirs|
    correlation: float  # Pearson's, over all elements; NaN where an array is constant


@dataclass(frozen=True)
class Parity:
    """The comparison of two models and its verdict."""

    differences: tuple[Difference, ...]  # by stage, in the model's order
    tolerance: float  # the largest relative difference that counts as equal
    predicted: tuple[tuple[int, int], ...]  # best classes, PyTorch's and ours, by image
    settings: dict[str, tuple[float, float]]  # heads and epsilons, PyTorch's and ours

    @property
    def off(self) -> list[Difference]:
        """The differences that are over the tolerance, or not finite."""
        return [found for found in self.differences if not found.relative <= self.tolerance]

    @property
    def reasons(self) -> list[str]:
        """Why the models differ, a sentence each; none where they are the same."""
        reasons = [
            f"from {found.stage} on: relative difference {found.relative:.1e}, tolerance {self.tolerance:.0e}"
            for found in self.off[:1]
        ]
        if wrong := sum(theirs != ours for theirs, ours in self.predicted):
            reasons.append(
                f"the predicted class differs on {wrong} of {len(self.predicted)} images"
            )
        return reasons + [
            f"{name} is {theirs:g} in PyTorch and {ours:g} in vitx"
            for name, (theirs, ours) in self.settings.items()
            if theirs != ours
        ]

    def as_json(self) -> dict[str, Any]:
        """The comparison as plain values, None for numbers that are not finite."""
        stages = [asdict(found) for found in self.differences]
        for stage in stages:
            stage |= {n: None for n, v in stage.items() if n != "stage" and not math.isfinite(v)}
        names = ("pytorch", "vitx")
        return {
            "verdict": "off" if self.reasons else "equal",
            "reasons": self.reasons,
            "first_off": self.off[0].stage if self.off else None,
            "tolerance": self.tolerance,
            "settings": {
                name: dict(zip(names, pair, strict=True)) for name, pair in self.settings.items()
            },
            "predicted": {
                name: [pair[side] for pair in self.predicted] for side, name in enumerate(names)
            },
            "stages": stages,
        }


def compare(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
) -> tuple[Difference, ...]:
    """The differences of two models' arrays, stage by stage, in the order of `theirs`."""
    if ours.keys() != theirs.keys():
        raise ValueError(f"PyTorch's model has the parts {list(theirs)}, vitx's {list(ours)}")
    return tuple(difference(stage, ours[stage], theirs[stage]) for stage in theirs)


def difference(stage: str, ours: np.ndarray, theirs: np.ndarray) -> Difference:
    """How far `ours` is from `theirs`, in float64."""
    if ours.shape != theirs.shape:
        raise ValueError(f"{stage} is {theirs.shape} in PyTorch and {ours.shape} in vitx")
    a, b = (array.astype(np.float64).ravel() for array in (ours, theirs))
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Difference(stage, math.nan, math.nan, math.nan)
    absolute, scale = float(np.abs(a - b).max()), float(np.abs(b).max())
    relative = absolute / scale if scale else (math.inf if absolute else 0.0)
    a, b = a - a.mean(), b - b.mean()
    spread = math.sqrt(float(a @ a) * float(b @ b))
    return Difference(stage, absolute, relative, float(a @ b) / spread if spread else math.nan)
