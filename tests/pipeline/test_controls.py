"""The walk's choices, its sources of affinities and the control arms, on a small finished run."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import testing
from tests.runs import KNOWN, begun
from vitx import weights
from vitx.data import loader
from vitx.data.transforms import resize_maps, resize_mask
from vitx.evaluation.metrics import confusion_matrix, mean_iou
from vitx.models.levels import features_at
from vitx.pipeline.affinities import AFFINITIES, LEARNED, NO_WALK, ORACLE, affinity_source
from vitx.pipeline.artifacts import pool_factor, read_mask, read_scores, read_seed_maps, seeded
from vitx.pipeline.controls import REFINED, STEPS, differences
from vitx.pipeline.refiner import Item, Refiner
from vitx.pipeline.report import gather
from vitx.pseudomasks.affinity import affinities, inside
from vitx.pseudomasks.crf import CRFParameters, dense_crf, pool_posteriors
from vitx.pseudomasks.walk import random_walk
from vitx.runtime.experiment import Run, run_stages

pytestmark = pytest.mark.slow

TRAINING = ("classifier", "seeds", "labels", "affinity")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and a run up to the control arms."""
    return tmp_path_factory.mktemp("controls")


def config_of(folder: Path, **changes: object) -> ConfigDict:
    config = testing.get_config()
    config.data.root = str(folder / "data")
    config.walk.beta = (4.0,)
    config.controls.arms = ("no_walk", "no_crf", "uniform", "colour", "features", "oracle")
    with config.unlocked():
        config.update_from_flattened_dict(
            {key.replace("__", "."): value for key, value in changes.items()}
        )
    return config


@pytest.fixture(scope="module")
def finished(folder: Path) -> Run:
    run = begun(config_of(folder), folder / "run")
    run_stages(run, [KNOWN[name] for name in (*TRAINING, "masks", "controls")])
    return run


class Reopened(Run):
    """The same finished stages under other options of the walk."""

    def finished(self, name: str):
        record = json.loads((self.workdir.folder / name / "stage.json").read_text())
        return self.workdir.stage(name, record["options"])


def reopened(finished: Run, folder: Path, **changes: object) -> Run:
    return Reopened(config_of(folder, **changes), finished.workdir, finished.stop, KNOWN)


def first_batch(refine: Refiner, run: Run) -> tuple[list[Item], np.ndarray, np.ndarray, dict]:
    batches = refine.batches(seeded(run, "val"))
    levels = (2.0, 8.0)
    (prepared,) = refine.prepared(batches, [0], "val", levels)
    return *prepared, batches[0]


@pytest.mark.parametrize("pairs", ["published", "near", "all"])
@pytest.mark.parametrize("name", [*AFFINITIES, ORACLE])
def test_affinities_are_symmetric_and_between_0_and_1(
    finished: Run, folder: Path, name: str, pairs: str
) -> None:
    run = reopened(finished, folder, walk__pairs=pairs)
    source = affinity_source(run, name)
    batch = loader.evaluation_batches(
        seeded(run, "val"), preprocess=source.preprocess, batch_size=3
    )[0]
    found = source.compute(batch)
    pixels = source.grid[0] * source.grid[1]
    assert found.min() >= 0 and found.max() <= 1 and found.max() > 0
    if pairs == "all":
        assert found.shape == (3, pixels, pixels)
        np.testing.assert_array_equal(found, found.swapaxes(1, 2))
        assert np.all(np.diagonal(found, axis1=1, axis2=2) == 1)
    else:
        assert found.shape == (3, 34, *source.grid)
        assert not found[:, ~inside(source.grid, 5)].any()
        assert found[..., :4].any() == (pairs == "near")  # published: no from-pixels there


