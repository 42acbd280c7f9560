"""The side of vitx in `python -m benchmarks.peers`, which starts it."""

import sys
from functools import cache, partial
from pathlib import Path

import numpy as np

from benchmarks.peers_worker import Call, images, serve, use_threads


def main(folder: Path, threads: int) -> None:
    use_threads(threads)
    import jax
    import jax.numpy as jnp

    import vitx
    from benchmarks.models import forward
    from vitx.evaluation.cost import product_flops

    model = vitx.load(folder)

    @cache
    def batch_of(batch: int) -> jax.Array:
        return jnp.asarray(images(batch, model.preprocess.size[0]).transpose(0, 2, 3, 1))

    def maps(method: str, classes: int, x: jax.Array) -> jax.Array:
        labels = jnp.arange(len(x))[:, None] + jnp.arange(classes)
        return vitx.explain(model, x, labels, method=method)[1]

    def call(function: partial[jax.Array], batch: int) -> np.ndarray:
        return np.asarray(function(batch_of(batch)))

    functions = {name: partial(maps, name, 1) for name in vitx.METHODS}
    functions["transformer_attribution of 3 classes"] = partial(maps, "transformer_attribution", 3)
    functions["forward"] = partial(forward, model)
    calls: dict[str, Call] = {name: partial(call, function) for name, function in functions.items()}

    def products(name: str, batch: int) -> float:
        calls[name](batch)
        return product_flops(functions[name], batch_of(batch))

    serve(calls, folder, products)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
