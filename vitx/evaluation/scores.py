"""Scores of maps by name, for the comparison of methods: each figure of an image and a map.

`faithfulness`, `localisation` and `randomisation` have the definitions; here are the choices under which the comparison
takes them. Sizes are shares of the image's side, so that they mean the same for every model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vitx.evaluation import faithfulness
from vitx.evaluation.faithfulness import Fill
from vitx.evaluation.localisation import energy_inside, pointing_game
from vitx.evaluation.randomisation import randomisation_curve
from vitx.explainable import Explainable
from vitx.ops import Array

_BLANK = faithfulness.with_value((0.0, 0.0, 0.0))
_ROAD = faithfulness.with_neighbours()
_SQUARES = 40  # of infidelity
_NOISE = 0.02  # of sensitivity, in the input's normalised units
_SAMPLES = 5


@dataclass(frozen=True)
class Judged:
    """What scores read.

    Attributes:
      model: explained.
      images: normalised, (B, H, W, 3).
      maps: at the image's size, (B, M, H, W).
      classes: that each map explains, ints (B, M).
      explain: (model, images) -> maps (B, M, H, W) of these classes.
      masks: of the object, bool (B, H, W), which scores with `Score.masks` read.
    """

    model: Explainable
    images: Array
    maps: Array
    classes: Array
    explain: Callable[[Explainable, Array], Array]
    masks: Array

    def each(self, figure: Callable[[Array, Array], Array]) -> Array:
        """The figure (B,) of each method's maps (B, H, W) and classes (B,), as (B, M)."""
        columns = self.maps.swapaxes(0, 1), self.classes.T
        return lax.map(lambda column: figure(*column), columns).T


@dataclass(frozen=True)
class Score:
    """A figure of an image and a map.

    Attributes:
      title: in tables.
      higher: whether a higher figure is better.
      run: from `Judged` to figures (B, M).
      masks: whether it reads the object's mask.
    """

    title: str
    higher: bool
    run: Callable[[Judged], Array]
    masks: bool = False


def _area(judged: Judged, fill: Fill, **options: Any) -> Array:
    def figure(maps: Array, classes: Array) -> Array:
        curve = faithfulness.score_curve(
            judged.model, judged.images, maps, classes, fill, **options
        )
        widths = jnp.asarray(np.diff(faithfulness.FRACTIONS), curve.dtype)
        return jnp.matmul((curve[:, 1:] + curve[:, :-1]) / 2, widths)

    return judged.each(figure)


def _insertion(judged: Judged) -> Array:
    blur = faithfulness.with_blur(5 / 224 * judged.images.shape[1])
    return _area(judged, blur, insert=True)


def _between(judged: Judged, fill: Fill) -> Array:
    """The area between LeRF and MoRF, over squares of the model's patches."""
    side = judged.images.shape[1] // judged.model.grid[0]
    patch = side if judged.images.shape[2] // judged.model.grid[1] == side else 1
    first, last = (_area(judged, fill, highest_first=order, patch=patch) for order in (True, False))
    return last - first


def _saco(judged: Judged) -> Array:
    run = partial(faithfulness.saco, judged.model, judged.images, fill=faithfulness.with_mean)
    return judged.each(lambda maps, classes: run(maps, classes))


def _infidelity(judged: Judged) -> Array:
    """Of squares of a quarter of the side that become blank, at the best scale of the map, as a share of the change.

    A map of relevance says how much the output falls where a part is taken away, up to a positive factor, which is
    fitted for each image.
    """
    height, width = judged.images.shape[1:3]
    keys = jax.random.split(jax.random.key(0), _SQUARES)

    def square(key: Array) -> Array:
        place = jax.random.uniform(key, (2,), jnp.float32)
        inside = [
            jnp.abs((jnp.arange(side, dtype=jnp.float32) + 0.5) / side - 0.125 - 0.75 * start)
            <= 0.125
            for side, start in zip((height, width), place, strict=True)
        ]
        return inside[0][:, None] & inside[1][None]

    squares = jax.vmap(square)(keys)  # (S, H, W)
    clean = judged.model(judged.images)

    def change(removed: Array) -> Array:
        everywhere = jnp.broadcast_to(removed[None], (len(judged.images), height, width))
        return clean - judged.model(_BLANK(judged.images, everywhere))

    changes = lax.map(change, squares)  # (S, B, C)

    def figure(maps: Array, classes: Array) -> Array:
        expected = jnp.einsum("bij,sij->sb", maps, squares.astype(maps.dtype), precision="highest")
        found = jnp.take_along_axis(changes, classes[None, :, None], 2)[..., 0]
        size = jnp.square(expected).sum(0)
        scale = jnp.maximum((expected * found).sum(0), 0) / jnp.where(size == 0, 1, size)
        left = jnp.square(scale[None] * expected - found).sum(0)
        return left / jnp.square(found).sum(0)

    return judged.each(figure)


def _sensitivity(judged: Judged) -> Array:
    """The largest relative change of a map under noise."""

    def change(key: Array) -> Array:
        noise = jax.random.uniform(key, judged.images.shape[1:], jnp.float32, -_NOISE, _NOISE)
        noisy = judged.images + noise[None].astype(judged.images.dtype)
        return _norm(judged.explain(judged.model, noisy) - judged.maps)

    largest = lax.map(change, jax.random.split(jax.random.key(0), _SAMPLES)).max(0)
    return largest / _norm(judged.maps)


def _norm(maps: Array) -> Array:
    return jnp.linalg.norm(maps, axis=(2, 3))


def _randomisation(judged: Judged) -> Array:
    """The mean rank correlation of a map with those of the model as it forgets its layers from the top."""
    curve = randomisation_curve(judged.model, judged.explain, judged.images, judged.maps)
    return jnp.where(jnp.isnan(curve), 0, curve).mean(0)  # a map without contrast is like no other


def _pointing(judged: Judged) -> Array:
    tolerance = round(15 / 224 * judged.images.shape[1])  # published: 15 pixels
    hit = judged.each(lambda maps, _: pointing_game(maps, judged.masks, tolerance))
    return hit.astype(judged.maps.dtype)


def _energy(judged: Judged) -> Array:
    return judged.each(lambda maps, _: energy_inside(maps, judged.masks))


SCORES: Mapping[str, Score] = {
    "deletion": Score("deletion", False, partial(_area, fill=_BLANK)),
    "insertion": Score("insertion", True, _insertion),
    "patches": Score("LeRF - MoRF", True, partial(_between, fill=_BLANK)),
    "road": Score("LeRF - MoRF, ROAD", True, partial(_between, fill=_ROAD)),
    "saco": Score("SaCo", True, _saco),
    "infidelity": Score("infidelity", False, _infidelity),
    "sensitivity": Score("sensitivity", False, _sensitivity),
    "randomisation": Score("randomisation", False, _randomisation),
    "pointing": Score("pointing game", True, _pointing, masks=True),
    "energy": Score("energy inside", True, _energy, masks=True),
}
"""The scores by name, for `methods.scores`."""


def scores_of(names: Sequence[str], judged: Judged) -> dict[str, Array]:
    """Each score (B, M) by its name; NaN where it has no meaning, as for a map without contrast."""
    varied = judged.maps.max((2, 3)) > judged.maps.min((2, 3))
    with jax.default_matmul_precision("highest"):
        return {name: jnp.where(varied, SCORES[name].run(judged), jnp.nan) for name in names}
