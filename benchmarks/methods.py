"""What each method costs, in forwards of the same batch, for one and for two classes.

python -m benchmarks.methods [--model vit_base_patch16_224] [--batch 4] [--runs 3]
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import vitx
from benchmarks.timing import alternate
from vitx.relevance.explain import CLASS_AGNOSTIC

_MODEL = flags.DEFINE_string("model", "vit_base_patch16_224", "A name of vitx's registry.")
_BATCH = flags.DEFINE_integer("batch", 4, "Images at once.")
_RUNS = flags.DEFINE_integer("runs", 3, "Runs of each side.")


def main(argv: list[str]) -> None:
    """Prints a table in Markdown: median ratios."""
    model = vitx.create(_MODEL.value)
    shape = (_BATCH.value, *model.preprocess.size, 3)
    images = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
    classes = jnp.broadcast_to(jnp.array([3, 7]), (_BATCH.value, 2))

    @jax.jit
    def forward(model: Any, images: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return model(images)

    sides: dict[str, Callable[[], Any]] = {"forward": partial(forward, model, images)}
    for method in vitx.METHODS:
        for count in (1,) if method in CLASS_AGNOSTIC else (1, 2):
            sides[f"{method}, {count}"] = partial(
                vitx.explain, model, images, classes[:, :count], method, class_chunk=count
            )
    seconds = {name: np.array(times) for name, times in alternate(sides, _RUNS.value).items()}
    device = jax.devices()[0].device_kind
    print(f"{_MODEL.value}, batch {_BATCH.value}, {device}, {_RUNS.value} runs each; ", end="")
    print(f"forward {np.median(seconds['forward']) / _BATCH.value:.3f} s an image\n")
    print("| method, classes | forwards |\n|---|---|")
    for name, times in seconds.items():
        print(f"| {name} | {np.median(times / seconds['forward']):.2f} |")


if __name__ == "__main__":
    app.run(main)
