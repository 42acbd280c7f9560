"""`shapes`, the embedded dataset: drawn pictures of five objects, with exact masks.

One to three objects lie on a ground of soft patches. An object's outline and its texture, a pattern of light and dark
with a period of 3 to 5 pixels, show its class. Ground and objects share the picture's few colours, light and dark, and
most objects have the mean colour of what they hide: colours do not tell an object from its ground, neighbouring pixels
do. Plain figures with an object's outline, but without its texture, belong to no class. Every picture follows from
(seed, split, index) alone. The split "hard" has one object a picture, mostly with a faint texture.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from vitx.data.palette import encode_png
from vitx.data.prepared import PreparedBuilder, PreparedRecords, open_prepared

CLASSES = ("background", "disc", "square", "triangle", "cross", "ring")

SIZE = 48  # pixels along each side
RADIUS = (8.0, 13.0)  # of the circle around an object, pixels
TURN = 0.4  # largest turn of an object either way, radians
VISIBLE = 0.85  # of its area that an object keeps when later ones are laid over it
PLACES = 60  # tried for an object before it is left out
COLOURS = 4  # of a picture
CONTRAST = 40.0  # least distance in RGB between two colours of a picture
CAMOUFLAGE = 0.7  # share of the objects that have the colour of their ground
SHADE = (40.0, 70.0)  # a texture's amplitude around the object's colour
PERIOD = (3.0, 5.0)  # of a texture, pixels
FAINTEST = 0.05  # of a texture in "hard", as a share of the amplitude in train
SPLITS = ("train", "val", "hard")  # in the order that numbers their random streams: append only


@dataclasses.dataclass(frozen=True)
class Drawing:
    """image (48, 48, 3) uint8; mask (48, 48) uint8 of CLASSES' indices; labels: those present."""

    image: np.ndarray
    mask: np.ndarray
    labels: tuple[int, ...]


def draw(seed: int, split: str, index: int) -> Drawing:
    """The picture `index` (from 0) of a split; the same whatever else is drawn, and when."""
    entropy = np.random.SeedSequence([seed, SPLITS.index(split), index])
    generator = np.random.Generator(np.random.Philox(entropy))
    palette = draw_palette(generator)  # (COLOURS, 3)
    image = draw_ground(generator, palette)  # (S, S, 3)
    owner = np.zeros((SIZE, SIZE), np.int64)  # 0 background, else the object's number from 1
    for _ in range(generator.integers(1, 4)):
        kind = int(generator.integers(1, len(CLASSES)))
        coverage = find_place(generator, kind, owner, [SIZE * SIZE])
        assert coverage is not None  # there is nothing yet to cover
        colour = palette[generator.integers(COLOURS)] + generator.uniform(-1, 1) * SHADE[1]
        image += coverage[..., None] * (colour - image)
    kinds, areas = [0], [SIZE * SIZE]
    hard = split == "hard"
    strength = generator.uniform(FAINTEST, 1) if hard else 1.0
    for _ in range(1 if hard else generator.choice((1, 2, 3), p=(0.4, 0.4, 0.2))):
        kind = int(generator.integers(1, len(CLASSES)))
        coverage = find_place(generator, kind, owner, areas)
        if coverage is None:
            continue
        solid = coverage >= 0.5
        owner[solid] = len(kinds)
        kinds.append(kind)
        areas.append(int(solid.sum()))
        colour = palette[generator.integers(COLOURS)]
        if generator.uniform() < CAMOUFLAGE:
            colour = image[solid].mean(0)  # of what it hides
        # Light and dark shades of a colour: small nets learn this sooner than two colours.
        texture = draw_texture(generator, kind)
        shade = 2 * strength * generator.uniform(*SHADE) * (texture - texture[solid].mean())
        paint = colour + shade[..., None]  # (S, S, 3)
        image += coverage[..., None] * (paint - image)
    image *= draw_light(generator)
    image += generator.normal(0, 4, image.shape)  # a camera's noise
    mask = np.array(kinds, np.uint8)[owner]
    labels = tuple(sorted(set(kinds[1:])))
    return Drawing(np.clip(np.rint(image), 0, 255).astype(np.uint8), mask, labels)


