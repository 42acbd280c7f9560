"""How far two models' arrays are apart, stage by stage, and whether the models are the same."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Difference:
    """How far two arrays of one stage of the model are apart.

    Attributes:
      stage: its name.
      absolute: largest |ours - theirs|.
      relative: `absolute` over the largest |theirs|.
      correlation: Pearson's, over all elements; NaN where an array is constant.
    """

    stage: str
    absolute: float
    relative: float
    correlation: float


@dataclass(frozen=True)
class Parity:
    """The comparison of two models and its verdict.

    Attributes:
      differences: by stage, in the model's order.
      tolerance: the largest relative difference that counts as equal.
      predicted: best classes, PyTorch's and ours, by image; empty without a head.
      settings: heads and epsilons, PyTorch's and ours.
    """

    differences: tuple[Difference, ...]
    tolerance: float
    predicted: tuple[tuple[int, int], ...]
    settings: dict[str, tuple[float, float]]

    def is_off(self, found: Difference) -> bool:
        """Whether a difference is over the tolerance, or not finite."""
        return not found.relative <= self.tolerance

    @property
    def reasons(self) -> list[str]:
        """Why the models differ, a sentence each; none where they are the same."""
        reasons = [
            f"from {found.stage} on: relative difference {found.relative:.1e}, tolerance {self.tolerance:.0e}"
            for found in self.differences
            if self.is_off(found)
        ][:1]
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

        def plain(value: Any) -> Any:
            return None if isinstance(value, float) and not math.isfinite(value) else value

        reasons = self.reasons
        return {
            "verdict": "off" if reasons else "equal",
            "reasons": reasons,
            "first_off": next((d.stage for d in self.differences if self.is_off(d)), None),
            "tolerance": self.tolerance,
            "settings": {
                name: {"pytorch": theirs, "vitx": ours}
                for name, (theirs, ours) in self.settings.items()
            },
            "predicted": {
                "pytorch": [theirs for theirs, _ in self.predicted],
                "vitx": [ours for _, ours in self.predicted],
            },
            "stages": [{k: plain(v) for k, v in asdict(d).items()} for d in self.differences],
        }


def compare(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
) -> tuple[Difference, ...]:
    """The differences of two models' arrays, stage by stage, in the order of `theirs`.

    Raises:
      ValueError: where the stages or an array's shapes differ.
    """
    if ours.keys() != theirs.keys():
        raise ValueError(f"PyTorch's model has the parts {list(theirs)}, vitx's {list(ours)}")
    return tuple(difference(stage, ours[stage], theirs[stage]) for stage in theirs)


def difference(stage: str, ours: np.ndarray, theirs: np.ndarray) -> Difference:
    """How far `ours` is from `theirs`, in float64; NaN where either is not finite."""
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
