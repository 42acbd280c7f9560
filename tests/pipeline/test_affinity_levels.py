"""Stage `affinity` on levels of the backbone, and with a backbone that keeps its weights."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from configs import testing
from tests.runs import KNOWN, begun
from vitx import weights
from vitx.models.affinitynet import AffinityNet, MultiLevelAffinityNet
from vitx.models.families import MODELS, Sizes
from vitx.models.levels import part_below
from vitx.pipeline.affinity import initial_net
from vitx.runtime.experiment import Run, check_options, run_stages
from vitx.runtime.signals import Stopped

pytestmark = pytest.mark.slow
HYBRID, PLAIN = "vit_test_conv_s4_48", "vit_test_patch4_48"
LEVELS = {HYBRID: ("stem.1", "stem.2", "block.1"), PLAIN: ("block.1", "block.2")}


@pytest.fixture(scope="module", autouse=True)
def plain_vit() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, PLAIN, Sizes(32, 2, 2, 64, patch=4, image_size=48))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def _run(folder: Path, data: Path, name: str, **options: object) -> Run:
    config: ConfigDict = testing.get_config()
    config.data.root, config.model.name = str(data), name
    config.affinity.levels = config.segmenter.levels = LEVELS[name]
    config.update_from_flattened_dict({f"affinity.{key}": value for key, value in options.items()})
    check_options(config, KNOWN)
    return begun(config, folder)


@pytest.fixture(scope="module", params=LEVELS)
def labelled(request: pytest.FixtureRequest, data: Path) -> tuple[str, Path]:
    """A model, and a workdir whose stages up to the labels are done."""
    folder = request.getfixturevalue("tmp_path_factory").mktemp("runs") / "labelled"
    run = _run(folder, data, request.param)
    run_stages(run, [KNOWN[stage] for stage in ("classifier", "seeds", "labels")])
    return request.param, folder


def _copied(labelled: tuple[str, Path], folder: Path, data: Path, **options: object) -> Run:
    name, done = labelled
    shutil.copytree(done, folder)
    return _run(folder, data, name, **options)


def _trained(run: Run) -> tuple[dict, dict]:
    """The net's weights by path, before and after its training of two steps."""
    first = initial_net(run)
    run_stages(run, [KNOWN["affinity"]])
    lines = (run.workdir.folder / "affinity" / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(line)["step"] for line in lines) == 2
    last = weights.load(run.finished("affinity").folder)
    assert nnx.graphdef(last) == nnx.graphdef(first)
    before, after = (nnx.to_flat_state(nnx.state(net)) for net in (first, last))
    return {p: np.asarray(v[...]) for p, v in before}, {p: np.asarray(v[...]) for p, v in after}


def test_levels_make_masks(labelled, data, tmp_path) -> None:
    run = _copied(labelled, tmp_path / "run", data)
    before, after = _trained(run)
    for path, array in before.items():
        assert not np.array_equal(array, after[path]), path
    net = weights.load(run.finished("affinity").folder)
    assert isinstance(net, MultiLevelAffinityNet) and net.levels == LEVELS[labelled[0]]
    assert not (run.workdir.folder / "masks").exists()
    run_stages(run, [KNOWN["masks"]])
    assert run.finished("masks").done


def test_a_frozen_backbone_keeps_its_bits(labelled, data, tmp_path) -> None:
    """Under momentum and weight decay of every parameter, which would move each of them."""
    run = _copied(labelled, tmp_path / "run", data, train_backbone=False, weight_decay=0.1)
    assert run.config.affinity.decay_norms_and_biases
    before, after = _trained(run)
    classifier = weights.load_classifier(run.finished("classifier").folder)
    part = part_below(classifier, run.config.affinity.levels)
    own = {path: np.asarray(v[...]) for path, v in nnx.to_flat_state(nnx.state(part))}
    assert own.keys() == {path[1:] for path in before if path[0] == "backbone"}
    for path, array in before.items():
        if path[0] == "backbone":
            assert after[path].tobytes() == array.tobytes() == own[path[1:]].tobytes(), path
        else:
            assert not np.array_equal(after[path], array), path
    checkpoints = run.workdir.folder / "affinity" / "checkpoints"
    for saved in checkpoints.glob("*/state/_METADATA"):  # names the arrays, momentum's too
        assert "branches" in saved.read_text() and "backbone" not in saved.read_text()
    assert len(list(checkpoints.glob("*/state/_METADATA"))) == 2


@pytest.mark.exhaustive
def test_a_stopped_run_goes_on_with_the_frozen_backbone(labelled, data, tmp_path) -> None:
    options = {"train_backbone": False}
    whole = _copied(labelled, tmp_path / "whole", data, **options)
    run_stages(whole, [KNOWN["affinity"]])
    run = _copied(labelled, tmp_path / "stopped", data, **options)
    with run.stop:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped):
            run_stages(run, [KNOWN["affinity"]])
    name, _ = labelled
    run = _run(tmp_path / "stopped", data, name, **options)
    run_stages(run, [KNOWN["affinity"]])
    files = [r.workdir.folder / "affinity" / "model.safetensors" for r in (whole, run)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_published_net_may_keep_its_stem(labelled, data, tmp_path) -> None:
    if labelled[0] == PLAIN:
        run = _copied(labelled, tmp_path / "run", data, levels=())
        with pytest.raises(ValueError, match=r"has none: choose a hybrid, name blocks in config"):
            run_stages(run, [KNOWN["affinity"]])
        return
    run = _copied(labelled, tmp_path / "run", data, levels=(), train_backbone=False)
    before, after = _trained(run)
    assert isinstance(weights.load(run.finished("affinity").folder), AffinityNet)
    for path, array in before.items():
        assert (path[0] == "stem") == np.array_equal(after[path], array), path


@pytest.mark.parametrize(
    "name, levels, message",
    [
        (
            HYBRID,
            ("stem.1", "stem.3"),
            "no level 'stem.3'; it has stem.1, stem.2, block.1, block.2",
        ),
        (PLAIN, ("stem.1",), "no level 'stem.1'; it has block.1, block.2"),
        (PLAIN, ("block.3",), "no level 'block.3'; it has block.1, block.2"),
    ],
)
def test_unknown_levels_end_before_training(name, levels, message, data, tmp_path) -> None:
    run = _run(tmp_path, data, name, levels=levels)
    with pytest.raises(ValueError, match=f"^config.affinity.levels: the model has {message}"):
        run_stages(run, [KNOWN["classifier"]])
    assert not (tmp_path / "classifier" / "checkpoints").exists()