def test_sources_equal_their_definitions(finished: Run, folder: Path) -> None:
    run = reopened(finished, folder, walk__pairs="near")
    source = affinity_source(run, LEARNED)
    batch = loader.evaluation_batches(
        seeded(run, "val"), preprocess=source.preprocess, batch_size=3
    )[0]
    images, grid = jnp.asarray(batch["image"]), source.grid
    net = weights.load(run.finished("affinity").folder)
    np.testing.assert_allclose(
        source.compute(batch), affinities(net(images), 5, everywhere=True), rtol=1e-5
    )

    model = weights.load_classifier(run.finished("classifier").folder)
    joined = []
    for level in features_at(model, images, run.config.walk.levels):
        centred = np.asarray(level) - np.asarray(level).mean((1, 2), keepdims=True)
        centred = np.moveaxis(resize_maps(np.moveaxis(centred, -1, 1), grid), 1, -1)
        scale = np.sqrt(np.square(centred).sum(-1).mean((1, 2)))
        joined.append(centred / scale[:, None, None, None])
    flat = np.concatenate(joined, -1).reshape(3, grid[0] * grid[1], -1)
    flat /= np.linalg.norm(flat, axis=-1, keepdims=True)
    expected = np.clip(flat @ flat.swapaxes(1, 2), 0, 1)
    every = reopened(finished, folder, walk__pairs="all")
    found = affinity_source(every, "features").compute(batch)
    np.testing.assert_allclose(found, expected, atol=1e-4)

    labels = np.stack([resize_mask(item.mask, grid) for item in batch["examples"]]).reshape(3, -1)
    same = labels[:, :, None] == labels[:, None]
    np.testing.assert_allclose(affinity_source(every, ORACLE).compute(batch), same, atol=1e-6)
    assert (affinity_source(every, "uniform").compute(batch) == 1).all()


def test_the_published_walk_step_by_step(finished: Run, folder: Path) -> None:
    run = reopened(
        finished,
        folder,
        walk__pairs="published",
        walk__background="walked",
        walk__over_maximum=False,
    )
    refine = Refiner(run, LEARNED, crf=False)
    items, affinity, maps, _ = first_batch(refine, run)
    walked = refine.walk(affinity, maps, 4.0, 2)
    pool = pool_factor(48, refine.source.grid[0])
    for item, own, pairs in zip(items, walked, affinity, strict=True):
        seed_maps, classes = read_seed_maps(
            run.finished("seeds"), "val", item.example.id, size=item.example.size
        )
        background = (1 - seed_maps.max(0)) ** 8
        start = pool_posteriors(
            np.concatenate([background[None], seed_maps]), refine.source.grid, pool
        )
        scores = resize_maps(
            np.asarray(random_walk(pairs, start, 4.0, 2, run.config.walk.method)), (48, 48)
        )
        expected = np.concatenate([[0], classes + 1])[scores.argmax(0)]
        masks = refine.masks(own, item, (2.0, 8.0))
        assert masks.shape == (2, 48, 48)
        assert np.mean(masks[1] == expected) > 0.999  # ties


@pytest.mark.parametrize("over_maximum", [False, True])
@pytest.mark.parametrize("background", ["recomputed", "constant"])
def test_backgrounds_after_the_walk(
    finished: Run, folder: Path, background: str, over_maximum: bool
) -> None:
    run = reopened(finished, folder, walk__background=background, walk__over_maximum=over_maximum)
    refine = Refiner(run, "uniform")
    items, affinity, maps, _ = first_batch(refine, run)
    assert maps.shape[1] == seeded(run, "val").most_classes  # no background walks
    levels = (0.25, 0.75)
    for item, own in zip(items, refine.walk(affinity, maps, 1.0, 1), strict=True):
        foreground = resize_maps(own[: len(item.classes)], (48, 48))
        if over_maximum:
            foreground /= foreground.max((1, 2), keepdims=True)
        scores = refine.scores(own, item, levels)
        for level, found in zip(levels, scores, strict=True):
            constant = np.full((48, 48), level)
            again = (1 - foreground.max(0).clip(0, 1)) ** level
            np.testing.assert_allclose(
                found[0], constant if background == "constant" else again, rtol=1e-5
            )
            np.testing.assert_allclose(found[1:], foreground, rtol=1e-5)
        crf = dense_crf(
            item.example.image[None],
            scores[None].clip(0, 1),
            parameters=CRFParameters(**run.config.masks.crf),
            backend="exact",
        )[0]
        expected = np.concatenate([[0], item.classes + 1])[crf.argmax(1)]
        np.testing.assert_array_equal(refine.masks(own, item, levels, crf=True), expected)


def test_the_walk_may_start_from_the_posteriors(finished: Run, folder: Path) -> None:
    plain = Refiner(reopened(finished, folder), NO_WALK)
    from_crf = Refiner(reopened(finished, folder, walk__start="crf"), NO_WALK)
    _, _, maps, _ = first_batch(plain, plain.run)
    items, _, posteriors, _ = first_batch(from_crf, from_crf.run)
    assert not np.allclose(maps, posteriors)
    for item, own in zip(items, posteriors, strict=True):
        assert own.min() >= 0 and own.sum(0).max() <= 1 + 1e-4  # with the background they sum to 1
        assert own[len(item.classes) :].max(initial=0) == 0


