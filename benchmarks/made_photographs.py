"""A made dataset in VOC's layout: objects of own classes on crops of scikit-image's photographs, with exact masks.

An object's outline and its texture, stripes or dots with a period of 8 to 12 pixels, show its class. Its colours are
those of another photograph, so a colour tells nothing of what a pixel belongs to. The validation images show the right
third of each photograph, the training images the rest. Needs scikit-image, whose package holds these photographs.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from vitx.data.palette import encode_mask

CLASSES = ("background", "coin", "kite", "star", "moon", "beam")
SIZE = (72, 96)
GROUNDS = ("astronaut", "coffee", "chelsea", "rocket", "stereo_motorcycle")
ZOOM = (1.0, 3.0)  # pixels of a photograph for each of a crop
RADIUS = (16.0, 25.0)  # of the circle around an object, pixels
GAP = 2.0  # least distance between the circles of two objects, pixels
SHADE = (40.0, 60.0)  # a texture's amplitude
PERIOD = (8.0, 12.0)  # of a texture, pixels
SHOWN = (0.5, 0.35, 0.15)  # shares of the images with one, two and three objects
TRIES = 60  # places tried for an object before it is left out


def make_photographs(folder: Path, train: int, val: int, seed: int = 0) -> tuple[str, ...]:
    """Writes so many images of each split as JPEGs, masks and lists into `folder`; returns the classes.

    There are no annotations: labels follow from the masks.
    """
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("val", val)):
        generator = np.random.default_rng([seed, split == "val"])
        grounds = list(photographs(split))
        identifiers = [f"{split}_{number:05d}" for number in range(count)]
        for identifier in identifiers:
            image, mask = draw(grounds, generator)
            Image.fromarray(image).save(folder / f"JPEGImages/{identifier}.jpg", quality=92)
            (folder / f"SegmentationClass/{identifier}.png").write_bytes(encode_mask(mask))
        listed = folder / f"ImageSets/Segmentation/{split}.txt"
        listed.write_text("".join(f"{identifier}\n" for identifier in identifiers))
    return CLASSES


def photographs(split: str) -> Iterator[Image.Image]:
    """The part of each photograph that a split may show: the left two thirds, or for val the rest."""
    for name in GROUNDS:
        found = getattr(skimage.data, name)()
        picture = found[0] if isinstance(found, tuple) else found
        border = picture.shape[1] * 2 // 3
        yield Image.fromarray(picture[:, border:] if split == "val" else picture[:, :border])


def draw(
    grounds: list[Image.Image], generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """An image (72, 96, 3) and its mask (72, 96) of CLASSES' indices, uint8."""
    first, *others = generator.permutation(len(grounds))
    image = crop(grounds[first], generator)
    mask = np.zeros(SIZE, np.uint8)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    circles: list[tuple[float, float, float]] = []
    for _ in range(generator.choice((1, 2, 3), p=SHOWN)):
        circle = _place(circles, generator)
        if circle is None:
            continue
        circles.append(circle)
        row, column, radius = circle
        kind, turn = int(generator.integers(1, len(CLASSES))), generator.uniform(-0.4, 0.4)
        across = np.cos(turn) * (x - column) + np.sin(turn) * (y - row)
        along = np.cos(turn) * (y - row) - np.sin(turn) * (x - column)
        outside = radius * signed_distance(kind, across / radius, along / radius)
        coverage = np.clip(0.5 - outside, 0, 1)
        paint = crop(grounds[generator.choice(others)], generator).clip(SHADE[1], 255 - SHADE[1])
        wave = texture(kind, across, along, generator)[..., None]
        paint += generator.uniform(*SHADE) * wave
        image += coverage[..., None] * (paint - image)
        mask[coverage >= 0.5] = kind
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), mask


def crop(ground: Image.Image, generator: np.random.Generator) -> np.ndarray:
    """A random part of a photograph, scaled down and mirrored at random, (72, 96, 3) in [0, 255]."""
    height, width = SIZE
    zoom = min(generator.uniform(*ZOOM), ground.width / width, ground.height / height)
    left = generator.uniform(0, ground.width - zoom * width)
    top = generator.uniform(0, ground.height - zoom * height)
    box = (left, top, left + zoom * width, top + zoom * height)
    part = np.asarray(ground.resize((width, height), Image.Resampling.BICUBIC, box), np.float64)
    return part[:, :: generator.choice((-1, 1))].copy()


def signed_distance(kind: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How far (x, y) lies outside (negative: inside) of an outline in the unit circle, about; y points down."""
    match CLASSES[kind]:
        case "coin":
            return np.hypot(x, y) - 0.85
        case "kite":
            return np.abs(x) * 0.83 + np.abs(y) * 0.55 - 0.54
        case "star":
            return np.hypot(x, y) - 0.68 + 0.27 * np.cos(5 * np.arctan2(x, y))
        case "moon":
            return np.maximum(np.hypot(x, y) - 0.95, 0.6 - np.hypot(x - 0.6, y))
        case "beam":
            return np.maximum(np.abs(x) - 0.9, np.abs(y) - 0.38)
    raise ValueError(f"no outline {kind}; wanted 1 to {len(CLASSES) - 1}")


def texture(
    kind: int, across: np.ndarray, along: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """A class's pattern in [-1, 1] at places in pixels, turned with the object."""
    unit = 2 * np.pi / generator.uniform(*PERIOD)
    first, last = generator.uniform(0, 2 * np.pi, 2)
    match CLASSES[kind]:
        case "coin":  # dots
            wave = np.cos(unit * across + first) + np.cos(unit * along + last)
        case "kite":
            wave = np.cos(unit * along + first)
        case "star":  # checks
            wave = 2 * np.cos(unit * across + first) * np.cos(unit * along + last)
        case "moon":
            wave = np.cos(unit * across + first)
        case _:  # slanting stripes
            wave = np.cos(unit * (across + along) / np.sqrt(2) + first)
    return np.clip(2 * wave, -1, 1)


def _place(
    circles: list[tuple[float, float, float]], generator: np.random.Generator
) -> tuple[float, float, float] | None:
    """Row, column and radius of a circle apart from the others, or None where none was found."""
    for _ in range(TRIES):
        radius = generator.uniform(*RADIUS)
        row, column = (generator.uniform(radius, side - radius) for side in SIZE)
        if all(np.hypot(row - r, column - c) >= radius + s + GAP for r, c, s in circles):
            return row, column, radius
    return None
