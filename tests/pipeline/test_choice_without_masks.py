"""Options of masks chosen without true masks."""

import dataclasses
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from configs import testing
from tests.runs import KNOWN, begun
from vitx import weights
from vitx.data.source import Example, Source
from vitx.evaluation.explained import explained_share, feature_sums, label_sums
from vitx.models.families import MODELS, Sizes
from vitx.models.levels import features_at
from vitx.models.registry import create
from vitx.pipeline.choice import choose, choose_background
from vitx.pipeline.feature_judge import FeatureJudge, judging_levels
from vitx.pipeline.refiner import Item, Refiner
from vitx.runtime.experiment import Run, check_options, run_stages

pytestmark = pytest.mark.slow


def _run(folder: Path, data: Path, choose: str = "auto") -> Run:
    config = testing.get_config()
    config.data.root, config.walk.affinity, config.walk.choose = str(data), "features", choose
    config.walk.threshold = (0.6, 0.2, 0.4)
    config.affinity.levels, config.walk.levels = (), ("stem.1", "block.1")
    config.seeds.background = (0.4, 0.1, 0.2)
    check_options(config, KNOWN)
    return begun(config, folder)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A workdir whose stages up to the labels are done, and its data."""
    folder, data = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("data")
    stages = [KNOWN[name] for name in ("classifier", "seeds", "labels")]
    run_stages(_run(folder, data), stages)
    return folder, data


def _chosen(labelled: tuple[Path, Path], folder: Path, how: str = "auto") -> dict:
    done, data = labelled
    shutil.copytree(done, folder)
    run = _run(folder, data, how)
    return choose(run, Refiner(run, "features")) | choose_background(run)


def _hide_masks(patch: pytest.MonkeyPatch) -> None:
    read = Source.__getitem__

    def without(self: Source, index: int) -> Example:
        return dataclasses.replace(read(self, index), mask=None)

    patch.setattr(Source, "__getitem__", without)
    patch.setattr(Source, "any_masks", property(lambda self: False))


def test_no_mask_is_read(labelled, tmp_path, monkeypatch) -> None:
    chosen = _chosen(labelled, tmp_path / "auto")
    by_masks = _chosen(labelled, tmp_path / "masks", "masks")
    _hide_masks(monkeypatch)
    assert _chosen(labelled, tmp_path / "hidden") == chosen
    # Where there are none to choose by, they are not missed.
    assert _chosen(labelled, tmp_path / "none", "masks") == chosen
    assert chosen["how"] == "auto" and by_masks["how"] == "masks"
    assert chosen["candidates"] != by_masks["candidates"]
    for found in (chosen["candidates"], chosen["under_crf"], chosen["backgrounds"]):
        scores = [entry["score"] for entry in found]
        assert np.isfinite(scores).all() and 0 <= min(scores) < max(scores) <= 1


def test_candidates_score_what_the_regression_of_their_masks_explains(labelled) -> None:
    run = _run(*labelled)
    source = run.source(run.config.walk.split)
    judge, model = FeatureJudge(run, source), weights.load_classifier(labelled[0] / "classifier")
    levels = judging_levels(model)
    draw = np.random.default_rng(0)
    sums = judge.empty(2)
    cells, products, labels = 0, 0, 0
    for place in range(3):
        example = source[place]
        classes = np.flatnonzero(example.labels).astype(np.int32)
        values = np.array([0, *(classes + 1)], np.uint8)
        masks = values[draw.integers(len(values), size=(2, *example.size))]
        judge.look([example])
        judge.add(sums, masks, Item(example, classes))
        statistics = model.preprocess
        image = (example.image / np.float32(255) - statistics.mean) / statistics.std
        maps = features_at(model, jnp.asarray(image[None], jnp.float32), levels)
        # Levels of a grid that divides the image's: cells of 4 x 4 pixels.
        assert {level.shape[1:3] for level in maps} == {(12, 12)}
        features = np.concatenate(maps, -1, dtype=np.float64).reshape(144, -1)
        whole = (masks[:, None] == np.arange(len(source.classes))[:, None, None]).astype(float)
        shares = whole.reshape(2, -1, 12, 4, 12, 4).mean((3, 5)).reshape(2, -1, 144)
        one = feature_sums(features)
        cells, products = cells + one.cells, products + one.products
        labels = labels + label_sums(features, shares)
    expected = explained_share(type(one)(cells, products), labels)
    np.testing.assert_allclose(judge.score(sums), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("vit_test_conv_s4_48", ("stem.2", "block.1")), ("plain", ("block.2",))],
)
def test_every_model_has_levels_to_judge_by(name, expected, monkeypatch) -> None:
    monkeypatch.setitem(MODELS, "plain", Sizes(32, 3, 2, 64, patch=4, image_size=48))
    model = create(name, num_classes=2)
    assert judging_levels(model) == expected
