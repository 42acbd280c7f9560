"""What a segmentation network sees in the images of val: its masks, and their scores."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from vitx import parallel
from vitx.data import loader
from vitx.data.transforms import resize_maps
from vitx.evaluation.mask_figures import mask_figures, region_counts
from vitx.models.segmenter import Segmenter, segment
from vitx.ops import Array
from vitx.pipeline.artifacts import missing_batches, read_mask, seeded, write_mask
from vitx.pseudomasks.crf import CRFParameters, dense_crf
from vitx.runtime.experiment import Run
from vitx.runtime.progress import progress
from vitx.runtime.workdir import StageFolder


def write_masks(run: Run, stage: StageFolder, model: Segmenter) -> None:
    """Writes the network's mask of each val image, `val/<id>.png` at the image's size, from the image alone."""
    config = run.config.segmenter
    scales, flip = tuple(config.test.scales), config.test.flip

    def probabilities(model: Segmenter, images: Array) -> Array:
        return jnp.exp(segment(model, images, scales, flip)).transpose(0, 3, 1, 2)

    predict = parallel.per_example(probabilities, mode=run.config.parallel)
    batches = loader.evaluation_batches(
        seeded(run, "val"), preprocess=model.preprocess, batch_size=config.batch_size
    )
    local = parallel.replicate(model, parallel.local_mesh())
    missing, images, done = missing_batches(stage, batches, ".png", "val")
    with progress(images, "network val", start=done, compiles=True) as bar:
        for number, batch in zip(missing, loader.read_ahead(batches, missing), strict=True):
            found = predict(local, batch["image"])  # (B, C, h, w)
            examples = batch["examples"][: len(batches.places(number))]
            for example, maps in zip(examples, found, strict=False):
                write_mask(stage, "val", example.id, _mask(run, example, maps))
            bar.advance(len(examples))
            run.stop.check()


def _mask(run: Run, example: loader.Example, maps: np.ndarray) -> np.ndarray:
    """Probabilities (C, h, w) -> the most probable class of each of an image's pixels, after a CRF if one is wanted."""
    crf = CRFParameters(**run.config.segmenter.crf)
    if not np.isfinite(maps).all():
        raise FloatingPointError(
            f"segmenter: the network's output of image {example.id} is not finite"
        )
    maps = resize_maps(maps, example.size)
    if crf.iterations:
        backend = run.config.labels.backend
        maps = dense_crf(example.image[None], maps[None], parameters=crf, backend=backend)[0]
    return maps.argmax(0).astype(np.uint8)


def score_masks(run: Run, stage: StageFolder) -> dict[str, Any]:
    """Scores of the network's masks of val, fractions.

    Returns:
      {} where no image has a mask. Else images (those with a mask), and the figures of `mask_figures`.
    """
    source = seeded(run, "val")
    count, mine = len(source.classes), parallel.share(range(len(source)))
    counts = np.zeros((max(len(mine), 1), 3, count), np.int64)
    for row, example in zip(counts, loader.read_ahead(source, mine), strict=False):
        if example.mask is not None:
            row += region_counts(read_mask(stage, "val", example.id), example.mask, count)
        run.stop.check()
    (counts,) = parallel.gather_shares([counts], len(source))
    counts = counts[counts[:, 1].any(-1)]
    return {"images": len(counts)} | mask_figures(counts, source.classes) if len(counts) else {}
