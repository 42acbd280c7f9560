"""The side of vitx in `python -m benchmarks.peers`, which starts it."""

import sys
from functools import cache, partial
from pathlib import Path

import numpy as np

from benchmarks.peers_worker import images, serve, use_threads


def main(folder: Path, threads: int) -> None:
    use_threads(threads)
    import jax.numpy as jnp

    import vitx
    from benchmarks.models import forward

    model = vitx.load(folder)

    @cache
    def batch_of(batch: int) -> tuple[jnp.ndarray, jnp.ndarray]:
        x = images(batch, model.preprocess.size[0])
        return jnp.asarray(x.transpose(0, 2, 3, 1)), jnp.arange(batch)

    def maps(method: str, batch: int) -> np.ndarray:
        return np.asarray(vitx.explain(model, *batch_of(batch), method=method)[1])

    calls = {name: partial(maps, name) for name in vitx.METHODS}
    serve(calls | {"forward": lambda b: np.asarray(forward(model, batch_of(b)[0]))}, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
