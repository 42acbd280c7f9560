"""Files of AffinityNet on several levels: written, read, and refused."""

from dataclasses import replace

import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import vitx
from tests.small_models import filled, images_for, small_hybrid, small_vit
from tests.weights.test_weights import assert_one_line, assert_same_weights, resnet_hybrid
from vitx.models.affinitynet import MultiLevelAffinityNet
from vitx.weights import load_classifier

NETS = {
    "light stem alone": (small_hybrid, ("stem.1",)),
    "light hybrid": (small_hybrid, ("block.1", "stem.2", "stem.1")),
    "first stage of a ResNet": (resnet_hybrid, ("stem.1",)),
    "ResNet alone": (resnet_hybrid, ("stem.2", "stem.3")),
    "hybrid": (resnet_hybrid, ("stem.1", "block.1")),
    "plain ViT": (lambda: small_vit(heads=3, norm_eps=1e-5), ("block.2", "block.1")),
}


def multi_level(name):
    make, levels = NETS[name]
    model = make()
    statistics = {"mean": (0.1, 0.2, 0.30000000000000004), "std": (0.4, 1.5, 0.6)}
    model.preprocess = replace(model.preprocess, **statistics)
    sizes = {"hidden": 16, "features": 8, "groups": 4}
    return filled(lambda: MultiLevelAffinityNet(model, levels, (4, 6), **sizes, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("name", NETS)
def test_load_gives_back_what_save_wrote(name, tmp_path):
    net = multi_level(name)
    vitx.save(net, tmp_path)
    loaded = vitx.load(tmp_path)
    assert_same_weights(loaded, net)
    # The same levels, heads, epsilons, preprocessing and grid: nothing triggers another trace.
    assert nnx.graphdef(loaded) == nnx.graphdef(net)


def test_tensors_have_the_backbones_names(tmp_path):
    net = multi_level("light hybrid")
    vitx.save(net, tmp_path / "net.safetensors")
    tensors = load_file(tmp_path / "net.safetensors")
    own = {name for name in tensors if not name.startswith("backbone.")}
    parts = {"feat_conv.weight", "gn.weight", "gn.bias"}
    assert own == {f"branches.{n}.{part}" for n in range(3) for part in parts} | {
        "affinity_conv.weight"
    }
    vitx.save(small_hybrid(), tmp_path / "model.safetensors")
    whole = load_file(tmp_path / "model.safetensors")
    beyond = ("norm.", "head.", "blocks.1.")
    kept = {f"backbone.{name}" for name in whole if not name.startswith(beyond)}
    assert set(tensors) - own == kept
    for name in kept:
        assert tensors[name].shape == whole[name.removeprefix("backbone.")].shape
    conv = tensors["branches.2.feat_conv.weight"]  # of stem.1
    assert conv.shape == (16, 16, 1, 1)
    np.testing.assert_array_equal(conv[:, :, 0, 0].T, net.branches[2].feat_conv[...])


def test_another_image_size(tmp_path):
    """The grid is scaled, and the position embedding resampled as a classifier's."""
    net, classifier = multi_level("plain ViT"), small_vit(heads=3, norm_eps=1e-5)
    for name in ("cls_token", "pos_embed"):
        getattr(classifier, name).set_value(getattr(net.backbone, name)[...])
    vitx.save(net, tmp_path / "net.safetensors")
    vitx.save(classifier, tmp_path / "model.safetensors")
    other = vitx.load(tmp_path / "net.safetensors", image_size=(16, 12))
    expected = vitx.load(tmp_path / "model.safetensors", image_size=(16, 12))
    assert (other.grid, other.preprocess.size) == ((8, 6), (16, 12))
    np.testing.assert_array_equal(other.backbone.pos_embed[...], expected.pos_embed[...])
    assert other(images_for(expected, 1)).shape == (1, 8, 6, 8)
    with pytest.raises(ValueError, match=r"image_size \(10, 12\) is not a multiple of the patch"):
        vitx.load(tmp_path / "net.safetensors", image_size=(10, 12))


def test_it_is_no_classifier(tmp_path):
    vitx.save(multi_level("light hybrid"), tmp_path)
    for options in ({}, {"num_classes": 3}, {"num_heads": 2}):
        with pytest.raises(ValueError) as error:
            load_classifier(tmp_path, **options)
        assert_one_line(error, str(tmp_path), "holds an AffinityNet", "give a classifier's weights")


@pytest.mark.parametrize(
    "levels, message",
    [
        (None, "does not have levels"),
        ('["stem.1", "stem.1", "block.1"]', "levels has a name twice"),
        ('"stem.1"', "levels must be a list of names, not 'stem.1'"),
        ("[1, 2, 3]", "levels must be a list of names"),
        ('["stem.1", "stem.2", "block.2"]', "no level 'block.2'; it has stem.1, stem.2, block.1"),
        ("[]", "at least one level"),
        ('["stem.1", "block.1"]', r"do not fit.*\+ branches.2"),
        ('["stem.1", "stem.2"]', r"do not fit.*\+ backbone\.blocks\.0"),
        ('["block.1", "stem.1", "stem.2"]', r"do not fit.*- branches.1.feat_conv.weight"),
    ],
)
def test_levels_that_do_not_fit_are_refused(levels, message, tmp_path):
    path = tmp_path / "net.safetensors"
    vitx.save(multi_level("light hybrid"), path)
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    assert metadata.pop("levels") == '["block.1", "stem.2", "stem.1"]'
    if levels is not None:
        metadata["levels"] = levels
    save_file(load_file(path), path, metadata)
    with pytest.raises(ValueError, match=message) as error:
        vitx.load(path)
    assert_one_line(error, str(path))


def test_missing_tensors_are_named(tmp_path):
    path = tmp_path / "net.safetensors"
    vitx.save(multi_level("light stem alone"), path)
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    without = {name: array for name, array in tensors.items() if not name.startswith("backbone.")}
    save_file(without, path, metadata)
    with pytest.raises(ValueError, match="its backbone is missing"):
        vitx.load(path)
    del tensors["branches.0.gn.bias"]
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=r"- branches.0.gn.bias \(16,\)"):
        vitx.load(path)
