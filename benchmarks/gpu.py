"""Explanations and forwards per second on an accelerator, the share of its peak, and PyTorch's forward beside vitx's.

`python -m benchmarks --gpu` runs these; each function measures on whatever device JAX has.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vitx
from benchmarks.models import flops, forward, random_images, random_model
from benchmarks.timing import Side, alternate, median_ratio
from vitx.models.vit import VisionTransformer

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

    A run lasts at least `seconds`.

    Returns:
      explanation_gigaflops (of memory="fast") and forward_gigaflops of an image; half_peak, the explanations per second
      at half of the device's float32 peak, where that is known; and by batch: explanations_<b> and forwards_<b>, images
      per second, forwards_an_explanation_<b>, float32_peak_<b> and tf32_peak_<b>, the share of either peak, and
      lean_<b>, 1 where only memory="lean" fits.
    """
    network = random_model(model)
    one = jax.ShapeDtypeStruct((1, *network.preprocess.size, 3), jnp.float32)
    # XLA counts the scan of the lean program once, whatever its length.
    explanation = flops(jax.jit(partial(vitx.explain, memory="fast")), network, one)
    found = {
        "explanation_gigaflops": explanation / 1e9,
        "forward_gigaflops": flops(forward, network, one) / 1e9,
    }
    peaks = PEAKS.get(jax.devices()[0].device_kind, {})
    if peaks:
        found["half_peak"] = REACHED * peaks["float32"] / explanation
    for batch in batches:
        images = random_images(network, batch)
        memory = _fitting(network, images)
        sides: dict[str, Side] = {
            "explanations": partial(vitx.explain, network, images, memory=memory),
            "forwards": partial(forward, network, images),
        }
        times = alternate(sides, runs, seconds)
        rates = {name: batch / np.median(times[name]) for name in sides}
        found |= {f"{name}_{batch}": rate for name, rate in rates.items()}
        found[f"forwards_an_explanation_{batch}"] = median_ratio(*times.values())
        found[f"lean_{batch}"] = float(memory == "lean")
        for name, peak in peaks.items():
            found[f"{name}_peak_{batch}"] = rates["explanations"] * explanation / peak
    return found


def _fitting(network: VisionTransformer, images: jax.Array) -> str:
    """The `memory` of an explanation that the device can hold."""
    try:
        jax.block_until_ready(vitx.explain(network, images))
        return "auto"
    except MemoryError:
        return "lean"


def pytorch(batch: int = 64, runs: int = 5, seconds: float = 1.0) -> dict[str, float]:
    """The forward of ViT-Base and PyTorch's, eager and compiled, in turns, in full float32 and in TF32.

    A run lasts at least `seconds`.

    Returns:
      by precision "float32" and "tf32": vitx_<p>, eager_<p> and compiled_<p>, images per second, and
      time_over_pytorch_<p>, vitx's time over that of the faster one of PyTorch's.

    Raises:
      ImportError: without PyTorch for this device, or without transformers.
    """
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if jax.default_backend() != "cpu" and device.type == "cpu":
        raise ImportError("PyTorch is installed without CUDA; the comparison needs the same GPU")
    network = random_model("vit_base_patch16_224")
    config = ViTConfig(num_labels=1000)  # its defaults are ViT-Base's
    eager = ViTForImageClassification._from_config(config, attn_implementation="sdpa")
    eager = eager.to(device).eval()
    images = random_images(network, batch)
    pixels = torch.from_numpy(np.array(images).transpose(0, 3, 1, 2)).to(device)
    found: dict[str, float] = {}
    for name, precision, torch_precision in (
        ("float32", "highest", "highest"),
        ("tf32", "tensorfloat32", "high"),
    ):
        torch.set_float32_matmul_precision(torch_precision)
        torch.backends.cudnn.allow_tf32 = name == "tf32"
        torch.compiler.reset()
        sides: dict[str, Side] = {
            "vitx": partial(forward, network, images, precision=precision),
            "eager": partial(_Inferred, eager, pixels),
            "compiled": partial(_Inferred, torch.compile(eager), pixels),
        }
        times = alternate(sides, runs, seconds)
        found |= {f"{side}_{name}": batch / np.median(times[side]) for side in sides}
        faster = min(("eager", "compiled"), key=lambda side: np.median(times[side]))
        found[f"time_over_pytorch_{name}"] = median_ratio(times["vitx"], times[faster])
    return found


class _Inferred:
    """A forward in PyTorch that `jax.block_until_ready` can wait for."""

    def __init__(self, model: Any, pixels: Any) -> None:
        import torch

        with torch.inference_mode():
            self.output = model(pixels)

    def block_until_ready(self) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
