"""`planted`: drawn pictures in which the cause of the label is known, to judge explanations by.

In half of the pictures a watermark decides the class, a small faint pattern; in the others an object of `shapes` does.
Nothing else goes with the class: the other kind of cause is absent, and a distractor, a ring with its texture, is in
the picture where there is a place. A model that is right far more often than by chance uses the cause. The mask has
the class at the cause's pixels, the whole square of a watermark, and background elsewhere. Every picture follows from
(seed, split, index) alone.
"""

from pathlib import Path
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from vitx.data.datasets import shapes
from vitx.data.datasets.shapes import SHADE, SIZE, SPLITS, Drawing, ShapesConfig
from vitx.data.prepared import PreparedRecords, open_prepared

CLASSES = ("background", "disc", "square", "triangle", "cross")
_DISTRACTOR = shapes.CLASSES.index("ring")
_CELL = 4  # pixels along a side of a watermark's cell
_WATERMARKS = {  # by class: brighter and darker cells
    1: ((1, -1, 1), (-1, 1, -1), (1, -1, 1)),
    2: ((1, 1, 1), (-1, -1, -1), (1, 1, 1)),
    3: ((1, -1, 1), (1, -1, 1), (1, -1, 1)),
    4: ((-1, -1, -1), (-1, 1, -1), (-1, -1, -1)),
}
_STRENGTH = 35.0  # of a watermark, in grey levels


def draw(seed: int, split: str, index: int) -> Drawing:
    """The picture `index` (from 0) of a split; those of odd index have a watermark."""
    entropy = np.random.SeedSequence([seed, SPLITS.index(split), index, 1])
    generator = np.random.Generator(np.random.Philox(entropy))
    palette = shapes.draw_palette(generator)
    image = shapes.draw_ground(generator, palette)  # (S, S, 3)
    kind, watermark = int(generator.integers(1, len(CLASSES))), bool(index % 2)
    owner, areas = np.zeros((SIZE, SIZE), np.int64), [SIZE * SIZE]
    for shape in [_DISTRACTOR] if watermark else [kind, _DISTRACTOR]:
        coverage = shapes.find_place(generator, shape, owner, areas)
        if coverage is None:
            continue
        solid = coverage >= 0.5
        owner[solid] = len(areas)
        areas.append(int(solid.sum()))
        image += coverage[..., None] * (_paint(generator, shape, palette, solid) - image)
    cause = owner == 1
    if watermark:
        pattern = np.kron(np.array(_WATERMARKS[kind]), np.ones((_CELL, _CELL)))
        side = len(pattern)
        row, column = generator.integers(0, SIZE - side + 1, 2)
        square = np.s_[row : row + side, column : column + side]
        image[square] += _STRENGTH * pattern[..., None]
        cause = np.zeros_like(cause)
        cause[square] = True
    image *= shapes.draw_light(generator)
    image += generator.normal(0, 4, image.shape)
    pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return Drawing(pixels, np.where(cause, kind, 0).astype(np.uint8), (kind,))


def _paint(
    generator: np.random.Generator, kind: int, palette: np.ndarray, solid: np.ndarray
) -> np.ndarray:
    """A shape's texture in one of the picture's colours, (S, S, 3)."""
    texture = shapes.draw_texture(generator, kind)
    shade = 2 * generator.uniform(*SHADE) * (texture - texture[solid].mean())
    return palette[generator.integers(len(palette))] + shade[..., None]


class Planted(shapes.Shapes):
    """Pictures of 48 x 48 whose label has a known cause; nothing is downloaded.

    Features: id; image and mask as PNG; labels, the one class (0 for CLASSES[1], ...).
    """

    VERSION = tfds.core.Version("1.0.0")
    NAMES = CLASSES[1:]
    BUILDER_CONFIGS: ClassVar[list[ShapesConfig]] = [
        ShapesConfig(name="standard", description="for configs/truth.py", train=6000, val=100),
        ShapesConfig(name="tiny", description="for tests", train=24, val=12),
    ]

    def drawing(self, split: str, index: int) -> Drawing:
        """See `Shapes`."""
        return draw(self.builder_config.seed, split, index)


CONFIGS = tuple(config.name for config in Planted.BUILDER_CONFIGS)


def open_records(config: str, split: str, data_dir: Path) -> PreparedRecords:
    """The splits train and val, drawn once; see `open_prepared`."""
    return open_prepared(Planted, CLASSES, config, split, data_dir)
