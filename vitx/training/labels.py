"""Stage `labels`: a dense CRF turns cues into labels that are confident, for AffinityNet to learn from."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from vitx import processes
from vitx.cues import read_cues, seeded
from vitx.data import pipeline
from vitx.data.palette import encode_mask
from vitx.data.transforms import resize_maps
from vitx.ops import Array
from vitx.pseudomasks.crf import (
    CRFParameters,
    background_channel,
    confident_labels,
    dense_crf,
    pool_posteriors,
)
from vitx.run import progress
from vitx.stages import Run
from vitx.workdir import Stage, write_bytes


def make_labels(run: Run, stage: Stage) -> None:
    """Writes `train/<id>.png` for each seeded training image: labels on AffinityNet's grid, 255 neutral."""
    seeds = run.finished("seeds")
    source = seeded(run, "train")
    grid = run.config.labels.grid
    pool = pool_factor(run.config.model.image_size, grid)
    done, mine = stage.items_done(".png", "train"), processes.share(range(len(source)))
    missing = [place for place in mine if source.identifier(place) not in done]
    with progress(len(mine), "labels", start=len(mine) - len(missing)) as bar:
        for example in pipeline.read_ahead(source, missing):
            cues, classes = read_cues(seeds, "train", example.id, source.most_classes)
            posteriors = crf_posteriors(run.config.labels, example.image, cues, classes)
            low, high = pool_posteriors(posteriors, (grid, grid), pool)
            path = stage.item(example.id, ".png", "train")
            write_bytes(path, encode_mask(agreed_labels(low, high, classes)))
            bar.advance()
            run.stop.check()


def pool_factor(image_size: int, grid: int) -> int:
    """Pixels of the model's input along a cell of AffinityNet's grid, 8 as published.

    Raises:
      ValueError: where the grid does not divide the input.
    """
    if grid < 1 or image_size % grid:
        raise ValueError(f"labels.grid {grid} must divide model.image_size {image_size}")
    return image_size // grid


def crf_posteriors(options: Any, image: np.ndarray, cues: np.ndarray, classes: np.ndarray) -> Array:
    """Posteriors (2, 1 + K, H, W) of background and classes, at low and at high alpha.

    Args:
      options: `config.labels`.
      image: uint8 (H, W, 3).
      cues: (K, h, w), resized to the image.
      classes: (K,), -1 for padding, whose posterior is 0.
    """
    foreground = resize_maps(jnp.asarray(cues), image.shape[:2])  # (K, H, W)
    alphas = (options.alpha_low, options.alpha_high)
    backgrounds = jnp.stack([background_channel(foreground, alpha) for alpha in alphas])
    foregrounds = jnp.broadcast_to(foreground, (2, *foreground.shape))
    probabilities = jnp.concatenate([backgrounds[:, None], foregrounds], 1)  # (2, 1 + K, H, W)
    return dense_crf(
        image[None],
        probabilities[None],
        parameters=CRFParameters(**options.crf),
        present=np.concatenate([[True], classes >= 0])[None],
        backend=options.backend,
    )[0]


def agreed_labels(low: Array, high: Array, classes: np.ndarray) -> np.ndarray:
    """Labels uint8 (h, w) of one image that posteriors (1 + K, h, w) at both alphas agree on, else 255."""
    return np.asarray(confident_labels(low[None], high[None], jnp.asarray(classes)[None])[0])
