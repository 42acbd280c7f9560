"""Seconds of the dense CRF on an image of VOC's size, both alphas, by backend.

500 x 375, three labels: one call, the backends taking turns; and stage `labels` on all cores, where the JAX one has
threads and pydensecrf processes.

python -m benchmarks.crf [--images 16] [--workers 0] [--runs 7]
"""

import argparse
import os
import time
from functools import partial

import numpy as np

from benchmarks.timing import alternate, median_ratio
from vitx.pipeline.labels import CRFOptions, Seeded, crf_labels, crf_probabilities
from vitx.pseudomasks.crf import CRFParameters, dense_crf
from vitx.runtime import workers

SIZE = (375, 500)


def made(number: int, size: tuple[int, int] = SIZE) -> Seeded:
    """Smooth seed maps of two classes, and an image of blocks with noise."""
    generator = np.random.default_rng(number)
    y, x = np.mgrid[: size[0], : size[1]]
    cells = generator.integers(0, 256, (8, 10, 3))
    image = np.clip(cells[y // 50, x // 50] + generator.normal(0, 12, (*size, 3)), 0, 255)
    centres = generator.uniform(0.2, 0.8, (2, 2)) * 448
    grid = np.mgrid[:448, :448].astype(np.float32)
    distances = ((grid - centres[:, :, None, None]) ** 2).sum(1)
    seed_maps = np.exp(-distances / 2 / 90**2).astype(np.float32)
    return Seeded(str(number), image.astype(np.uint8), seed_maps, np.array([3, 7], np.int32))


def options(backend: str) -> CRFOptions:
    """Those of configs/voc.py."""
    return CRFOptions(CRFParameters(), (4.0, 32.0), backend, 56, 8)


def stage(images: int = 16, count: int = 0) -> dict[str, float]:
    """Seconds an image of stage `labels`, on all cores or `count`, with either backend, and the ratio.

    Compiling, and the start of pydensecrf's processes, are left out.
    """
    count = count or os.cpu_count() or 1
    items = [made(number) for number in range(images)]
    ways = {"jax": workers.on_devices, "pydensecrf": workers.in_processes}
    found = {}
    for backend, way in ways.items():
        label = partial(crf_labels, options(backend))
        if backend == "jax":
            for item in items:
                label(item)
        # As many as may be worked on or wait come first: then all have started.
        results = way(label, [*items[:1] * 2 * count, *items], count)
        for _ in range(count):
            next(results)
        start = time.perf_counter()
        done = len(list(results))
        found[f"{backend}_stage_seconds"] = (time.perf_counter() - start) / done
    ratio = found["jax_stage_seconds"] / found["pydensecrf_stage_seconds"]
    return found | {"jax_over_pydensecrf_stage": ratio}


def turns(runs: int = 7, size: tuple[int, int] = SIZE) -> dict[str, float]:
    """Median seconds of both alphas with either backend, and the ratio, compiling left out."""
    item = made(0, size)
    probabilities = crf_probabilities(options("jax"), item)
    backends = {
        backend: partial(dense_crf, item.image[None], probabilities[None], backend=backend)
        for backend in ("jax", "pydensecrf")
    }
    seconds = alternate(backends, runs)
    found = {f"{backend}_seconds": float(np.median(seconds[backend])) for backend in backends}
    return found | {"jax_over_pydensecrf": median_ratio(seconds["jax"], seconds["pydensecrf"])}


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--runs", type=int, default=7)
    flags = parser.parse_args()
    for name, value in turns(flags.runs).items():
        print(f"{name}: {value:.2f}", flush=True)
    for name, value in stage(flags.images, flags.workers).items():
        print(f"{name}: {value:.2f}")


if __name__ == "__main__":
    main()
