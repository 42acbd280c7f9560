"""Stage `classifier` where a part is trained; and configs/voc_dinov2.py through all stages on a tiny DINOv2."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

import vitx
from configs import testing, voc_dinov2
from tests.made_voc import make_voc
from tests.runs import KNOWN, STAGES, begun
from vitx import weights
from vitx.models.families import DINOV2, MODELS, Sizes
from vitx.models.heads import HEADS
from vitx.pipeline.classifier import initial_model
from vitx.runtime.experiment import Run, check_options, run_stages
from vitx.runtime.signals import Stopped

pytestmark = pytest.mark.slow
TUNED = {
    "classifier.trainable": "block.2",
    "classifier.layer_decay": 0.5,
    "classifier.token_dropout": 0.5,
    "classifier.weight_decay": 0.1,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def _run(folder: Path, data: Path, **changes: object) -> Run:
    config = testing.get_config()
    config.data.root = str(data)
    config.update_from_flattened_dict({"stages": "classifier"} | changes)
    check_options(config, KNOWN)
    return begun(config, folder)


def _arrays(model: object) -> dict:
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(model))}


def test_what_is_frozen_keeps_its_bits(data, tmp_path) -> None:
    """Under weight decay of every parameter; the others learn, each as fast as its layer."""
    run = _run(tmp_path, data, **TUNED)
    before = _arrays(initial_model(run, 5))
    run_stages(run, [KNOWN["classifier"]])
    trained = weights.load(run.finished("classifier").folder)
    assert trained.scores == "sigmoid"  # for those who explain it
    after = _arrays(trained)
    assert before.keys() == after.keys()
    moved = {}
    for path, array in before.items():
        if path[:2] == ("blocks", 1) or path[0] in ("norm", "head"):
            moved[path] = np.abs(after[path] - array).max()
            assert moved[path] > 0, path
        else:
            assert after[path].tobytes() == array.tobytes(), path
    # Steps of AdamW are about as long as the rate, which is half as large in the last block.
    ratio = moved["blocks", 1, "norm2", "scale"] / moved["norm", "scale"]
    assert 0.35 < ratio < 0.7
    for saved in (tmp_path / "classifier" / "checkpoints").glob("*/state/_METADATA"):
        assert "stem" not in saved.read_text()  # nor are there moments of what is frozen
    lines = (tmp_path / "classifier" / "metrics.jsonl").read_text().splitlines()
    assert all(np.isfinite(list(json.loads(line).values())).all() for line in lines)


@pytest.mark.exhaustive
def test_a_stopped_run_drops_the_same_patches(data, tmp_path) -> None:
    whole = _run(tmp_path / "whole", data, **TUNED)
    run_stages(whole, [KNOWN["classifier"]])
    stopped = _run(tmp_path / "stopped", data, **TUNED)
    with stopped.stop:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped):
            run_stages(stopped, [KNOWN["classifier"]])
    run_stages(_run(tmp_path / "stopped", data, **TUNED), [KNOWN["classifier"]])
    files = [tmp_path / name / "classifier" / "model.safetensors" for name in ("whole", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"classifier.trainable": "block.3"},
            "config.classifier.trainable: the model has no level 'block.3'; it has stem.1",
        ),
        (
            {
                "classifier.head": "best",
                "classifier.best_patches": 20,
                "classifier.token_dropout": 0.9,
            },
            "config.classifier.best_patches 20 must be at most the 14 patches that token_dropout=0.9 keeps of 144",
        ),
    ],
)
def test_what_the_model_does_not_have_ends_before_training(changes, message, data, tmp_path):
    run = _run(tmp_path, data, **changes)
    with pytest.raises(ValueError, match=f"^{message}"):
        run_stages(run, [KNOWN["classifier"]])
    assert not (tmp_path / "classifier" / "checkpoints").exists()


@pytest.mark.parametrize("head", HEADS)
def test_a_model_of_random_weights_gets_the_head(head, data, tmp_path) -> None:
    model = initial_model(_run(tmp_path, data), 5, head)
    expected = vitx.create("vit_test_conv_s4_48", 5, 48, head=head)
    assert nnx.graphdef(model) == nnx.graphdef(expected)


NAMES = ("background", "ring", "star", "kite")
TINY = {
    "model.name": "vit_tiny_test_dinov2",
    "model.image_size": 56,
    "classifier.head": "pooled+best",
    "classifier.best_patches": 3,
    "classifier.trainable": "block.3",
    "classifier.epochs": 2,
    "classifier.batch_size": 8,
    "seeds.batch_size": 8,
    "seeds.scales": (1.0, 1.3),
    "affinity.grid": 14,
    "affinity.epochs": 1,
    "affinity.batch_size": 8,
    "affinity.features": 32,
    "affinity.levels": ("block.1", "block.3"),
    "walk.levels": ("block.2", "block.3"),
    "walk.split": "train[:8]",
    "walk.beta": (4.0,),
    "walk.log2_steps": (1,),
    "data.workers": 0,
    "report.images": 2,
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("affinity", ["features", "affinitynet"])
def test_a_plain_backbone_goes_through_all_stages(affinity, tmp_path, monkeypatch) -> None:
    """From a file of the backbone without a head, in training, seed maps at two scales, walk, controls and report."""
    sizes = Sizes(32, 4, 2, 64, patch=14, image_size=70, num_classes=0, design=DINOV2)
    monkeypatch.setitem(MODELS, TINY["model.name"], sizes)
    vitx.save(vitx.create(TINY["model.name"]), tmp_path / "backbone.safetensors")
    (tmp_path / "classes.txt").write_text("\n".join(NAMES), "utf-8")
    made = make_voc(tmp_path / "own", train=16, val=8, size=(40, 52), classes=NAMES)
    config = voc_dinov2.get_config()
    config.update_from_flattened_dict(TINY)
    config.model.checkpoint = str(tmp_path / "backbone.safetensors")
    config.data.root, config.data.classes = str(tmp_path / "own"), str(tmp_path / "classes.txt")
    config.walk.affinity = affinity
    config.controls.arms = ("no_walk", "attention")
    if affinity == "affinitynet":
        config.stages = config.stages.replace("masks", "affinity,masks")
    check_options(config, KNOWN)
    run = begun(config, tmp_path / "run")
    run_stages(run, STAGES)
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert 0 <= results["masks"]["miou"] <= 1 and results["controls"]["figures"]
    assert results["cues"]["train"]["flat"] < results["cues"]["train"]["cues"]
    for identifier in made.splits["val"]:
        assert (tmp_path / f"run/masks/val/{identifier}.png").exists()
    trained = weights.load_classifier(run.finished("classifier").folder)
    assert trained.design.head == "pooled+best" and trained.design.best_patches == 3
    first, last = _arrays(initial_model(run, 3, "pooled+best")), _arrays(trained)
    assert {path for path in first if first[path].tobytes() == last[path].tobytes()} == {
        path for path in first if path[0] not in ("blocks", "norm", "head", "head_patches")
    } | {path for path in first if path[0] == "blocks" and path[1] < 2}
