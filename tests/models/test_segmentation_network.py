"""The segmentation network against NumPy, the views of `vitx.segment`, and its files."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from scipy.special import erf, log_softmax, logsumexp

import vitx
from tests.models.test_models import group_norm_by_hand
from tests.models.test_vgg import small_resnet, small_vgg
from tests.resizing import bilinear
from tests.small_models import filled, images_for, small_family, small_hybrid, small_vit
from vitx.models.convnet import ConvNet
from vitx.models.levels import features_at
from vitx.models.segmenter import Segmenter, at_input_size
from vitx.weights import load_classifier

pytestmark = pytest.mark.usefixtures("float64")


NETS = {
    "hybrid": (small_hybrid, ("stem.1", "block.2", "stem.2")),
    "stem alone": (small_hybrid, ("stem.2",)),
    "vit": (lambda: small_vit(heads=3, norm_eps=1e-5), ("block.1", "block.2")),
    "dinov2": (lambda: small_family("dinov2 registers"), ("block.1", "block.2")),
    "dinov3": (lambda: small_family("dinov3"), ("block.2",)),
    "vgg": (lambda: small_vgg().at_size((16, 24)), ("conv3", "fc7")),
    "resnet": (lambda: small_resnet().at_size((16, 32)), ("layer3", "layer1")),
}


def segmenter(name: str) -> Segmenter:
    make, levels = NETS[name]
    model = make()
    statistics = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 1.5, 0.6)}
    model.preprocess = replace(model.preprocess, **statistics)
    return filled(
        lambda: Segmenter(model, levels, 4, hidden=12, groups=4, rngs=nnx.Rngs(0)), seed=3
    )


def random_images(model: Segmenter) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((2, *model.preprocess.size, 3))


@pytest.fixture(scope="module", params=NETS)
def net(request, float64):
    model = segmenter(request.param)
    return request.param, model, random_images(model)


def resized(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(B, h, w, C) by hand."""
    channels = [[bilinear(channel, size) for channel in np.moveaxis(x, -1, 0)] for x in maps]
    return np.moveaxis(np.asarray(channels), 1, -1)


def test_logits_by_hand(net):
    _, model, images = net
    maps = [np.asarray(x) for x in features_at(model.backbone, jnp.asarray(images), model.levels)]
    grid = max(x.shape[1:3] for x in maps)
    joined = 0.0
    for branch, x in zip(model.branches, maps, strict=True):
        projected = x @ np.asarray(branch.linear.kernel)
        joined = joined + resized(group_norm_by_hand(branch.norm, projected), grid)
    hidden = joined * (1 + erf(joined / np.sqrt(2))) / 2
    logits = hidden @ np.asarray(model.head.kernel) + np.asarray(model.head.bias)
    found = jax.jit(lambda model, x: model(x))(model, images)
    assert found.shape == (2, *images.shape[1:3], 4) and model.num_classes == 4
    np.testing.assert_allclose(found, resized(logits, images.shape[1:3]), atol=1e-9)


def test_one_view_is_the_model(net):
    _, model, images = net
    found = vitx.segment(model, images)
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, log_softmax(np.asarray(model(images)), -1), atol=1e-12)


def test_views_are_averaged_as_probabilities(net):
    _, model, images = net
    found = vitx.segment(model, images, scales=(1.0, 2.0), flip=True)
    height, width = images.shape[1:3]
    larger = jax.image.resize(images, (2, 2 * height, 2 * width, 3), "bilinear")
    sized = at_input_size(model, (2 * height, 2 * width))
    views = []
    for scaled, its_model in ((images, model), (larger, sized)):
        for step in (1, -1):
            logits = np.asarray(its_model(jnp.asarray(scaled[:, :, ::step])))
            views.append(log_softmax(resized(logits, (height, width)), -1)[:, :, ::step])
    np.testing.assert_allclose(found, logsumexp(views, 0) - np.log(4), atol=1e-9)
    np.testing.assert_allclose(np.exp(found).sum(-1), 1, atol=1e-12)


