"""Images a second of the training loader, against the training step on this machine and on one accelerator.

The loader reads JPEGs of VOC's size and bytes (made: noise with the spectrum of photographs, and edges), decodes,
resizes, mirrors, jitters as published and normalises. The step is the published classifier's, float32. How many
loader processes keep an accelerator busy is arithmetic: the step's FLOPs are three forwards', and the accelerator
reaches half of its peak.

python -m benchmarks.loader [--sizes 224,448] [--workers 0,1,2] [--images 96]
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from PIL import Image, ImageDraw

import vitx
from benchmarks.gpu import PEAKS, REACHED
from benchmarks.models import random_model
from benchmarks.timing import alternate
from vitx import parallel
from vitx.data import loader
from vitx.models.vit import Preprocess
from vitx.pipeline.classifier import multilabel_soft_margin
from vitx.training.loop import TrainState
from vitx.training.optimizer import gradient_step, make_optimizer

CLASSES = 20
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
      model: a name of vitx's registry, which trains.
      sizes: sides of the input.
      workers: numbers of loader processes; 0 is a thread.
      images: that are timed, each time.
      rounds: each number of workers is timed so often, in turns.
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
    with tempfile.TemporaryDirectory() as folder:
        found["jpeg_kilobytes"] = make_photographs(Path(folder))
        source = loader.open_source("folder", "all", folder)
        for size in sizes:
            rates: dict[int, list[float]] = {number: [] for number in workers}
            for _ in range(rounds):
                for number in workers:
                    rates[number].append(loader_rate(source, size, number, images))
            medians = {number: float(np.median(rate)) for number, rate in rates.items()}
            found |= {f"loader_{size}_workers{n}": rate for n, rate in medians.items()}
            most = max(workers)
            worker = medians[most] / max(most, 1)
            network = random_model(model, num_classes=CLASSES, image_size=size)
            run = {"step": training_step(network, batch)}
            step = batch / float(np.median(alternate(run, step_runs)["step"]))
            on_device = REACHED * PEAKS[ACCELERATOR]["tf32"] / (3 * forward_flops(model, size))
            found |= {
                f"step_{size}": step,
                f"loader_over_step_{size}": medians[most] / step,
                f"worker_{size}": worker,
                f"accelerator_{size}": on_device,
                f"workers_needed_{size}": on_device / worker,
            }
    largest = max(sizes)
    for name in ("loader_over_step", "workers_needed"):
        found[name] = found[f"{name}_{largest}"]
    return found


def make_photographs(folder: Path) -> float:
    """Fills `folder` with JPEGs of one class, links to a few distinct ones; returns their mean size in kB."""
    (folder / "object").mkdir()
    generator = np.random.default_rng(0)
    for index in range(DISTINCT):
        picture = photograph(SHAPES[index % len(SHAPES)], generator)
        picture.save(folder / "object" / f"{index:04}.jpg", quality=90)
    made = sorted((folder / "object").iterdir())
    for index in range(DISTINCT, FILES):
        (folder / "object" / f"{index:04}.jpg").hardlink_to(made[index % DISTINCT])
    return float(np.mean([path.stat().st_size for path in made])) / 1e3


def photograph(shape: tuple[int, int], generator: np.random.Generator) -> Image.Image:
    """Noise whose amplitude falls as 1 / frequency, as that of photographs does, and a few filled shapes."""
    height, width = shape
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf
    spectrum = generator.standard_normal((3, 2, *frequency.shape)) / frequency
    luma, red, blue = np.fft.irfft2(spectrum[:, 0] + 1j * spectrum[:, 1], shape)
    planes = [plane / plane.std() for plane in (luma, red, blue)]
    colours = np.stack([planes[0] + 0.3 * planes[1], planes[0], planes[0] + 0.3 * planes[2]], -1)
    image = Image.fromarray(np.clip(118 + 50 * colours, 0, 255).astype(np.uint8))
    overlay = ImageDraw.Draw(image, "RGBA")
    for _ in range(6):
        corners = generator.integers(0, (width, height), (4, 2))
        colour = tuple(generator.integers(0, 256, 3).tolist())
        overlay.polygon([tuple(corner) for corner in corners.tolist()], fill=(*colour, 90))
    return image


def loader_rate(source: loader.Source, size: int, workers: int, images: int) -> float:
    """Images a second of the training loader, once its processes run and what they made meanwhile is used up."""
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


def training_step(model: Any, batch_size: int) -> Callable[[], Any]:
    """A function that takes one step of the published classifier's training, on a batch that stays on the device."""
    graph, params = nnx.split(model)
    optimizer = make_optimizer(
        ConfigDict(
            {
                "optimizer": "sgd",
                "learning_rate": 5e-3,
                "epochs": 20,
                "warmup_epochs": 0,
                "weight_decay": 1e-4,
                "decay_norms_and_biases": True,
                "clip_norm": 0.0,
            }
        ),
        steps_per_epoch=1000,
    )

    def loss(params: Any, batch: Any, axis: str | None = None) -> jax.Array:
        logits = nnx.merge(graph, params)(batch["image"])
        return multilabel_soft_margin(logits, batch["labels"]).mean()

    step = gradient_step(loss, optimizer)
    state = parallel.replicate(TrainState.create(params, optimizer))
    generator = np.random.default_rng(0)
    shape = (batch_size, *model.preprocess.size, 3)
    labels = generator.integers(0, 2, (batch_size, model.num_classes))
    batch = parallel.shard_batch(
        {
            "image": generator.standard_normal(shape, np.float32),
            "labels": labels.astype(np.float32),
        }
    )

    def run() -> Any:
        nonlocal state
        state, scalars = step(state, batch)
        return state, scalars

    return run


def forward_flops(model: str, size: int) -> float:
    """Of one image, a multiply-add counted as two, by XLA's analysis of the program as written."""
    network = nnx.eval_shape(partial(vitx.create, model, CLASSES, size))
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    lowered = jax.jit(lambda network, images: network(images)).lower(network, images)
    return lowered.cost_analysis()["flops"]


def main() -> None:
    """Prints a table in Markdown, and the arithmetic."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    numbers = lambda text: tuple(int(word) for word in text.split(","))  # noqa: E731
    parser.add_argument("--model", default="vit_base_r50_s16_224", help="of vitx's registry")
    parser.add_argument("--sizes", type=numbers, default=(224, 448), help="sides of the input")
    parser.add_argument("--workers", type=numbers, default=(0, 1, 2), help="loader processes")
    parser.add_argument("--images", type=int, default=96, help="timed each time")
    parser.add_argument("--rounds", type=int, default=3, help="of each number of workers")
    options = parser.parse_args()
    found = figures(**vars(options))
    print(f"{options.model}, JPEGs of {found['jpeg_kilobytes']:.0f} kB; images a second\n")
    names = [f"{n} workers" if n else "a thread" for n in options.workers]
    print(
        f"| input | {' | '.join(names)} | training step here | one accelerator | workers for it |"
    )
    print(f"|---|{'---|' * (len(names) + 3)}")
    for size in options.sizes:
        rates = [f"{found[f'loader_{size}_workers{n}']:.0f}" for n in options.workers]
        rest = [found[f"{name}_{size}"] for name in ("step", "accelerator", "workers_needed")]
        print(f"| {size} | {' | '.join([*rates, *(f'{value:.3g}' for value in rest)])} |")
    print(f"\nAccelerator: {REACHED:.0%} of an {ACCELERATOR}'s TF32 peak, training is 3 forwards.")


if __name__ == "__main__":
    main()
