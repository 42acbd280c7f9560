"""Seconds of the dense CRF on an image of VOC's size, both alphas, and what worker processes gain.

pydensecrf, 500 x 375, three labels; the pool's start is left out.

python -m benchmarks.crf [--images 8] [--workers 2]
"""

import argparse
import time
from functools import partial

import numpy as np

from vitx import workers
from vitx.pseudomasks.crf import CRFParameters
from vitx.training.labels import CRFOptions, Cued, crf_labels

SIZE = (375, 500)


def made(number: int) -> Cued:
    """Smooth cues of two classes, and an image of blocks with noise."""
    generator = np.random.default_rng(number)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    cells = generator.integers(0, 256, (8, 10, 3))
    image = np.clip(cells[y // 50, x // 50] + generator.normal(0, 12, (*SIZE, 3)), 0, 255)
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


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    flags = parser.parse_args()
    found = figures(flags.images, flags.workers)
    print(
        f"{found['seconds']:.2f} s an image in one process, {found['seconds_in_pool']:.2f} s with {flags.workers} "
        f"workers: {found['speed_up']:.2f} times as fast"
    )


if __name__ == "__main__":
    main()