def signed_distance(kind: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How far (x, y) lies outside (negative: inside) of a shape in the unit circle, upright.

    Exact next to straight and round edges, which is where antialiasing looks; y points down.
    """
    radius = np.hypot(x, y)
    match CLASSES[kind]:
        case "disc":
            return radius - 0.92
        case "square":
            return np.maximum(np.abs(x), np.abs(y)) - 0.76
        case "triangle":
            slope = np.sqrt(0.75) * np.abs(x) - 0.5 * y
            return np.maximum(slope, y) - 0.58  # the inscribed circle's radius, centre at 0
        case "cross":
            near, far = np.minimum(np.abs(x), np.abs(y)), np.maximum(np.abs(x), np.abs(y))
            return np.maximum(near - 0.29, far - 0.95)
        case "ring":
            return np.abs(radius - 0.7) - 0.26
    raise ValueError(f"no shape {kind}; wanted 1 to {len(CLASSES) - 1}")


def find_place(
    generator: np.random.Generator, kind: int, owner: np.ndarray, areas: list[int]
) -> np.ndarray | None:
    """Coverage (S, S) in [0, 1] of an object at a free place, or None where none was found."""
    for _ in range(PLACES):
        radius = generator.uniform(*RADIUS)
        x, y = generator.uniform(radius, SIZE - radius, 2)
        turn = generator.uniform(-TURN, TURN)
        columns, rows = np.arange(SIZE) + 0.5 - x, np.arange(SIZE)[:, None] + 0.5 - y
        cosine, sine = np.cos(turn) / radius, np.sin(turn) / radius
        distance = signed_distance(
            kind, cosine * columns + sine * rows, cosine * rows - sine * columns
        )
        coverage = np.clip(0.5 - radius * distance, 0, 1)  # (S, S)
        left = np.bincount(owner[coverage < 0.5], minlength=len(areas))[1:]
        if np.all(left >= VISIBLE * np.array(areas[1:])):
            return coverage
    return None


def draw_palette(generator: np.random.Generator) -> np.ndarray:
    """The colours of a picture (COLOURS, 3), any two of them at least CONTRAST apart."""
    colours = [generator.uniform(60, 195, 3)]
    while len(colours) < COLOURS:
        colour = generator.uniform(60, 195, 3)
        if min(np.linalg.norm(colour - other) for other in colours) >= CONTRAST:
            colours.append(colour)
    return np.array(colours)


def draw_ground(generator: np.random.Generator, palette: np.ndarray) -> np.ndarray:
    """Soft patches in the palette's colours, light and dark, with lines, (S, S, 3)."""
    fields = np.stack([_smooth_noise(generator, int(generator.integers(3, 7))) for _ in palette])
    fields += generator.uniform(-0.4, 0.4, (len(palette), 1, 1))  # some colours prevail
    weights = np.exp(12 * (fields - fields.max(0)))
    shades = _smooth_noise(generator, int(generator.integers(4, 9))) * SHADE[1]
    image = np.einsum("cij,ck->ijk", weights / weights.sum(0), palette) + shades[..., None]
    columns, rows = np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5)
    for _ in range(generator.integers(0, 4)):
        x, y, turn = *generator.uniform(0, SIZE, 2), generator.uniform(0, np.pi)
        distance = np.abs(np.cos(turn) * (columns - x) + np.sin(turn) * (rows - y))
        coverage = np.clip(generator.uniform(0.8, 1.6) - distance, 0, 1)
        image += coverage[..., None] * (palette[generator.integers(COLOURS)] - image)
    return image


