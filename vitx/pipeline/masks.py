"""Stage `masks`: seed maps walk along AffinityNet's affinities and become masks, which are scored."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from vitx import parallel, weights
from vitx.data import loader
from vitx.data.transforms import resize_maps
from vitx.models.affinitynet import AffinityNet, MultiLevelAffinityNet
from vitx.pipeline.artifacts import (
    SCORES,
    SPLITS,
    check_grid,
    missing_batches,
    pool_factor,
    read_scores,
    read_seed_maps,
    seeded,
    write_mask,
)
from vitx.pipeline.choice import choose, read_choice
from vitx.pipeline.mask_scores import FROM_TRUTH, score
from vitx.pipeline.masks_pictures import pictures_section
from vitx.pipeline.masks_section import KINDS, masks_section, scored_splits
from vitx.pseudomasks.affinity import affinities
from vitx.pseudomasks.crf import background_channels, pool_posteriors
from vitx.pseudomasks.label_values import label_values
from vitx.pseudomasks.walk import METHODS, random_walk
from vitx.report.page import Section, Tile
from vitx.report.parts import percent
from vitx.runtime.experiment import Run, Stage
from vitx.runtime.files import write_json
from vitx.runtime.options import POSITIVE, among, candidates, whole
from vitx.runtime.progress import progress
from vitx.runtime.workdir import StageFolder

_NOT_KEPT = np.empty((0, 0, 0), np.float32)


def make_masks(run: Run, stage: StageFolder) -> None:
    """Chooses options on train, writes `<split>/<id>.png` masks at the images' sizes, and `scores.json`."""
    refine = Refiner(run)
    record = stage.folder / "chosen.json"
    if parallel.max_over_processes(not record.exists())[0]:
        # Each process has it: a shared file system may not show the others yet what the first wrote.
        chosen = choose(run, refine)
        if parallel.is_first_process():
            write_json(record, chosen | {"stamp": stage.stamp(record.name)})
    else:
        chosen = read_choice(stage, record)
    walk = chosen["beta"], chosen["log2_steps"]
    for split in SPLITS:
        batches = refine.batches(seeded(run, split))
        missing, images, done = missing_batches(stage, batches, ".png", split)
        with progress(images, f"masks {split}", start=done) as bar:
            alphas = (chosen["alpha"],)
            for items, affinity, maps in refine.prepared(batches, missing, split, alphas):
                for item, walked in zip(items, refine.walk(affinity, maps, *walk), strict=True):
                    (mask,) = refine.masks(walked, item)
                    write_mask(stage, split, item.example.id, mask)
                bar.advance(len(items))
                run.stop.check()
    parallel.barrier()
    scores = {split: score(run, stage, split, chosen["background"]) for split in SPLITS}
    if parallel.is_first_process():
        write_json(stage.folder / SCORES, scores | {"chosen": chosen, "note": FROM_TRUTH})


class Item(NamedTuple):
    """An image on its way, its K classes, and their seed maps (K, H, W) at its own size where they are still needed."""

    example: loader.Example
    classes: np.ndarray
    seed_maps: np.ndarray


