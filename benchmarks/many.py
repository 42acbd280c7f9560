"""What several methods cost in one call of `explain_many`, in forwards of the same batch: time, products and memory.

python -m benchmarks.many [--model vit_base_patch16_224] [--batch 8] [--runs 3]
"""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vitx
from benchmarks.command import run
from benchmarks.methods import full_forward, product_flops
from benchmarks.models import forward, random_images, random_model
from benchmarks.timing import Side, alternate, median_ratio
from vitx.relevance.methods import TABLE_METHODS

NEWER = ("generic_attention", "attention_gradient", "attcat", "attn_lrp", "cp_lrp", "libragrad")
CALLS = {"six": TABLE_METHODS, "twelve": (*TABLE_METHODS, *NEWER)}


def figures(model: str = "vit_base_patch16_224", batch: int = 8, runs: int = 3) -> dict[str, float]:
    """The six methods of Table 2, and twelve, of one class; the six of two classes, too.

    Returns:
      forward_seconds, of the batch; and for "six", "twelve" and "six_twice", of two classes: `<call>_over_forward`, the
      time in such forwards, `<call>_products`, matrix products in those of a full forward, `<call>_compile_seconds`,
      and `<call>_gigabytes`, temporaries an image by XLA's memory_analysis().
    """
    network = random_model(model, num_classes=1000)
    images = random_images(network, batch)
    classes = jnp.broadcast_to(jnp.array([3, 7]), (batch, 2))
    full = product_flops(full_forward.lower(network, images).compile().as_text())
    found: dict[str, float] = {}
    sides: dict[str, Side] = {"forward": partial(forward, network, images)}
    for name, methods, given in (
        *((name, methods, classes[:, :1]) for name, methods in CALLS.items()),
        ("six_twice", TABLE_METHODS, classes),
    ):
        call: Any = jax.jit(partial(vitx.explain_many, methods=methods))
        lowered, start = call.lower(network, images, given), time.perf_counter()
        compiled = lowered.compile()
        found[f"{name}_compile_seconds"] = time.perf_counter() - start
        found[f"{name}_products"] = product_flops(compiled.as_text()) / full
        found[f"{name}_gigabytes"] = compiled.memory_analysis().temp_size_in_bytes / batch / 1e9
        sides[name] = partial(compiled, network, images, given)
    seconds = alternate(sides, runs)
    own = seconds.pop("forward")
    found["forward_seconds"] = float(np.median(own))
    return found | {f"{name}_over_forward": median_ratio(t, own) for name, t in seconds.items()}


if __name__ == "__main__":
    run("many", figures)
