"""Temporaries of one explanation with memory="fast" and "lean", and what the second costs in time.

Target for the hybrid at 448: at most 0.5 GB an image, at most 1.2 times the time.

python -m benchmarks.memory [--model vit_base_r50_s16_224] [--size 448] [--batch 4] [--runs 3]
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx

import vitx
from benchmarks.timing import alternate

_MODEL = flags.DEFINE_string("model", "vit_base_r50_s16_224", "A name of vitx's registry.")
_SIZE = flags.DEFINE_integer("size", 448, "Side of the images.")
_BATCH = flags.DEFINE_integer("batch", 4, "Images at once, for the memory.")
_RUNS = flags.DEFINE_integer("runs", 3, "Runs of each side, one image each, for the time; 0: none.")


def main(argv: list[str]) -> None:
    """Prints bytes and the ratio."""
    size = (_SIZE.value, _SIZE.value)

    def create() -> Any:
        return vitx.create(_MODEL.value, num_classes=20, image_size=size)

    print(f"{_MODEL.value} at {_SIZE.value}, {jax.devices()[0].device_kind}")
    for memory in ("fast", "lean"):
        run = jax.jit(partial(vitx.explain, memory=memory))
        images = jax.ShapeDtypeStruct((_BATCH.value, *size, 3), jnp.float32)
        compiled = run.lower(nnx.eval_shape(create), images).compile()
        used = compiled.memory_analysis().temp_size_in_bytes / _BATCH.value
        print(f"{memory}: {used / 1e9:.2f} GB an image at batch {_BATCH.value}", flush=True)
    if not _RUNS.value:
        return
    model = create()
    image = np.random.default_rng(0).standard_normal((1, *size, 3)).astype(np.float32)
    sides = {
        memory: partial(vitx.explain, model, image, memory=memory) for memory in ("fast", "lean")
    }
    seconds = {name: np.array(times) for name, times in alternate(sides, _RUNS.value).items()}
    ratio = np.median(seconds["lean"] / seconds["fast"])
    print(f"fast {np.median(seconds['fast']):.1f} s an image, lean {ratio:.2f} times that")


if __name__ == "__main__":
    app.run(main)
