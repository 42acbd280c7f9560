"""How well AffinityNet tells pairs of pixels of one object from pairs of different labels."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vitx import weights
from vitx.data.datasets import shapes
from vitx.data.palette import IGNORED
from vitx.data.transforms import normalise
from vitx.pseudomasks.affinity import affinities, pair_labels

IMAGES = 100  # of val, drawn


def pairs_auc(workdir: Path, radius: int = 5) -> float:
    """The area under the ROC curve of the affinities of `shapes`, over pairs with an object in them.

    The probability that a pair inside an object has a larger affinity than a pair of two labels. Cells of the grid that
    show more than one label do not count.
    """
    net = weights.load(workdir / "affinity")
    same, different = [], []
    features = jax.jit(lambda net, images: affinities(net(images), radius, everywhere=True))
    for start in range(0, IMAGES, 20):
        drawings = [shapes.draw(0, "val", index) for index in range(start, start + 20)]
        images = normalise(np.stack([drawing.image for drawing in drawings]), net.preprocess)
        cells = np.stack([drawing.mask for drawing in drawings])
        pool = cells.shape[1] // net.grid[0]
        cells = cells.reshape(20, net.grid[0], pool, net.grid[1], pool).swapaxes(2, 3)
        cells = cells.reshape(20, *net.grid, -1)
        pure = cells.max(-1) == cells.min(-1)
        labels = jnp.asarray(np.where(pure, cells[..., 0], IGNORED))
        _, foreground, negative = map(np.asarray, pair_labels(labels, radius, everywhere=True))
        affinity = np.asarray(features(net, jnp.asarray(images)))
        same.append(affinity[foreground])
        different.append(affinity[negative])
    return area_under_roc(np.concatenate(same), np.concatenate(different))


def area_under_roc(positive: np.ndarray, negative: np.ndarray) -> float:
    """The probability that a positive value exceeds a negative one, ties counting half."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left") + np.searchsorted(ordered, positive, "right")
    return float(below.mean() / 2 / len(negative))