def draw_texture(generator: np.random.Generator, kind: int) -> np.ndarray:
    """The share of the second colour in a texture, (S, S) in [0, 1]: a pattern for each class."""
    columns, rows = np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5)
    turn, period = generator.uniform(-0.3, 0.3), generator.uniform(*PERIOD)
    if CLASSES[kind] == "ring":
        turn += generator.choice((-1, 1)) * np.pi / 4
    phases = generator.uniform(0, 2 * np.pi, 2)
    across = (np.cos(turn) * columns + np.sin(turn) * rows) * (2 * np.pi / period) + phases[0]
    along = (np.cos(turn) * rows - np.sin(turn) * columns) * (2 * np.pi / period) + phases[1]
    match CLASSES[kind]:
        case "disc":  # dots
            wave = np.cos(across) + np.cos(along) - 0.9
        case "square":  # checks
            wave = 2 * np.cos(across) * np.cos(along)
        case "triangle":  # level stripes
            wave = np.cos(along)
        case _:  # upright stripes of crosses, slanting ones of rings
            wave = np.cos(across)
    return np.clip(0.5 + 1.2 * wave, 0, 1)


def draw_light(generator: np.random.Generator) -> np.ndarray:
    """Soft shading, (S, S, 1): brighter and darker parts of the picture."""
    return (1 + generator.uniform(0.05, 0.25) * _smooth_noise(generator, 3))[..., None]


def _smooth_noise(generator: np.random.Generator, knots: int) -> np.ndarray:
    """Smooth noise in [-1, 1], (S, S): knots x knots random values, cosines between them."""
    grid = generator.uniform(-1, 1, (knots, knots))
    position = np.linspace(0, knots - 1, SIZE)
    low = np.minimum(position.astype(np.int64), knots - 2)
    weight = 0.5 - 0.5 * np.cos(np.pi * (position - low))
    blend = np.zeros((SIZE, knots))
    blend[np.arange(SIZE), low] = 1 - weight
    blend[np.arange(SIZE), low + 1] += weight
    return blend @ grid @ blend.T


@dataclasses.dataclass(eq=False)
class ShapesConfig(tfds.core.BuilderConfig):
    """How many pictures each split has, and the seed that they all follow from."""

    train: int = 2400
    val: int = 400
    hard: int = 0
    seed: int = 0


class Shapes(PreparedBuilder):
    """Pictures of shapes, 48 x 48, drawn on the spot; nothing is downloaded.

    Features: id; image and mask as PNG; labels, the classes present (0 for CLASSES[1], ...).
    """

    VERSION = tfds.core.Version("2.1.0")
    NAMES: ClassVar[tuple[str, ...]] = CLASSES[1:]
    BUILDER_CONFIGS: ClassVar[list[ShapesConfig]] = [
        ShapesConfig(name="standard", description="for the demo", hard=128),
        ShapesConfig(name="tiny", description="for tests", train=24, val=12, hard=12),
    ]
    sources = ()  # type: ignore[assignment]

    def content(self) -> str:
        """See `PreparedBuilder`."""
        return repr(self.builder_config)

    def drawing(self, split: str, index: int) -> Drawing:
        """A picture of a split, by its number from 0."""
        return draw(self.builder_config.seed, split, index)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.describe(self.NAMES)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        del dl_manager
        sizes = {split: getattr(self.builder_config, split) for split in SPLITS}
        return {split: self._generate_examples(split) for split, size in sizes.items() if size}

    def _generate_examples(self, split: str) -> Iterator[dict]:
        for index in range(getattr(self.builder_config, split)):
            drawing = self.drawing(split, index)
            yield {
                "id": f"{split}_{index:05d}",
                "image": encode_png(drawing.image),
                "mask": encode_png(drawing.mask),
                "labels": [label - 1 for label in drawing.labels],
            }


CONFIGS = tuple(config.name for config in Shapes.BUILDER_CONFIGS)


def open_records(config: str, split: str, data_dir: Path) -> PreparedRecords:
    """The splits train and val, drawn once; see `open_prepared`."""
    return open_prepared(Shapes, CLASSES, config, split, data_dir)