@settings(max_examples=5)
@given(seed=st.integers(0, 99))
def test_mirrored_images_have_mirrored_masks(seed):
    """With `flip`, for any image."""
    model = segmenter("hybrid")
    images = images_for(model.backbone, 1, seed)
    mirrored = vitx.segment(model, images[:, :, ::-1], flip=True)
    found = vitx.segment(model, images, flip=True)[:, :, ::-1]
    np.testing.assert_allclose(mirrored, found, atol=1e-10)


def test_images_of_another_size(net):
    _, model, images = net
    larger = np.concatenate([images, images], 2)
    found = vitx.segment(model, larger)
    assert found.shape == (*larger.shape[:3], 4)
    expected = at_input_size(model, larger.shape[1:3])(jnp.asarray(larger))
    np.testing.assert_allclose(found, log_softmax(np.asarray(expected), -1), atol=1e-12)
    if isinstance(model.backbone, ConvNet):  # has no cells that the size must fit
        expected = log_softmax(np.asarray(model(images[:, 1:])), -1)
        np.testing.assert_allclose(vitx.segment(model, images[:, 1:]), expected, atol=1e-12)
        return
    with pytest.raises(ValueError, match=r"size \(\d+, \d+\) is not a multiple of the"):
        vitx.segment(model, images[:, 1:])


def test_wrong_arguments_are_named():
    model = segmenter("hybrid")
    images = images_for(model.backbone, 1)
    with pytest.raises(ValueError, match="a VisionTransformer does not segment"):
        vitx.segment(small_vit(), images)
    with pytest.raises(ValueError, match=r"images must be \(B, H, W, 3\), not \(16, 24, 3\)"):
        vitx.segment(model, images[0])
    for scales in ((), (1.0, 0.0), (float("inf"),)):
        with pytest.raises(ValueError, match="scales must be at least one number above 0"):
            vitx.segment(model, images, scales=scales)
    with pytest.raises(ValueError, match=r"no level 'block\.3'; it has stem\.1"):
        Segmenter(small_hybrid(), ("block.3",), 4, hidden=32, rngs=nnx.Rngs(0))


def test_load_gives_back_what_save_wrote(net, tmp_path):
    _, model, images = net
    vitx.save(model, tmp_path)
    loaded = vitx.load(tmp_path)
    assert nnx.graphdef(loaded) == nnx.graphdef(model)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(loaded), nnx.state(model))
    sized = at_input_size(model, (2 * images.shape[1], images.shape[2]))
    again = vitx.load(tmp_path, image_size=sized.preprocess.size)
    np.testing.assert_allclose(again(images.repeat(2, 1)), sized(images.repeat(2, 1)), atol=1e-5)


def test_it_is_no_classifier(tmp_path):
    vitx.save(segmenter("hybrid"), tmp_path)
    with pytest.raises(ValueError, match="holds a segmentation network, which has no classes to"):
        load_classifier(tmp_path)
    with pytest.raises(ValueError, match="holds a segmentation network, which has no num_classes"):
        vitx.load(tmp_path, num_classes=3)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"levels": None}, "does not have levels, which this network needs"),
        ({"image_size": None}, "does not have image_size, which this network needs"),
        ({"groups": "5"}, "head.weight has 12 channels, not a multiple of 5 groups"),
        ({"levels": '["stem.1"]'}, r"do not fit.*\+ b"),
    ],
)
def test_damaged_files_are_refused(changes, message, tmp_path):
    path = tmp_path / "net.safetensors"
    vitx.save(segmenter("hybrid"), path)
    with safe_open(path, "np") as file:
        metadata = file.metadata() | changes
    save_file(load_file(path), path, {k: v for k, v in metadata.items() if v is not None})
    with pytest.raises(ValueError, match=message):
        vitx.load(path)
