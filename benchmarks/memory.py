"""Temporaries of one explanation with memory="fast" and "lean", and what "lean" costs in time.

python -m benchmarks.memory [--model vit_base_r50_s16_224] [--size 448] [--batch 4] [--runs 3]
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import vitx
from benchmarks.command import run
from benchmarks.models import random_images, with_random_weights
from benchmarks.timing import alternate, median_ratio

MEMORY = ("fast", "lean")


def figures(
    model: str = "vit_base_r50_s16_224", size: int = 448, batch: int = 4, runs: int = 3
) -> dict[str, float]:
    """Memory of a batch, and the time of one image.

    Returns:
      fast_gigabytes and lean_gigabytes, temporaries per image by XLA's memory_analysis(); fast_seconds per image; and
      lean_over_fast, the median ratio of their times.
    """
    create = partial(vitx.create, model, num_classes=20, image_size=size)
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
    found = {}
    for memory in MEMORY:
        run = jax.jit(partial(vitx.explain, memory=memory))
        compiled = run.lower(nnx.eval_shape(create), images).compile()
        found[f"{memory}_gigabytes"] = compiled.memory_analysis().temp_size_in_bytes / batch / 1e9
    network = with_random_weights(create)
    image = random_images(network, 1)
    sides = {memory: partial(vitx.explain, network, image, memory=memory) for memory in MEMORY}
    seconds = alternate(sides, runs)
    found["fast_seconds"] = np.median(seconds["fast"])
    return found | {"lean_over_fast": median_ratio(seconds["lean"], seconds["fast"])}


if __name__ == "__main__":
    run("memory", figures)
