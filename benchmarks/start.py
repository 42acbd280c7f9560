"""Seconds before the first explanation: tracing and compiling, and the same with the programs kept on disk.

python -m benchmarks.start [--model vit_base_patch16_224] [--batch 1]
"""

import tempfile
import time
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache

import vitx
from benchmarks.command import run


def figures(model: str = "vit_base_patch16_224", batch: int = 1) -> dict[str, float]:
    """Transformer attribution of the predicted class.

    Returns:
      trace_seconds and compile_seconds of the first start; second_start_seconds, of both when the program is in JAX's
      persistent cache and nothing is in memory; and second_start_share, its ratio to the first start's.
    """
    network = nnx.eval_shape(partial(vitx.create, model))
    images = jax.ShapeDtypeStruct((batch, *network.preprocess.size, 3), jnp.float32)

    def start() -> tuple[float, float]:
        jax.clear_caches()
        compilation_cache.reset_cache()
        begin = time.perf_counter()
        lowered = jax.jit(vitx.explain).lower(network, images)
        traced = time.perf_counter()
        lowered.compile()
        return traced - begin, time.perf_counter() - traced

    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        trace, compiling = start()
        second = sum(start())
        jax.config.update("jax_compilation_cache_dir", None)
    return {
        "trace_seconds": trace,
        "compile_seconds": compiling,
        "second_start_seconds": second,
        "second_start_share": second / (trace + compiling),
    }


if __name__ == "__main__":
    run("start", figures)
