"""Seconds of the dense CRF on an image of VOC's size, both alphas, by backend, and what worker processes gain.

500 x 375, three labels. The JAX one and pydensecrf take turns; worker processes are for pydensecrf, and the start of
their pool is left out.

python -m benchmarks.crf [--images 8] [--workers 2] [--runs 7]
"""

import argparse
import time
from functools import partial

import numpy as np

from benchmarks.timing import alternate, median_ratio
from vitx import workers
from vitx.data.transforms import resize_maps
from vitx.pseudomasks.crf import CRFParameters, background_channel, dense_crf
from vitx.training.labels import CRFOptions, Cued, crf_labels

SIZE = (375, 500)


def made(number: int, size: tuple[int, int] = SIZE) -> Cued:
    """Smooth cues of two classes, and an image of blocks with noise."""
    generator = np.random.default_rng(number)
    y, x = np.mgrid[: size[0], : size[1]]
    cells = generator.integers(0, 256, (8, 10, 3))
    image = np.clip(cells[y // 50, x // 50] + generator.normal(0, 12, (*size, 3)), 0, 255)
    centres = generator.uniform(0.2, 0.8, (2, 2)) * 448
    grid = np.mgrid[:448, :448].astype(np.float32)
    distances = ((grid - centres[:, :, None, None]) ** 2).sum(1)
    cues = np.exp(-distances / 2 / 90**2).astype(np.float32)
    return Cued(str(number), image.astype(np.uint8), cues, np.array([3, 7], np.int32))


def figures(images: int = 8, count: int = 2) -> dict[str, float]:
    """Seconds an image in this process and with `count` workers, and the first over the second."""
    options = CRFOptions(CRFParameters(), (4.0, 32.0), "pydensecrf", 56, 8)
    label = partial(crf_labels, options)
    items = [made(number) for number in range(images)]
    label(items[0])
    start = time.perf_counter()
    for item in items:
        label(item)
    alone = (time.perf_counter() - start) / images
    # The first results are in when the processes have started.
    results = workers.in_processes(label, [*items[:count] * 2, *items], count)
    for _ in range(count):
        next(results)
    start = time.perf_counter()
    done = len(list(results))
    together = (time.perf_counter() - start) / done
    return {"seconds": alone, "seconds_in_pool": together, "speed_up": alone / together}


def turns(runs: int = 7, size: tuple[int, int] = SIZE) -> dict[str, float]:
    """Median seconds of both alphas with either backend, and the ratio, compiling left out."""
    item = made(0, size)
    foreground = resize_maps(item.cues, size)
    backgrounds = [background_channel(foreground, alpha) for alpha in (4.0, 32.0)]
    sets = np.stack([np.concatenate([background[None], foreground]) for background in backgrounds])
    backends = {
        backend: partial(dense_crf, item.image[None], sets[None], backend=backend)
        for backend in ("jax", "pydensecrf")
    }
    seconds = alternate(backends, runs)
    found = {f"{backend}_seconds": float(np.median(seconds[backend])) for backend in backends}
    return found | {"jax_over_pydensecrf": median_ratio(seconds["jax"], seconds["pydensecrf"])}


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=int, default=7)
    flags = parser.parse_args()
    both = turns(flags.runs)
    print(
        f"both alphas: {both['jax_seconds']:.2f} s in JAX, {both['pydensecrf_seconds']:.2f} s by pydensecrf, "
        f"{both['jax_over_pydensecrf']:.2f} times its time",
        flush=True,
    )
    found = figures(flags.images, flags.workers)
    print(
        f"labels by pydensecrf: {found['seconds']:.2f} s an image in one process, "
        f"{found['seconds_in_pool']:.2f} s with {flags.workers} workers: {found['speed_up']:.2f} times as fast"
    )


if __name__ == "__main__":
    main()