def test_control_arms_are_scored_from_their_own_masks(finished: Run) -> None:
    scores = json.loads((finished.finished("controls").folder / "scores.json").read_text())
    arms = ["no_walk", "no_crf", "uniform", "colour", "features", "oracle"]
    assert list(scores["figures"]) == [*STEPS, *arms, REFINED]
    assert list(scores["chosen"]) == arms
    assert scores["figures"][REFINED]["ahead_interval"] == [0, 0]
    counts = len(finished.config.walk.beta) * len(finished.config.walk.threshold)
    source, stage = seeded(finished, "val"), finished.finished("controls")
    for arm in arms:
        tried = len(finished.config.walk.threshold) if arm == "no_walk" else counts
        assert len(scores["chosen"][arm]["candidates"]) == tried
        table = sum(
            confusion_matrix(read_mask(stage, arm, example.id), example.mask, 6)
            for example in source
        )
        assert scores["figures"][arm]["miou"] == pytest.approx(float(mean_iou(table)))
    masks = json.loads((finished.finished("masks").folder / "scores.json").read_text())
    for kind in (*STEPS, REFINED):
        found = scores["figures"][kind]["miou"]
        assert found == pytest.approx(masks["val"][kind]["miou"])


def test_differences_are_paired() -> None:
    generator = np.random.default_rng(0)
    tables = np.zeros((40, 2, 3, 3), np.int64)
    tables[:, 0] = generator.integers(1, 50, (40, 3, 3)) + 60 * np.eye(3, dtype=np.int64)
    tables[:, 1] = tables[:, 0] + 15 * np.eye(3, dtype=np.int64)  # better in every image
    padded = np.concatenate([tables, np.zeros((3, 2, 3, 3), np.int64)])  # images without masks
    found = differences(["one", "two"], padded)
    assert found == differences(["one", "two"], tables)
    for place, name in enumerate(found):
        assert found[name]["miou"] == pytest.approx(float(mean_iou(tables[:, place].sum(0))))
    low, high = found["one"]["ahead_interval"]
    assert 0 < low < found["one"]["ahead"] < high
    own = found["one"]["interval"][1] - found["one"]["interval"][0]
    assert high - low < own  # pairing removes what both share


def test_the_choice_is_the_best_of_the_candidates(finished: Run) -> None:
    chosen = json.loads((finished.finished("masks").folder / "chosen.json").read_text())
    config = finished.config.walk
    assert chosen["how"] == "masks" and chosen["split"] == finished.source(config.split).split
    count = len(config.beta) * len(config.log2_steps) * len(config.threshold)
    assert len(chosen["candidates"]) == count
    best = max(chosen["candidates"], key=lambda entry: entry["score"])
    assert (chosen["beta"], chosen["log2_steps"]) == (best["beta"], best["log2_steps"])
    level = max(chosen["under_crf"], key=lambda entry: entry["score"])
    assert chosen["level"] == level["level"]
    background = max(chosen["backgrounds"], key=lambda entry: entry["score"])
    assert chosen["background"] == background["background"]


def test_without_stage_affinity_masks_follow_from_features(finished: Run, folder: Path) -> None:
    """Any classifier can make masks: AffinityNet is not trained."""
    assert KNOWN["masks"].needs_of(finished.config) == ["affinity"]
    config = config_of(folder, walk__affinity="features", controls__arms=("features", "uniform"))
    for name in ("classifier", "seeds", "labels"):
        shutil.copytree(finished.workdir.folder / name, folder / "features" / name)
    run = begun(config, folder / "features")
    run_stages(run, [KNOWN["masks"], KNOWN["controls"]])
    assert not (folder / "features" / "affinity").exists()
    assert list(read_scores(run, "controls")["chosen"]) == ["uniform"]  # the other is no control
    shutil.rmtree(folder / "features" / "controls")
    config.controls.arms = ("affinitynet",)
    with pytest.raises(ValueError, match="stage 'affinity' is not done"):
        run_stages(begun(config, folder / "features"), [KNOWN["controls"]])


def test_controls_may_be_left_out(finished: Run, folder: Path) -> None:
    shutil.copytree(finished.workdir.folder, folder / "without")
    shutil.rmtree(folder / "without" / "controls")
    run = begun(finished.config, folder / "without")
    assert "controls" not in gather(run, [KNOWN["masks"], KNOWN["controls"]])
    assert not KNOWN["controls"].section(run, {})
