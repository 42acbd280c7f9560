"""psa's pipeline at a small size on a made VOC tree: what its options do, from the classifier to the masks."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from configs import voc_alike, voc_cam
from tests.made_voc import make_voc, write_sbd
from tests.models.test_vgg import psa_tensors
from tests.resizing import bilinear
from tests.runs import KNOWN, begun
from vitx import weights
from vitx.data.transforms import normalise, resize_image, resize_mask
from vitx.models.affinitynet import vgg16_affinity_net
from vitx.models.registry import create
from vitx.pipeline.affinity import _Labels, initial_net, middles, rates
from vitx.pipeline.artifacts import read_mask, read_seed_maps, seeded
from vitx.pipeline.given_weights import given_net
from vitx.runtime.experiment import Run, check_options, check_stages, run_stages

pytestmark = pytest.mark.slow
SIZES = {
    "model.name": "vgg_test_cam",
    "model.image_size": 96,
    "data.train_split": "train",
    "data.workers": 0,
    "classifier.epochs": 1,
    "classifier.batch_size": 8,
    "classifier.long_side": (60, 110),
    "seeds.scales": (1.0, 0.5),
    "seeds.batch_size": 3,
    "affinity.grid": 12,
    "affinity.epochs": 1,
    "affinity.batch_size": 8,
    "affinity.features": 56,
    "affinity.long_side": (80, 80),
    "classifier.learning_rate": 1e-3,
    "affinity.learning_rate": 1e-3,
    "walk.log2_steps": (3,),
    "segmenter.hidden": 32,
    "segmenter.epochs": 2,
    "segmenter.batch_size": 8,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    made = make_voc(folder / "VOCdevkit/VOC2012", train=8, val=4, size=(58, 81))
    write_sbd(made, folder / "benchmark_RELEASE/dataset")
    return folder


def _config(data: Path, **changes: object) -> ConfigDict:
    config = voc_cam.get_config()
    config.data.root = str(data)
    config.update_from_flattened_dict(SIZES | changes)
    check_options(config, KNOWN)
    return config


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose masks are made."""
    run = begun(_config(data), tmp_path_factory.mktemp("run"))
    stages = ("classifier", "seeds", "labels", "affinity", "masks")
    run_stages(run, [KNOWN[name] for name in stages])
    return run


def _arrays(model: nnx.Module) -> dict[tuple, np.ndarray]:
    return {path: np.asarray(v[...]) for path, v in nnx.to_flat_state(nnx.state(model))}


def test_the_first_two_stages_of_vgg_keep_their_weights(run: Run) -> None:
    first = _arrays(create("vgg_test_cam", 20, 96, run.config.seed))
    classifier = _arrays(weights.load_classifier(run.finished("classifier").folder))
    net = _arrays(weights.load(run.finished("affinity").folder))
    for path, array in first.items():
        frozen = path[0] == "stages" and path[1] < 2
        assert np.array_equal(array, classifier[path]) == frozen, path
        if path[0] != "head":
            assert np.array_equal(classifier[path], net["backbone", *path]) == frozen, path


def test_affinitynet_is_that_of_its_authors(run: Run) -> None:
    classifier = weights.load_classifier(run.finished("classifier").folder)
    wanted = vgg16_affinity_net(classifier, (12, 12), features=56, rngs=nnx.Rngs(0))
    found = initial_net(run)
    assert nnx.graphdef(found) == nnx.graphdef(wanted) and found.backbone.fc6.dilation == 4
    rate = rates(run.config.affinity, found)
    factors = {path[0]: set() for path in _arrays(found)}
    for path in _arrays(found):
        factors[path[0]].add(rate(path))
    assert factors == {
        "backbone": {0.0, 1.0, 2.0},
        "branches": {10.0, 1.0, 2.0},
        "affinity_conv": {10.0},
    }


def test_seed_maps_are_of_the_images_own_size(run: Run) -> None:
    """Two scales and their mirror images, by hand."""
    model = weights.load_classifier(run.finished("classifier").folder)
    kernel = np.asarray(model.head.kernel)
    sizes = set()
    for example in list(seeded(run, "val"))[-2:]:
        maps, classes = read_seed_maps(run.finished("seeds"), "val", example.id)
        whole = tuple(8 * round(length / 8) for length in example.size)
        assert maps.shape == (int(example.labels.sum()), *whole)
        sizes.add(whole)
        total = np.zeros(maps.shape)
        for scale in (1.0, 0.5):
            size = tuple(8 * int(length * scale / 8 + 0.5) for length in whole)
            pixels = normalise(resize_image(example.image, size), model.preprocess)
            for step in (1, -1):
                cells = np.asarray(model.features(jnp.asarray(pixels[None, :, ::step])))[0]
                for place, name in enumerate(classes):
                    root = np.sqrt((cells @ kernel[:, name]).clip(0))
                    total[place] += bilinear(root, whole)[:, ::step]
        expected = total / (total.max((1, 2), keepdims=True) + 1e-5)
        np.testing.assert_allclose(maps, expected, atol=2e-3)  # in half precision
    assert len(sizes) == 2  # one lies, one stands


