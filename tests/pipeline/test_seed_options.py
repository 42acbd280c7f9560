"""Stage `seeds` under its options, at the size of configs/testing.py: what changes, and what must not."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import vitx
from configs import testing
from tests.runs import KNOWN, begun
from tests.small_models import small_vit
from vitx import parallel
from vitx.data import loader
from vitx.models.variants import at_size
from vitx.pipeline.artifacts import read_arrays, seeded
from vitx.pipeline.seeds import padded_classes, scaled_size, width_of
from vitx.pseudomasks.seeds import class_seed_maps
from vitx.runtime.experiment import Run, run_stages

pytestmark = pytest.mark.slow
METHOD = {"seeds.method": "gradcam"}  # compiles fast; test_experiment.py has the published one
OPTIONS = {"seeds.scales": (1.0, 1.5), "seeds.contrast": True, "seeds.refine": "clip_es"}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Runs stage `seeds`, for each set of options once, after one and the same classifier."""
    folder = tmp_path_factory.mktemp("runs")
    first = folder / "first"

    @functools.cache
    def start(**changes: object) -> Run:
        config = testing.get_config()
        config.data.root = str(folder / "data")
        config.update_from_flattened_dict(changes)
        workdir = tmp_path_factory.mktemp("run") if first.exists() else first
        if workdir != first:
            (workdir / "classifier").symlink_to(first / "classifier")
        run = begun(config, workdir)
        run_stages(run, [KNOWN["classifier"], KNOWN["seeds"]])
        return run

    start(**METHOD)
    return start


def _maps(run: Run, split: str = "val") -> dict[str, np.ndarray]:
    folder = run.finished("seeds")
    return {e.id: read_arrays(folder, split, e.id)["cues"] for e in seeded(run, split)}


def test_one_scale_twice_is_that_scale(started: Callable[..., Run]) -> None:
    once, twice = _maps(started(**METHOD)), _maps(started(**METHOD, **{"seeds.scales": (1.0, 1.0)}))
    for name, maps in once.items():
        np.testing.assert_array_equal(maps, twice[name])


def test_maps_are_the_mean_over_scales_of_the_original_image(started: Callable[..., Run]) -> None:
    run = started(**METHOD, **OPTIONS)
    found = _maps(run)
    model = vitx.load(run.finished("classifier").folder / "model.safetensors")
    each = []
    for size in ((48, 48), (72, 72)):
        scaled = at_size(model, size)
        (batch, *_) = loader.evaluation_batches(
            seeded(run, "val"), preprocess=scaled.preprocess, batch_size=6
        )
        assert batch["image"].shape == (6, *size, 3)
        classes = padded_classes(batch["labels"], width_of(batch["labels"]))

        def seed_maps(model, images, classes):
            options = {"method": "gradcam", "contrast": True, "refine": "clip_es"}
            return class_seed_maps(model, images, classes, size=(48, 48), **options)

        each.append(parallel.per_example(seed_maps)(scaled, batch["image"], classes))
    expected = np.mean(each, axis=0)
    assert (classes >= 0).sum(1).max() > 1  # contrast has something to do
    for row, name in enumerate(batch["id"]):
        kept = expected[row][classes[row] >= 0]
        np.testing.assert_allclose(found[name], kept, atol=2e-3)
        assert found[name].dtype == np.float16 and found[name].shape[1:] == (48, 48)
    assert np.abs(each[0] - each[1]).max() > 0.05


def test_a_method_that_knows_no_classes_gives_equal_maps(started: Callable[..., Run]) -> None:
    several = [m for m in _maps(started(**{"seeds.method": "rollout"})).values() if len(m) > 1]
    assert several
    for maps in several:
        np.testing.assert_array_equal(maps, np.broadcast_to(maps[:1], maps.shape))


def test_sizes_are_whole_cells() -> None:
    model = small_vit()  # 8 x 12, cells of 4
    sizes = {1.0: (8, 12), 1.5: (12, 20), 0.1: (4, 4), 1.2: (8, 16), 0.5: (4, 8)}
    assert {scale: scaled_size(model, scale) for scale in sizes} == sizes


def test_maps_of_pixels_are_not_refined_and_that_is_found_first(tmp_path: Path) -> None:
    config = testing.get_config()
    config.data.root = str(tmp_path)
    config.model.name, config.seeds.method, config.seeds.refine = (
        "vit_tiny_patch16_224",
        "lrp",
        "clip_es",
    )
    with pytest.raises(
        ValueError, match=r"config\.seeds\.refine=clip_es wants maps on the token grid"
    ):
        run_stages(begun(config, tmp_path / "run"), [KNOWN["classifier"], KNOWN["seeds"]])
    assert not list((tmp_path / "run" / "classifier").glob("checkpoints/*"))
