"""Images a second of the training loader, against the training step on this machine and on one accelerator.

The loader reads JPEGs of VOC's size and bytes (made: noise with the spectrum of photographs, and edges), decodes,
resizes, mirrors, jitters as published and normalises. The step is the published classifier's, float32. How many
loader processes keep an accelerator busy is arithmetic: the step's FLOPs are three forwards', and the accelerator
reaches half of its peak.

python -m benchmarks.loader [--sizes 224,448] [--workers 0,1,2] [--images 96]
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageDraw

from benchmarks.command import parse_options
from benchmarks.gpu import PEAKS, REACHED
from benchmarks.tables import print_table, print_targets
from benchmarks.training import estimated_rate, images_a_second
from vitx.data import loader
from vitx.models.design import Preprocess

PUBLISHED = loader.Augment(flip=True, brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1)
SHAPES = ((375, 500), (333, 500), (500, 375), (375, 500))  # VOC's commonest
DISTINCT, FILES = 32, 640  # more files than the loader keeps decoded in memory
BATCH = 8  # published
ACCELERATOR = "NVIDIA H100 80GB HBM3"


def figures(
    model: str = "vit_base_r50_s16_224",
    sizes: Sequence[int] = (224, 448),
    workers: Sequence[int] = (0, 1, 2),
    images: int = 96,
    rounds: int = 3,
    step_batch: int = 1,
    step_runs: int = 2,
) -> dict[str, float]:
    """The loader and the step at each input size.

    Args:
      model: trains.
      sizes: sides of the input.
      workers: numbers of loader processes; 0 is a thread.
      images: are timed in each round.
      rounds: of all numbers of workers, in turns.
      step_batch: images of a training step, as many as this machine does in a few seconds.
      step_runs: timed training steps.

    Returns:
      jpeg_kilobytes, and by size: loader_<size>_workers<n> and step_<size>, images a second; loader_over_step_<size>,
      with the most workers; worker_<size>, images a second of one worker among the most; accelerator_<size>, of the
      step on the accelerator; workers_needed_<size>, the quotient. loader_over_step and workers_needed are those of
      the largest size.
    """
    found = {}
    batch = -(-step_batch // jax.device_count()) * jax.device_count()
    most = max(workers)
    with tempfile.TemporaryDirectory() as folder:
        found["jpeg_kilobytes"] = make_photographs(Path(folder))
        source = loader.open_source("folder", "all", folder)
        for size in sizes:
            rates = [
                [loader_rate(source, size, number, images) for number in workers]
                for _ in range(rounds)
            ]
            medians = dict(zip(workers, np.median(rates, 0).tolist(), strict=True))
            found |= {f"loader_{size}_workers{n}": rate for n, rate in medians.items()}
            worker = medians[most] / max(most, 1)
            step = images_a_second(model, size, batch, step_runs)
            on_device = estimated_rate(model, size, PEAKS[ACCELERATOR]["tf32"])
            found |= {
                f"step_{size}": step,
                f"loader_over_step_{size}": medians[most] / step,
                f"worker_{size}": worker,
                f"accelerator_{size}": on_device,
                f"workers_needed_{size}": on_device / worker,
            }
    for name in ("loader_over_step", "workers_needed"):
        found[name] = found[f"{name}_{max(sizes)}"]
    return found


def make_photographs(folder: Path) -> float:
    """Fills `folder` with JPEGs of one class, links to a few distinct ones; returns their mean size in kB."""
    (folder / "object").mkdir()
    files = [folder / "object" / f"{index:04}.jpg" for index in range(FILES)]
    generator = np.random.default_rng(0)
    for index, file in enumerate(files):
        if index < DISTINCT:
            photograph(SHAPES[index % len(SHAPES)], generator).save(file, quality=90)
        else:
            file.hardlink_to(files[index % DISTINCT])
    return float(np.mean([file.stat().st_size for file in files[:DISTINCT]])) / 1e3


def photograph(shape: tuple[int, int], generator: np.random.Generator) -> Image.Image:
    """Noise whose amplitude falls as 1 / frequency, like that of photographs, and a few filled shapes."""
    height, width = shape
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf
    spectrum = generator.standard_normal((3, 2, *frequency.shape)) / frequency
    planes = np.fft.irfft2(spectrum[:, 0] + 1j * spectrum[:, 1], shape)
    luma, red, blue = (plane / plane.std() for plane in planes)
    colours = np.stack([luma + 0.3 * red, luma, luma + 0.3 * blue], -1)
    image = Image.fromarray(np.clip(118 + 50 * colours, 0, 255).astype(np.uint8))
    overlay = ImageDraw.Draw(image, "RGBA")
    for _ in range(6):
        corners = generator.integers(0, (width, height), (4, 2))
        colour = tuple(generator.integers(0, 256, 3).tolist())
        overlay.polygon([tuple(corner) for corner in corners.tolist()], fill=(*colour, 90))
    return image


def loader_rate(source: loader.Source, size: int, workers: int, images: int) -> float:
    """Images a second of the training loader once its processes run and the batches they prepared first are used up."""
    batches = loader.training_loader(
        source,
        preprocess=Preprocess(size=(size, size)),
        batch_size=BATCH,
        epochs=1000,
        seed=0,
        augment=PUBLISHED,
        workers=workers,
    )
    count = -(-images // BATCH)
    for _ in range(2 + 3 * workers):
        next(batches)
    start = time.perf_counter()
    for _ in range(count):
        next(batches)
    rate = count * BATCH / (time.perf_counter() - start)
    batches.close()
    return rate


def main() -> None:
    """Prints a table of images a second."""
    options = parse_options(figures)
    found = figures(**options)
    print(f"{options['model']}, JPEGs of {found['jpeg_kilobytes']:.0f} kB; images a second\n")
    names = [f"{n} workers" if n else "a thread" for n in options["workers"]]
    rows = []
    for size in options["sizes"]:
        rates = [f"{found[f'loader_{size}_workers{n}']:.0f}" for n in options["workers"]]
        rest = [found[f"{name}_{size}"] for name in ("step", "accelerator", "workers_needed")]
        rows.append([str(size), *rates, *(f"{value:.3g}" for value in rest)])
    print_table(["input", *names, "training step here", "one accelerator", "workers for it"], rows)
    print(f"\nAccelerator: {REACHED:.0%} of an {ACCELERATOR}'s TF32 peak, training is 3 forwards.")
    print_targets("loader", found)


if __name__ == "__main__":
    main()
