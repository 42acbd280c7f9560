"""Images per second of the published classifier's training step, for `python -m benchmarks --gpu` and the loader's."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import vitx
from benchmarks.gpu import PEAKS, REACHED
from benchmarks.models import flops, random_model
from benchmarks.timing import Side, alternate
from configs import voc
from vitx import parallel
from vitx.pipeline.classifier import multilabel_soft_margin
from vitx.training.loop import TrainState
from vitx.training.optimizer import gradient_step, make_optimizer

CLASSES = 20


def figures(
    model: str = "vit_base_r50_s16_224", size: int = 448, batch: int = 16, runs: int = 5
) -> dict[str, float]:
    """The step on all devices, at the device's default precision, `batch` images on each.

    Returns:
      images_a_second; and where the device's peak is known, half_peak, the same at half of the TF32 peak (of float32's,
      where the device has no TF32).
    """
    devices = jax.device_count()
    found = {"images_a_second": images_a_second(model, size, devices * batch, runs)}
    if peaks := PEAKS.get(jax.devices()[0].device_kind):
        peak = peaks.get("tf32", peaks["float32"]) * devices
        found["half_peak"] = estimated_rate(model, size, peak)
    return found


def images_a_second(model: str, size: int, batch: int, runs: int) -> float:
    """Measured: images of a batch that stays on the devices, over the median time of a step."""
    network = random_model(model, num_classes=CLASSES, image_size=size)
    return batch / np.median(alternate({"step": _step(network, batch)}, runs)["step"])


def estimated_rate(model: str, size: int, peak: float) -> float:
    """Images per second of a device that reaches half of its peak FLOP/s, a step counted as three forwards."""
    return REACHED * peak / (3 * forward_flops(model, size))


def forward_flops(model: str, size: int) -> float:
    """FLOPs of one image's forward."""
    network = nnx.eval_shape(partial(vitx.create, model, CLASSES, size))
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return flops(jax.jit(lambda network, images: network(images)), network, images)


def _step(model: Any, batch_size: int) -> Side:
    graph, params = nnx.split(model)
    optimizer = make_optimizer(voc.get_config().classifier, steps_per_epoch=1000)

    def loss(params: Any, batch: Any, axis: str | None) -> jax.Array:
        logits = nnx.merge(graph, params)(batch["image"])
        return multilabel_soft_margin(logits, batch["labels"]).mean()

    step = gradient_step(loss, optimizer)
    state = parallel.replicate(TrainState.create(params, optimizer))
    generator = np.random.default_rng(0)
    shape = (batch_size, *model.preprocess.size, 3)
    labels = generator.integers(0, 2, (batch_size, CLASSES)).astype(np.float32)
    batch = parallel.shard_batch(
        {"image": generator.standard_normal(shape, np.float32), "labels": labels}
    )

    def run() -> Any:
        nonlocal state
        state, scalars = step(state, batch)
        return state, scalars

    return run
