"""Seconds of the dense CRF on an image of VOC's size, both alphas, by backend.

500 x 375, three labels: one call, the backends taking turns; and stage `labels` on all cores, where the backend in JAX
has threads and pydensecrf processes.

python -m benchmarks.crf [--images 16] [--workers 0] [--runs 7]
"""

import os
import time
from functools import partial

import numpy as np

from benchmarks.command import run
from benchmarks.timing import alternate, median_ratio
from vitx.pipeline.labels import CRFOptions, Seeded, crf_labels, crf_probabilities
from vitx.pseudomasks.crf import CRFParameters, dense_crf
from vitx.runtime.workers import in_processes, on_devices

SIZE = (375, 500)


def example(number: int, size: tuple[int, int] = SIZE) -> Seeded:
    """An image of blocks with noise, and smooth seed maps of two classes."""
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
    """The options of configs/voc.py, with a backend."""
    return CRFOptions(CRFParameters(), (4.0, 32.0), backend, grid=56, pool=8)


def one_call(runs: int = 7, size: tuple[int, int] = SIZE) -> dict[str, float]:
    """Median seconds of both alphas with either backend, and the ratio, without compilation."""
    item = example(0, size)
    probabilities = crf_probabilities(options("jax"), item)
    backends = {
        backend: partial(dense_crf, item.image[None], probabilities[None], backend=backend)
        for backend in ("jax", "pydensecrf")
    }
    seconds = alternate(backends, runs)
    found = {f"{backend}_seconds": np.median(times) for backend, times in seconds.items()}
    return found | {"jax_over_pydensecrf": median_ratio(seconds["jax"], seconds["pydensecrf"])}


def stage(images: int, workers: int) -> dict[str, float]:
    """Seconds per image of stage `labels` with either backend, and the ratio; `workers` 0 means all cores.

    Neither compilation nor the start of pydensecrf's processes is timed.
    """
    workers = workers or os.cpu_count() or 1
    items = [example(number) for number in range(images)]
    found = {}
    for backend, ordered_map in (("jax", on_devices), ("pydensecrf", in_processes)):
        label = partial(crf_labels, options(backend))
        if backend == "jax":
            for item in items:
                label(item)
        # Two items per worker wait: when these and one more per worker are done, every worker has started.
        results = ordered_map(label, [*items[:1] * 2 * workers, *items], workers)
        for _ in range(workers):
            next(results)
        start = time.perf_counter()
        done = len(list(results))
        found[f"{backend}_stage_seconds"] = (time.perf_counter() - start) / done
    ratio = found["jax_stage_seconds"] / found["pydensecrf_stage_seconds"]
    return found | {"jax_over_pydensecrf_stage": ratio}


def figures(images: int = 16, workers: int = 0, runs: int = 7) -> dict[str, float]:
    """One call, and the stage with `images` images on `workers` workers (0: one per core)."""
    return one_call(runs) | stage(images, workers)


if __name__ == "__main__":
    run("crf", figures)
