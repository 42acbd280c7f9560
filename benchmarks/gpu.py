"""What an accelerator does: explanations, forwards, training steps a second, shares of its peak; and PyTorch beside it.

`python -m benchmarks --gpu` runs these; each is a function that measures on whatever device JAX has.
"""

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vitx
from benchmarks.models import random_model
from benchmarks.timing import Side, alternate, median_ratio

# FLOP/s of matrix products by the makers' data sheets, dense; float32 without tensor cores. By JAX's device kind.
PEAKS: dict[str, dict[str, float]] = {
    "Tesla T4": {"float32": 8.1e12},
    "Tesla V100-SXM2-16GB": {"float32": 15.7e12},
    "Tesla V100-SXM2-32GB": {"float32": 15.7e12},
    "NVIDIA A10": {"float32": 31.2e12, "tf32": 62.5e12},
    "NVIDIA A100-SXM4-40GB": {"float32": 19.5e12, "tf32": 156e12},
    "NVIDIA A100-SXM4-80GB": {"float32": 19.5e12, "tf32": 156e12},
    "NVIDIA L4": {"float32": 30.3e12, "tf32": 60e12},
    "NVIDIA L40S": {"float32": 91.6e12, "tf32": 183e12},
    "NVIDIA H100 PCIe": {"float32": 51.2e12, "tf32": 378e12},
    "NVIDIA H100 80GB HBM3": {"float32": 66.9e12, "tf32": 494.7e12},
    "NVIDIA H200": {"float32": 66.9e12, "tf32": 494.7e12},
}
REACHED = 0.5  # of the peak: what the estimates in docs/performance.md assume


def explanations(
    model: str = "vit_base_patch16_224",
    batches: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128, 256),
    runs: int = 5,
    seconds: float = 1.0,
) -> dict[str, float]:
    """Transformer attribution of the predicted class, and the forward at the same precision, full float32.

    Args:
      model: a name of vitx's registry.
      batches: images at once.
      runs: of each side, in turns.
      seconds: that a run lasts at least, by repeating.

    Returns:
      explanation_gigaflops (of memory="fast") and forward_gigaflops of an image; half_peak, the explanations a second
      at half of the device's float32 peak, where that is known; and by batch: explanations_<b> and forwards_<b>, images
      a second, forwards_an_explanation_<b>, float32_peak_<b> and tf32_peak_<b>, the share of either peak, and lean_<b>,
      1 where only memory="lean" fitted.
    """
    network = random_model(model)
    forward = jax.jit(_forward)
    one = jax.ShapeDtypeStruct((1, *network.preprocess.size, 3), jnp.float32)
    # The lean program's scan is counted once, whatever its length.
    flops = _flops(jax.jit(partial(vitx.explain, memory="fast")), network, one)
    found = {
        "explanation_gigaflops": flops / 1e9,
        "forward_gigaflops": _flops(forward, network, one) / 1e9,
    }
    peaks = PEAKS.get(jax.devices()[0].device_kind, {})
    if "float32" in peaks:
        found["half_peak"] = REACHED * peaks["float32"] / flops
    for batch in batches:
        images = _images(network, batch)
        explain, lean = _fitting(network, images)
        sides: dict[str, Side] = {
            "explanation": explain,
            "forward": partial(forward, network, images),
        }
        times = alternate(sides, runs, seconds)
        rate = batch / float(np.median(times["explanation"]))
        found |= {
            f"explanations_{batch}": rate,
            f"forwards_{batch}": batch / float(np.median(times["forward"])),
            f"forwards_an_explanation_{batch}": median_ratio(
                times["explanation"], times["forward"]
            ),
            f"lean_{batch}": float(lean),
        }
        for name, peak in peaks.items():
            found[f"{name}_peak_{batch}"] = rate * flops / peak
    return found


