"""Temporaries of one explanation with memory="fast" and "lean", and what the second costs in time.

Target for the hybrid at 448: at most 0.5 GB an image, at most 1.2 times the time.

python -m benchmarks.memory [--model vit_base_r50_s16_224] [--size 448] [--batch 4] [--runs 3]
"""

import argparse
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import vitx
from benchmarks.models import random_model
from benchmarks.targets import limit_of
from benchmarks.timing import alternate, median_ratio


def figures(
    model: str = "vit_base_r50_s16_224", size: int = 448, batch: int = 4, runs: int = 3
) -> dict[str, float]:
    """Both ways of an explanation.

    Args:
      model: a name of vitx's registry.
      size: side of the images.
      batch: images at once, for the memory.
      runs: of each side, one image each, for the time.

    Returns:
      fast_gigabytes and lean_gigabytes, temporaries an image by XLA's memory_analysis(); fast_seconds an image; and
      lean_over_fast, the median ratio of their times.
    """
    shape = (size, size)

    def create() -> Any:
        return vitx.create(model, num_classes=20, image_size=shape)

    found = {}
    for memory in ("fast", "lean"):
        run = jax.jit(partial(vitx.explain, memory=memory))
        images = jax.ShapeDtypeStruct((batch, *shape, 3), jnp.float32)
        compiled = run.lower(nnx.eval_shape(create), images).compile()
        found[f"{memory}_gigabytes"] = compiled.memory_analysis().temp_size_in_bytes / batch / 1e9
    network = random_model(model, num_classes=20, image_size=shape)
    image = np.random.default_rng(0).standard_normal((1, *shape, 3)).astype(np.float32)
    sides = {
        memory: partial(vitx.explain, network, image, memory=memory) for memory in ("fast", "lean")
    }
    seconds = alternate(sides, runs)
    return found | {
        "fast_seconds": float(np.median(seconds["fast"])),
        "lean_over_fast": median_ratio(seconds["lean"], seconds["fast"]),
    }


def main() -> None:
    """Prints bytes and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_base_r50_s16_224", help="of vitx's registry")
    parser.add_argument("--size", type=int, default=448, help="side of the images")
    parser.add_argument("--batch", type=int, default=4, help="images at once, for the memory")
    parser.add_argument("--runs", type=int, default=3, help="of each side, for the time")
    options = parser.parse_args()
    found = figures(**vars(options))
    print(f"{options.model} at {options.size}, {jax.devices()[0].device_kind}")
    for memory in ("fast", "lean"):
        used = found[f"{memory}_gigabytes"]
        print(f"{memory}: {used:.2f} GB an image at batch {options.batch}")
    print(
        f"fast {found['fast_seconds']:.1f} s an image, lean {found['lean_over_fast']:.2f} times that"
    )
    print(
        f"targets: lean at most {limit_of('memory')} GB, and {limit_of('lean-time')} times the time"
    )


if __name__ == "__main__":
    main()
