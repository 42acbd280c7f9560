"""How far the embedded data set can be solved from its true masks: by a dense CRF, a colour affinity, a true affinity.

The perfect seeds are the true masks of each class, averaged over the cells of the classifier's token grid and resized
back, as the best seed map on this grid would be. Each treatment has the options that are best on these very images, so
the figures are upper bounds.

python -m benchmarks.oracles [--images 100]
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.command import parse_options
from benchmarks.tables import print_table
from configs import shapes as config_of_shapes
from vitx.data.datasets import shapes
from vitx.data.transforms import resize_maps
from vitx.evaluation.metrics import confusion_matrix, mean_iou
from vitx.pseudomasks.affinity import affinities
from vitx.pseudomasks.crf import CRFParameters, dense_crf, pool_posteriors
from vitx.pseudomasks.walk import random_walk

TOKENS, GRID = 12, 24  # sides of the grids of tokens and of the walk
BETAS, STEPS, LEVELS = (1.0, 2.0, 4.0, 8.0), (1, 2, 3, 4), (0.3, 0.4, 0.5, 0.6, 0.7)
CLASSES = len(shapes.CLASSES)


def best(scores: Iterator[np.ndarray], truth: np.ndarray) -> str:
    """The best mIoU, percent, of several sets of scores (B, C, H, W), background first."""
    found = (mean_iou(confusion_matrix(x.argmax(1), truth, CLASSES)) for x in scores)
    return f"{100 * max(found):.1f}"


def with_background(maps: np.ndarray) -> Iterator[np.ndarray]:
    """Maps (B, K, H, W) over their maximum, behind a constant background of each level."""
    greatest = maps.max((2, 3), keepdims=True)
    scaled = maps / np.where(greatest > 0, greatest, 1)
    for level in LEVELS:
        yield np.concatenate([np.full_like(scaled[:, :1], level), scaled], 1)


def rows(images: int) -> Iterator[list[str]]:
    """A row for each treatment: its name and mIoU."""
    drawings = [shapes.draw(0, "val", index) for index in range(images)]
    pixels = np.stack([drawing.image for drawing in drawings])
    truth = np.stack([drawing.mask for drawing in drawings])
    hot = np.eye(CLASSES, dtype=np.float32)[truth].transpose(0, 3, 1, 2)[:, 1:]  # (B, K, S, S)
    seeds = resize_maps(
        pool_posteriors(hot, (TOKENS, TOKENS), shapes.SIZE // TOKENS), truth.shape[1:]
    )
    yield ["perfect seeds on the token grid", best(with_background(seeds), truth)]

    present = hot.any((2, 3))
    present = np.concatenate([np.ones_like(present[:, :1]), present], 1)
    options = config_of_shapes.get_config()
    for name, constants in (
        ("published", CRFParameters()),
        ("of the labels", CRFParameters(**options.labels.crf)),
    ):
        posteriors = (
            dense_crf(pixels, scores, parameters=constants, present=present, backend="exact")
            for scores in with_background(seeds)
        )
        yield [f"a dense CRF on them, its constants {name}", best(posteriors, truth)]

    shape = (images, GRID, GRID)
    colours = jax.image.resize(
        jnp.asarray(pixels / 255, jnp.float32), (*shape, 3), "bilinear", antialias=False
    )
    cells = jax.image.resize(
        jnp.asarray(hot.transpose(0, 2, 3, 1)), (*shape, CLASSES - 1), "nearest"
    )
    start = pool_posteriors(seeds, (GRID, GRID), shapes.SIZE // GRID)
    for name, features in (
        ("colour", 16 * colours),
        ("the true masks", 1e3 * cells),
        ("nothing (uniform)", 0 * cells),
    ):
        affinity = affinities(features, 5, everywhere=True)
        walked = (
            scores
            for beta in BETAS
            for steps in STEPS
            for scores in with_background(
                resize_maps(np.asarray(random_walk(affinity, start, beta, steps)), truth.shape[1:])
            )
        )
        yield [f"a walk from them, affinity of {name}", best(walked, truth)]


def main(images: int = 100) -> None:
    """Prints a table; `images` are the first ones of val."""
    print_table(("from true masks", "mIoU, %"), rows(images))


if __name__ == "__main__":
    main(**parse_options(main))
