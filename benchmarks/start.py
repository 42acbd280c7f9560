"""Seconds before the first explanation: tracing and compiling, and the same with the programs kept on disk.

Target: under 10 s for ViT-Base; a second start takes what tracing and loading take.

python -m benchmarks.start [--model vit_base_patch16_224] [--batch 1]
"""

import argparse
import tempfile
import time
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache

import vitx
from benchmarks.targets import limit_of


def figures(model: str = "vit_base_patch16_224", batch: int = 1) -> dict[str, float]:
    """Transformer attribution of the predicted class.

    Args:
      model: a name of vitx's registry.
      batch: images at once.

    Returns:
      trace_seconds, and compile_seconds after it, of the first start; second_start_seconds, of both when the program is
      in JAX's persistent cache and nothing in memory; and second_start_share, that over the first start's.
    """
    network = nnx.eval_shape(partial(vitx.create, model))
    images = jax.ShapeDtypeStruct((batch, *network.preprocess.size, 3), jnp.float32)

    def start() -> tuple[float, float]:
        jax.clear_caches()
        compilation_cache.reset_cache()
        begun = time.perf_counter()
        lowered = jax.jit(vitx.explain).lower(network, images)
        traced = time.perf_counter()
        lowered.compile()
        return traced - begun, time.perf_counter() - traced

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


def main() -> None:
    """Prints seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_base_patch16_224", help="of vitx's registry")
    parser.add_argument("--batch", type=int, default=1, help="images at once")
    options = parser.parse_args()
    found = figures(**vars(options))
    print(f"{options.model}, batch {options.batch}, {jax.devices()[0].device_kind}")
    print(f"first start: traced in {found['trace_seconds']:.1f} s, ", end="")
    print(f"compiled in {found['compile_seconds']:.1f} s (target: {limit_of('compile'):.0f} s)")
    print(f"second start: {found['second_start_seconds']:.1f} s")


if __name__ == "__main__":
    main()
