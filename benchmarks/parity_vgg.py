"""psa's VGG-16: its classifier, class activation maps at one scale and at several, and its AffinityNet."""

import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from PIL import Image

import vitx
from benchmarks.golden import GOLDEN, Row, compare, load, numbers
from vitx.pipeline.classifier import multilabel_soft_margin
from vitx.pseudomasks.affinity import affinities, affinity_loss, pair_labels


def vgg16() -> Iterator[Row]:
    """VGG-16 of psa, images of four sizes: 20 classes' maps in one call, four scales and mirrors, AffinityNet."""
    golden, facts = numbers("vgg16"), json.loads((GOLDEN / "vgg16.json").read_text())
    model = load("vgg16", "classifier")
    for number in (0, 1):
        images = _normalised(model, golden[f"classifier_pixels{number}"])
        classes = np.broadcast_to(np.arange(20), (len(images), 20))
        logits, maps = vitx.explain(model, images, classes, method="cam")
        note = "{} x {}".format(*images.shape[1:3])
        yield compare(f"logits, {note}", logits, golden[f"classifier_logits{number}"])
        yield compare(f"cam, {note}", maps, golden[f"classifier_cam{number}"])
        if number == 0:
            loss = multilabel_soft_margin(logits, jnp.asarray(golden["classifier_labels"])).mean()
            yield compare("loss of the classifier", loss, golden["classifier_multilabel_loss"])
    found = _several_scales(
        model,
        golden["classifier_multi_pixels"],
        golden["classifier_multi_classes"],
        facts["scales"],
    )
    yield compare("cam, four scales and their mirrors", found, golden["classifier_multi_cam"])
    yield from _affinity(golden, facts)


def _affinity(golden: dict[str, np.ndarray], facts: dict[str, Any]) -> Iterator[Row]:
    net, inner = load("vgg16", "affinity"), facts["radius"] - 1
    features = net(_normalised(net, golden["affinity_pixels"]))[0]
    yield compare("pixel features", features, golden["affinity_features"])
    affinity = affinities(features, facts["radius"])
    window = np.asarray(affinity)[:, :-inner, inner:-inner]
    yield compare("affinities", window.reshape(len(window), -1), golden["affinity_affinity"])
    labels = pair_labels(jnp.asarray(golden["affinity_label"]), facts["radius"])
    losses = affinity_loss(affinity, *labels, eps=facts["log_eps"])
    yield compare("loss of AffinityNet", losses["loss"], golden["affinity_loss"])


def _normalised(model: Any, pixels: NDArray[np.uint8]) -> jax.Array:
    mean, std = np.asarray(model.preprocess.mean), np.asarray(model.preprocess.std)
    return jnp.asarray((pixels / 255 - mean) / std)


def _several_scales(
    model: Any, pixels: NDArray[np.uint8], classes: np.ndarray, scales: list[float]
) -> np.ndarray:
    """The maps of psa (K, H, W) of an image (H, W, 3): the sum of roots over scales and mirrors, over its maximum."""
    height, width, _ = pixels.shape
    total = np.zeros((len(classes), height, width))
    for scale in scales:
        side = round(width * scale), round(height * scale)
        resized = Image.fromarray(pixels).resize(side, Image.Resampling.BICUBIC)
        image = _normalised(model, np.asarray(resized)[None])
        for given, back in ((image, 1), (image[:, :, ::-1], -1)):
            _, maps = vitx.explain(model, given, classes[None], method="cam")
            large = jax.image.resize(jnp.sqrt(maps[0]), total.shape, "bilinear", antialias=False)
            total += np.asarray(large)[..., ::back]
    return total / (total.max((1, 2), keepdims=True) + 1e-5)