def test_labels_of_a_crop_are_those_of_the_image(run: Run) -> None:
    source, labels = run.source("train"), run.finished("labels")
    of_image = _Labels(run, source).of_image
    for name in map(source.identifier, range(len(source))):
        low, high = (read_mask(labels, f"{alpha}/train", name) for alpha in ("low", "high"))
        for found, small, large in zip(*map(np.ravel, (of_image(name), low, high)), strict=True):
            assert found == (0 if large == 0 else small or 255)


def test_the_middle_of_a_cell_counts() -> None:
    mask = np.arange(96 * 96).reshape(1, 96, 96).astype(np.int32)
    found = middles(jnp.asarray(mask), (12, 12))
    np.testing.assert_array_equal(found[0], mask[0, 4::8, 4::8])
    whole = (mask // 96 % 2).astype(np.uint8)[0]
    np.testing.assert_array_equal(middles(jnp.asarray(whole)[None], (96, 96))[0], whole)
    np.testing.assert_array_equal(
        middles(jnp.asarray(whole)[None], (12, 12))[0], resize_mask(whole, (12, 12))
    )


def test_the_hybrid_gets_the_same_treatment() -> None:
    ours, alike = voc_cam.get_config(), voc_alike.get_config()
    ours.seeds.method = alike.seeds.method
    ours.walk.levels = alike.walk.levels
    for section in ("seeds", "labels", "walk", "masks"):
        assert ours[section].to_dict() == alike[section].to_dict()
    assert alike.model.name == "vit_base_r50_s16_224"


REFUSED: dict[str, tuple[str, dict[str, object]]] = {
    "dropout of a transformer": (
        r"config\.classifier\.dropout is for CNNs",
        {"classifier.trainable": "all", "affinity.trainable": "all"},
    ),
    "a level of a transformer": (
        r"config\.classifier\.trainable: the model has no level 'conv3'",
        {"classifier.dropout": False},
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_options_of_cnns_are_refused_for_a_transformer(
    what: str, data: Path, tmp_path: Path
) -> None:
    message, changes = REFUSED[what]
    hybrid = {
        "model.name": "vit_test_conv_s4_48",
        "seeds.method": "gradcam",
        "affinity.levels": (),
        "segmenter.levels": ("block.1",),
    }
    run = begun(_config(data, **hybrid, **changes), tmp_path)
    with pytest.raises(ValueError, match=message):
        run_stages(run, [KNOWN["classifier"]])


def test_files_with_psas_names_take_the_place_of_training(data: Path, tmp_path: Path) -> None:
    tensors = psa_tensors()
    tensors["fc8.weight"] = np.random.default_rng(1).standard_normal(
        (20, *tensors["fc8.weight"].shape[1:])
    )
    files = {"classifier": tensors, "affinity": psa_tensors(2, affinity=True)}
    given = {}
    for name, arrays in files.items():
        given[f"{name}.checkpoint"] = path = str(tmp_path / f"{name}.safetensors")
        save_file({key: array.astype(np.float32) for key, array in arrays.items()}, path)
    run = begun(_config(data, **given), tmp_path / "run")
    check_stages(run, [KNOWN[name] for name in ("classifier", "seeds", "labels", "affinity")])
    run_stages(run, [KNOWN["classifier"]])
    model = weights.load_classifier(run.finished("classifier").folder)
    expected = tensors["fc8.weight"][:, :, 0, 0].T.astype(np.float32)
    np.testing.assert_array_equal(model.head.kernel[...], expected)
    net = given_net(run)
    assert net.levels == ("conv4", "conv5", "fc7") and net.backbone.fc6.dilation == 4
    assert net(jnp.zeros((1, 96, 96, 3))).shape == (1, 12, 12, 448)


def test_widths_that_do_not_divide_are_refused(data: Path, tmp_path: Path) -> None:
    run = begun(_config(data, **{"affinity.features": 57}), tmp_path)
    with pytest.raises(ValueError, match=r"affinity\.features must be a multiple of 56"):
        run_stages(run, [KNOWN["classifier"]])