def training(
    model: str = "vit_base_r50_s16_224", size: int = 448, batch: int = 16, runs: int = 5
) -> dict[str, float]:
    """The published classifier's training step on all devices, at the device's default precision.

    Args:
      model: a name of vitx's registry.
      size: side of the images.
      batch: images of a step and device.
      runs: timed steps.

    Returns:
      images_a_second; and where the device's peak is known, half_peak, what it would be at half of the TF32 peak (of
      float32's, where the device has no TF32), a step counted as three forwards.
    """
    from benchmarks.loader import CLASSES, forward_flops, training_step

    images = batch * jax.device_count()
    step = training_step(random_model(model, num_classes=CLASSES, image_size=size), images)
    found = {"images_a_second": images / float(np.median(alternate({"step": step}, runs)["step"]))}
    peaks = PEAKS.get(jax.devices()[0].device_kind)
    if peaks:
        peak = peaks.get("tf32", peaks["float32"]) * jax.device_count()
        found["half_peak"] = REACHED * peak / (3 * forward_flops(model, size))
    return found


def pytorch(
    model: str = "vit_base_patch16_224", batch: int = 64, runs: int = 5, seconds: float = 1.0
) -> dict[str, float]:
    """The same forward in PyTorch, eager and compiled, in turns with vitx, in full float32 and in TF32.

    Args:
      model: timm's name of the model, where timm is installed; else it must be "vit_base_patch16_224".
      batch: images at once.
      runs: of each side.
      seconds: that a run lasts at least, by repeating.

    Returns:
      by precision "float32" and "tf32": vitx_<p>, eager_<p> and compiled_<p>, images a second, and
      time_over_pytorch_<p>, vitx's time over the faster one's.

    Raises:
      ImportError: without PyTorch, or without timm and transformers.
    """
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if jax.default_backend() != "cpu" and device.type == "cpu":
        raise ImportError("PyTorch is installed without CUDA; the comparison needs the same GPU")
    network = random_model(model)
    eager = _pytorch_model(model).to(device).eval()
    images = _images(network, batch)
    pixels = torch.from_numpy(np.array(images).transpose(0, 3, 1, 2)).to(device)
    found: dict[str, float] = {}
    for name, precision, theirs in (
        ("float32", "highest", "highest"),
        ("tf32", "tensorfloat32", "high"),
    ):
        torch.set_float32_matmul_precision(theirs)
        torch.backends.cudnn.allow_tf32 = name == "tf32"
        torch.compiler.reset()
        sides = {
            "vitx": partial(jax.jit(partial(_forward, precision=precision)), network, images),
            "eager": partial(_Inferred, eager, pixels),
            "compiled": partial(_Inferred, torch.compile(eager), pixels),
        }
        times = alternate(sides, runs, seconds)
        medians = {side: float(np.median(of_side)) for side, of_side in times.items()}
        found |= {f"{side}_{name}": batch / median for side, median in medians.items()}
        faster = min(("eager", "compiled"), key=medians.__getitem__)
        found[f"time_over_pytorch_{name}"] = median_ratio(times["vitx"], times[faster])
    return found


def _forward(network: Any, images: jax.Array, precision: str = "highest") -> jax.Array:
    with jax.default_matmul_precision(precision):
        return network(images)


def _images(network: Any, batch: int) -> jax.Array:
    shape = (batch, *network.preprocess.size, 3)
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))


def _flops(function: Any, *arguments: Any) -> float:
    """A multiply-add counted as two, by XLA's analysis of the program as written."""
    return function.lower(*arguments).cost_analysis()["flops"]


def _fitting(network: Any, images: jax.Array) -> tuple[Callable[[], Any], bool]:
    """An explanation that the device's memory holds, and whether it is the lean one."""
    try:
        explain = partial(vitx.explain, network, images)
        jax.block_until_ready(explain())
        return explain, False
    except MemoryError:
        return partial(vitx.explain, network, images, memory="lean"), True


def _pytorch_model(name: str) -> Any:
    if importlib.util.find_spec("timm"):
        import timm

        return timm.create_model(name)
    if not importlib.util.find_spec("transformers") or name != "vit_base_patch16_224":
        raise ImportError(f"{name} in PyTorch wants timm (or transformers: vit_base_patch16_224)")
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(num_labels=1000)  # its defaults are ViT-Base's
    return ViTForImageClassification._from_config(config, attn_implementation="sdpa")


class _Inferred:
    """A forward on its way, for `jax.block_until_ready`."""

    def __init__(self, model: Any, pixels: Any) -> None:
        import torch

        with torch.inference_mode():
            self.output = model(pixels)

    def block_until_ready(self) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