class Refiner:
    """AffinityNet and the walk, compiled once, on this process's devices."""

    def __init__(self, run: Run):
        config = run.config
        self.run = run
        trained = run.finished("affinity").folder
        self.net = weights.load(trained)
        if not isinstance(self.net, AffinityNet | MultiLevelAffinityNet):
            raise ValueError(f"{trained} holds a classifier, where an AffinityNet is expected")
        self.seeds = run.finished("seeds")
        self.pool = pool_factor(config.model.image_size, config.affinity.grid)
        self._spread = parallel.replicate(self.net, parallel.local_mesh())
        self._affinities = parallel.per_example(
            lambda net, images: affinities(net(images), config.affinity.radius),
            mode=config.parallel,
        )
        self._walks: dict[tuple[float, int], Callable[..., np.ndarray]] = {}

    def batches(self, source: loader.Source) -> loader.EvaluationBatches:
        """A split's images as AffinityNet reads them."""
        return loader.evaluation_batches(
            source,
            preprocess=self.net.preprocess,
            batch_size=self.run.config.seeds.batch_size,
        )

    def prepared(
        self,
        batches: loader.EvaluationBatches,
        numbers: Sequence[int],
        split: str,
        alphas: Sequence[float],
        keep_seed_maps: bool = False,
    ) -> Iterator[tuple[list[Item], np.ndarray, np.ndarray]]:
        """Yields for each numbered batch its items, affinities (B, P, h, w) and maps to walk (B, A + K, h, w).

        The maps are a background for each alpha, computed at the image's size, the seed maps, and zeros up to the
        split's most classes. `keep_seed_maps`: also in the items, at the images' sizes.
        """
        width = seeded(self.run, split).most_classes
        for number, batch in zip(numbers, loader.read_ahead(batches, numbers), strict=True):
            items = []
            places = batches.places(number)
            maps = np.zeros((len(places), len(alphas) + width, *self.net.grid), np.float32)
            # The last batch repeats its last example.
            for row, example in zip(maps, batch["examples"], strict=False):
                size = example.size
                seed_maps, classes = read_seed_maps(self.seeds, split, example.id, size=size)
                row[: len(alphas) + len(seed_maps)] = self._pooled(seed_maps, alphas)
                items.append(Item(example, classes, seed_maps if keep_seed_maps else _NOT_KEPT))
            affinity = self._affinities(self._spread, batch["image"])[: len(items)]
            yield items, affinity, maps

    def walk(
        self, affinity: np.ndarray, maps: np.ndarray, beta: float, log2_steps: int
    ) -> np.ndarray:
        """Maps (B, A + K, h, w) after the walk."""
        if (beta, log2_steps) not in self._walks:
            self._walks[beta, log2_steps] = parallel.per_example(
                lambda _, affinity, maps: random_walk(
                    affinity, maps, beta, log2_steps, self.run.config.walk.method
                ),
                mode=self.run.config.parallel,
            )
        walked = self._walks[beta, log2_steps](None, affinity, maps)
        if not np.isfinite(walked).all():
            raise FloatingPointError(
                f"masks: a map is not finite after a walk of beta {beta:g}, 2^{log2_steps} steps"
            )
        return walked

    def _pooled(self, seed_maps: np.ndarray, alphas: Sequence[float]) -> np.ndarray:
        backgrounds = background_channels(seed_maps, alphas)
        return pool_posteriors(np.concatenate([backgrounds, seed_maps]), self.net.grid, self.pool)

    @staticmethod
    def masks(walked: np.ndarray, item: Item, alphas: int = 1) -> np.ndarray:
        """The masks of one image, uint8 (A, H, W), from its maps (A + K, h, w) after the walk, A of them backgrounds.

        At each pixel the greatest of background and present classes; the background wins ties.
        """
        size, count = item.example.size, len(item.classes)
        if not count:
            return np.zeros((alphas, *size), np.uint8)
        maps = resize_maps(walked[: alphas + count], size)
        backgrounds, seed_maps = maps[:alphas], maps[alphas:]
        best = np.where(seed_maps.max(0) > backgrounds, 1 + seed_maps.argmax(0), 0)
        return label_values(item.classes)[best]


def _facts(run: Run) -> dict[str, dict[str, Any]]:
    splits = dict.fromkeys((run.config.data.val_split, run.config.seeds.train_split))
    return {"data": {"mask_fingerprints": [run.source(split).mask_fingerprint for split in splits]}}


def _scores(run: Run) -> dict[str, Any]:
    masks = read_scores(run, "masks")
    return {
        **masks["val"],  # nothing where no image has a mask
        "splits": {"train": masks["train"]},
        "chosen": masks["chosen"],
        "note": FROM_TRUTH,
    }


def _tables(results: dict[str, Any]) -> Iterator[Table]:
    if scored := scored_splits(results):
        table = Table(title="Masks from image labels, mIoU %", caption=FROM_TRUTH)
        for column in ("", *KINDS.values(), "gain"):
            table.add_column(column, justify="right" if column else "left")
        for split, scores in scored.items():
            found = {kind: 100 * scores[kind]["miou"] for kind in KINDS}
            gain = found["masks"] - found["seeds"]
            table.add_row(split, *(f"{value:.1f}" for value in found.values()), f"{gain:+.1f}")
        yield table


def _tiles(results: dict[str, Any]) -> list[Tile]:
    if "masks" not in results:
        return []
    seeds, masks = results["seeds"]["miou"], results["masks"]["miou"]
    gain = f"{100 * (masks - seeds):+.1f} points over the seeds"
    return [
        Tile("Seeds' mIoU", f"{percent(seeds)} %"),
        Tile("Refined masks' mIoU", f"{percent(masks)} %", gain),
    ]


def _section(run: Run, results: dict[str, Any]) -> list[Section]:
    return [masks_section(results, run.config.report.published), pictures_section(run, results)]


STAGE = Stage(
    "masks",
    make_masks,
    needs=["affinity"],
    keys=["walk", "seeds.background"],
    facts=_facts,
    options={
        "walk.alpha": candidates(POSITIVE),
        "walk.beta": candidates(POSITIVE),
        "walk.log2_steps": candidates(whole(0, 30)),
        "walk.method": among(METHODS),
    },
    check_options=check_grid,
    splits=["walk.split"],
    scores=_scores,
    tables=_tables,
    tiles=_tiles,
    section=_section,
)
