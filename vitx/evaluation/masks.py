"""Stage `masks`: cues walk along AffinityNet's affinities and become masks, which are scored."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitx import checkpoints
from vitx.data import pipeline
from vitx.data.palette import decode_mask, encode_mask
from vitx.data.transforms import resize_maps
from vitx.evaluation.metrics import confusion_matrix, mean_iou, per_class_iou
from vitx.ops import Array
from vitx.pseudomasks.affinity import affinities
from vitx.pseudomasks.crf import background_channel, pool_posteriors
from vitx.pseudomasks.seeds import seed_mask
from vitx.pseudomasks.walk import random_walk
from vitx.run import progress
from vitx.stages import Run
from vitx.training.seeds import SPLITS, max_classes, read_cues, seeded
from vitx.workdir import Stage, write_bytes, write_json


def make_masks(run: Run, stage: Stage) -> None:
    """Chooses thresholds on train, writes `<split>/<id>.png` masks at the images' sizes, and `scores.json`."""
    refine = Refiner(run)
    thresholds = choose(run, refine)
    write_json(stage.folder / "thresholds.json", thresholds)
    for split in SPLITS:
        source = seeded(run, split)
        done = stage.items_done(".png", split)
        with progress(len(source), f"masks {split}", start=len(done)) as bar:
            for example, walked, _, classes in refine.images(split, (thresholds["alpha"],), done):
                (mask,) = refined_masks(walked, classes, example.image.shape[:2])
                write_bytes(stage.item(example.id, ".png", split), encode_mask(mask))
                bar.advance()
                run.stop.check()
    scores = {split: score(run, stage, split, thresholds["background"]) for split in SPLITS}
    write_json(stage.folder / "scores.json", scores | {"thresholds": thresholds})


class Refiner:
    """AffinityNet and the walk, jitted once for a batch shape."""

    def __init__(self, run: Run):
        self.run = run
        self.net = checkpoints.load(run.finished("affinity"))
        run.finished("seeds")
        self.seeds = run.stage("seeds")
        config = run.config
        self._walk = jax.jit(
            partial(
                _walk,
                radius=config.affinity.radius,
                grid=self.net.grid,
                walk=config.walk.to_dict(),
            ),
            static_argnames="alphas",
        )

    def images(
        self, split: str, alphas: tuple[float, ...], skip: set[str] | frozenset[str] = frozenset()
    ) -> Any:
        """(example, maps that walked (A + K, h, w), cues (K, H, W), classes (K,)) of each image of a split.

        There is a walked background for each alpha, before the cues. Batches within `skip` are passed over.
        """
        source = seeded(self.run, split)
        width, batch_size = max_classes(source), self.run.config.seeds.batch_size
        batches = pipeline.evaluation_batches(
            source, preprocess=self.net.preprocess, batch_size=batch_size
        )
        for number, batch in enumerate(batches):
            if skip.issuperset(batch["id"]):
                continue
            cues, classes = read_cues(self.seeds, split, batch["id"], width)
            walked = np.asarray(self._walk(self.net, batch["image"], cues, alphas=alphas))
            for row in np.flatnonzero(batch["valid"]):
                if not np.isfinite(walked[row]).all():
                    raise FloatingPointError(f"masks: image {batch['id'][row]} is not finite")
                example = source[number * batch_size + int(row)]
                yield example, walked[row], cues[row], classes[row]


def _walk(
    net: Any,
    images: Array,
    cues: Array,
    *,
    alphas: tuple[float, ...],
    radius: int,
    grid: tuple[int, int],
    walk: dict[str, Any],
) -> Array:
    backgrounds = jnp.stack(
        [background_channel(cues, alpha) for alpha in alphas], 1
    )  # (B, A, H, W)
    maps = pool_posteriors(
        jnp.concatenate([backgrounds, cues], 1), grid, pool=images.shape[1] // grid[0]
    )
    return random_walk(
        affinities(net(images), radius),
        maps,
        beta=walk["beta"],
        log2_steps=walk["log2_steps"],
        method=walk["method"],
    )


def refined_masks(walked: np.ndarray, classes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The masks of one image, one for each background channel.

    Args:
      walked: (A + K, h, w), A background channels and a map for each of `classes`.
      classes: (K,) class indices, -1 for padding.
      size: of the image, (H, W).

    Returns:
      uint8 (A, H, W): the mask class of the greatest of background and present classes.
    """
    maps = np.asarray(resize_maps(jnp.asarray(walked), size))
    backgrounds, cues = maps[: -len(classes)], maps[-len(classes) :][classes >= 0]
    labels = np.concatenate([[0], classes[classes >= 0] + 1]).astype(np.uint8)
    best = cues.max(0)
    winner = np.where(best > backgrounds, 1 + cues.argmax(0), 0)  # (A, H, W)
    return labels[winner]


def choose(run: Run, refine: Refiner) -> dict[str, Any]:
    """The candidates of `config.walk` with the best mIoU on train's seeded images, and all their scores."""
    alphas, backgrounds = tuple(run.config.walk.alpha), tuple(run.config.walk.background)
    source = seeded(run, "train")
    count = len(source.classes)
    walked_tables = np.zeros((len(alphas), count, count), np.int64)
    seed_tables = np.zeros((len(backgrounds), count, count), np.int64)
    with progress(len(source), "thresholds") as bar:
        for example, walked, cues, classes in refine.images("train", alphas):
            size = example.image.shape[:2]
            masks = refined_masks(walked, classes, size)
            for table, mask in zip(walked_tables, masks, strict=True):
                table += confusion_matrix(mask, example.truth, count)
            for table, background in zip(seed_tables, backgrounds, strict=True):
                mask = seed_masks(cues, classes, background, size)
                table += confusion_matrix(mask, example.truth, count)
            bar.advance()
            run.stop.check()
    walked_scores, seed_scores = (
        [float(mean_iou(c)) for c in table] for table in (walked_tables, seed_tables)
    )
    return {
        "alpha": alphas[int(np.argmax(walked_scores))],
        "background": backgrounds[int(np.argmax(seed_scores))],
        "alphas": dict(zip(map(str, alphas), walked_scores, strict=True)),
        "backgrounds": dict(zip(map(str, backgrounds), seed_scores, strict=True)),
    }


def score(run: Run, stage: Stage, split: str, background: float) -> dict[str, Any]:
    """Scores of the seeds' masks and of the refined ones: miou and iou by class name, fractions.

    Both use the classes that each image's ground-truth label names.
    """
    source, seeds = seeded(run, split), run.stage("seeds")
    count, width = len(source.classes), max_classes(source)
    tables = {name: np.zeros((count, count), np.int64) for name in ("seeds", "masks")}
    for example in source:
        cues, classes = read_cues(seeds, split, [example.id], width)
        found = {
            "seeds": seed_masks(cues[0], classes[0], background, example.image.shape[:2]),
            "masks": decode_mask(stage.item(example.id, ".png", split).read_bytes()),
        }
        for name, mask in found.items():
            tables[name] += confusion_matrix(mask, example.truth, count)
    return {
        name: {
            "miou": float(mean_iou(table)),
            "iou": dict(zip(source.classes, map(float, per_class_iou(table)), strict=True)),
        }
        for name, table in tables.items()
    }


def seed_masks(
    cues: np.ndarray, classes: np.ndarray, background: float, size: tuple[int, int]
) -> np.ndarray:
    """The seeds' mask uint8 (H, W) of one image, from cues (K, h, w) and a constant background."""
    return np.asarray(
        seed_mask(resize_maps(jnp.asarray(cues), size), jnp.asarray(classes), background)
    )
