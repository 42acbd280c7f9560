"""Stage `labels`: a dense CRF turns cues into labels that are confident, for AffinityNet to learn from."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from vitx.data.palette import encode_mask
from vitx.data.transforms import resize_maps
from vitx.ops import Array
from vitx.pseudomasks.crf import (
    background_channel,
    confident_labels,
    dense_crf,
    pool_posteriors,
)
from vitx.run import progress
from vitx.stages import Run
from vitx.training.seeds import max_classes, read_cues, seeded
from vitx.workdir import Stage, write_bytes


def make_labels(run: Run, stage: Stage) -> None:
    """Writes `train/<id>.png` for each seeded training image: labels on AffinityNet's grid, 255 for neutral."""
    run.finished("seeds")
    seeds = run.stage("seeds")
    source = seeded(run, "train")
    done, width = stage.items_done(".png", "train"), max_classes(source)
    with progress(len(source), "labels", start=len(done)) as bar:
        for example in source:
            if example.id in done:
                continue
            cues, classes = read_cues(seeds, "train", [example.id], width)
            posteriors = crf_posteriors(run.config, example.image, cues[0], classes[0])
            labels = grid_labels(run.config, posteriors, classes[0])
            write_bytes(stage.item(example.id, ".png", "train"), encode_mask(labels))
            bar.advance()
            run.stop.check()


def crf_posteriors(config: Any, image: np.ndarray, cues: np.ndarray, classes: np.ndarray) -> Array:
    """Posteriors (2, 1 + K, H, W) of background and classes, at low and at high alpha, from cues (K, h, w).

    Classes of -1 are padding, whose posterior is 0.
    """
    options = config.labels
    foreground = resize_maps(jnp.asarray(cues), image.shape[:2])  # (K, H, W)
    probabilities = jnp.stack(
        [
            jnp.concatenate([background_channel(foreground, alpha)[None], foreground])
            for alpha in (options.alpha_low, options.alpha_high)
        ]
    )  # (2, 1 + K, H, W)
    present = np.concatenate([[True], classes >= 0])
    return dense_crf(
        image[None], probabilities[None], present=present[None], backend=options.backend
    )[0]


def grid_labels(config: Any, posteriors: Array, classes: np.ndarray) -> np.ndarray:
    """Labels uint8 (grid, grid) that both alphas agree on, 255 elsewhere."""
    grid = config.affinity.grid
    low, high = pool_posteriors(posteriors, (grid, grid), pool=config.model.image_size // grid)
    return np.asarray(confident_labels(low[None], high[None], jnp.asarray(classes)[None])[0])
