"""The model that stage `classifier` starts from: its own epsilon of the final norm, or that of the option."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

import vitx
from configs import shapes, testing, voc, voc_small
from tests.runs import KNOWN, begun
from tests.small_models import images_for, small_vit
from vitx.models.design import Preprocess
from vitx.models.vit import VisionTransformer
from vitx.pipeline import compared_model
from vitx.pipeline.classifier import initial_model
from vitx.runtime.experiment import run_stages

KEY = "model.final_norm_eps"
OWN = 3e-4  # the checkpoint's


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pretrained")
    vitx.save(small_vit(size=(8, 8), norm_eps=1e-7, final_norm_eps=OWN), folder)
    return str(folder)


def _initial(folder: Path, **changes: object) -> VisionTransformer:
    config = testing.get_config()
    config.update_from_flattened_dict(changes)
    return initial_model(begun(config, folder), 3)


def _epsilons(model: VisionTransformer) -> tuple[set[float], float]:
    blocks = {norm.epsilon for block in model.blocks for norm in (block.norm1, block.norm2)}
    return blocks, model.norm.epsilon


def _require_equal(a: VisionTransformer, b: VisionTransformer) -> None:
    """The same structure, constants included, and the same weights to the bit."""
    (graph, state), (other_graph, other_state) = nnx.split(a), nnx.split(b)
    assert graph == other_graph
    jax.tree.map(np.testing.assert_array_equal, state, other_state)


@pytest.mark.parametrize("config", [shapes, voc, voc_small], ids=lambda module: module.__name__)
def test_the_default_is_the_checkpoints_own(config: object) -> None:
    assert config.get_config().model.final_norm_eps == 0


@pytest.mark.slow
def test_without_the_option_nothing_changes(tmp_path: Path, checkpoint: str) -> None:
    _require_equal(_initial(tmp_path), vitx.create("vit_test_conv_s4_48", 3, 48))
    given_file = {"model.checkpoint": checkpoint, "model.image_size": 8}
    _require_equal(_initial(tmp_path, **given_file), vitx.load(checkpoint))

    older: ConfigDict = testing.get_config()
    del older.model.final_norm_eps
    _require_equal(initial_model(begun(older, tmp_path), 3), _initial(tmp_path))


@settings(deadline=None, max_examples=10)
@given(epsilon=st.floats(1e-12, 10.0))
def test_the_option_sets_the_final_norm_alone(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: str, epsilon: float
) -> None:
    folder = tmp_path_factory.mktemp("run")
    given_file = {"model.checkpoint": checkpoint, "model.image_size": 8}
    model = _initial(folder, **given_file, **{KEY: epsilon})
    assert _epsilons(model) == ({1e-7}, epsilon)
    # The head reads (x - mean) / sqrt(variance + epsilon).
    tokens, _ = model.encode(model.embed(images_for(model, 2)))
    x = np.asarray(tokens[:, 0], np.float64)
    centred = x - x.mean(-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    normal = normal * np.asarray(model.norm.scale) + np.asarray(model.norm.bias)
    expected = normal @ np.asarray(model.head.kernel) + np.asarray(model.head.bias)
    np.testing.assert_allclose(model.classify(tokens), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_random_weights_have_the_option_too(tmp_path: Path) -> None:
    model = _initial(tmp_path, **{KEY: 1e-5})
    assert _epsilons(model) == ({1e-6}, 1e-5)
    _require_equal(model, vitx.create("vit_test_conv_s4_48", 3, 48, final_norm_eps=1e-5))
    usual = vitx.create("vit_test_conv_s4_48", 3, 48)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), nnx.state(usual))


@pytest.mark.slow
def test_later_stages_read_the_option_from_the_trained_model(tmp_path: Path) -> None:
    config = testing.get_config()
    config.data.root = str(tmp_path / "data")
    config.classifier.epochs, config.classifier.warmup_epochs = 1, 0
    config.model.final_norm_eps = 1e-5
    config.stages = "classifier"
    run = begun(config, tmp_path / "run")
    run_stages(run, [KNOWN["classifier"]])

    assert run.finished("classifier").options["model"]["final_norm_eps"] == 1e-5
    trained = vitx.load(run.finished("classifier").folder)  # as seeds and affinity do
    assert _epsilons(trained) == ({1e-6}, 1e-5)
    _require_equal(compared_model.classifier(run), trained)

    other = testing.get_config()
    other.update_from_flattened_dict({"data.root": config.data.root, "classifier.epochs": 1})
    other.classifier.warmup_epochs = 0
    with pytest.raises(ValueError, match=r"model\.final_norm_eps 1e-05 -> 0\.0"):
        begun(other, tmp_path / "run").stage("classifier")


def test_what_was_pretrained_on_a_part_of_pictures_now_sees_them_squashed(tmp_path) -> None:
    """As training and evaluation show them; `vitx explain` of the trained model must, too."""
    own = dataclasses.replace(
        small_vit(size=(8, 8)).preprocess, interpolation="bicubic", crop_mode="center", crop_pct=0.9
    )
    model = small_vit(size=(8, 8))
    model.preprocess = own
    vitx.save(model, tmp_path / "pretrained")
    assert vitx.load(tmp_path / "pretrained").preprocess == own
    changes = {"model.checkpoint": str(tmp_path / "pretrained"), "model.image_size": 8}
    found = _initial(tmp_path / "run", **changes).preprocess
    assert found == Preprocess(own.mean, own.std, own.size)
