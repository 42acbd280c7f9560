"""`explain_image`: a picture in, a result out that can be shown, saved and read."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jax
import numpy as np
from PIL import Image, ImageShow

from vitx.data.class_names import find_classes, output_names
from vitx.data.palette import encode_png
from vitx.images.evaluation_crop import cropped, difference, shown
from vitx.images.pixels import Picture, to_pixels
from vitx.models.model import SCORES
from vitx.models.variants import Classifier
from vitx.relevance.explain import explain
from vitx.relevance.registry import REGISTRY
from vitx.report.figure import draw_overlay
from vitx.report.overlay import nothing_in

ASPECTS: Final = ("squash", "crop")
ACTIVATIONS: Final = {name: getattr(jax.nn, name) for name in SCORES}


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """The explanation of one image.

    Attributes:
        image: uint8 (H, W, 3), turned upright.
        maps: raw, float (K, h, w), one for each explained class, on the token grid or of pixels.
        classes: numbers of the explained classes; empty where another value was explained.
        logits: the model's output, float (C,).
        probabilities: of the classes, float (C,); empty for a model without a head.
        class_names: of all classes (C,).
        method: one of `vitx.METHODS`.
    """

    image: np.ndarray
    maps: np.ndarray
    classes: tuple[int, ...]
    logits: np.ndarray
    probabilities: np.ndarray
    class_names: tuple[str, ...]
    method: str

    @property
    def map(self) -> np.ndarray:
        """The raw map of the first class, (h, w)."""
        return self.maps[0]

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The `count` most probable classes, or all: name and probability, the most probable first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.class_names[number], float(self.probabilities[number])) for number in order]

    def titles(self) -> list[str]:
        """What each map explains, and by which method."""
        method = REGISTRY[self.method].title
        if not self.classes:
            return [method] * len(self.maps)
        return [
            f"{method}: {self.class_names[number]}, {100 * self.probabilities[number]:.1f} %"
            for number in self.classes
        ]

    def picture(self, **style: Any) -> Image.Image:
        """The overlays, one below the other, each with its title and a colour bar; `style` as in `vitx.overlay`."""
        drawn = [
            draw_overlay(self.image, map, title, **style)
            for map, title in zip(self.maps, self.titles(), strict=True)
        ]
        return Image.fromarray(np.concatenate(drawn))

    def show(self, **style: Any) -> None:
        """Opens the picture in the system's viewer, in a notebook below the cell; `style` as in `vitx.overlay`.

        Raises:
            RuntimeError: there is no viewer.
        """
        if not ImageShow.show(self.picture(**style)):
            raise RuntimeError("there is no program that shows pictures: use save('map.png')")

    def save(self, path: str | os.PathLike[str], **style: Any) -> None:
        """Writes the picture in the format of the path's suffix, such as .png or .jpg; `style` as in `vitx.overlay`.

        Raises:
            ValueError: the suffix is none that Pillow writes.
            OSError: the file cannot be written.
        """
        self.picture(**style).save(Path(path).expanduser())

    def _repr_png_(self) -> bytes:
        return encode_png(np.asarray(self.picture()))

    def __repr__(self) -> str:
        remarks = [
            f"{title}: map is {r}"
            for title, r in zip(self.titles(), self._remarks(), strict=True)
            if r
        ]
        height, width = self.image.shape[:2]
        explained = "; ".join([*self.titles(), *remarks])
        return f"Result({width} x {height} pixels, maps {self.maps.shape}: {explained})"

    def _remarks(self) -> list[str]:
        return [nothing_in(map) for map in self.maps]


def explain_image(
    model: Classifier,
    image: Picture,
    method: str = "transformer_attribution",
    classes: str | int | Sequence[str | int] | None = None,
    *,
    scores: str = "auto",
    aspect: str = "squash",
    **options: Any,
) -> Result:
    """Explains what a model sees in one picture.

    Args:
        model: a classifier; or, with a `target`, a backbone.
        image: a path, a file's bytes, a Pillow image, or uint8 (H, W, 3); of any size, it is resized to the model's.
        method: one of `vitx.METHODS` that the model has.
        classes: names or numbers, comma-separated or a sequence; None for the most probable class.
        scores: "softmax", or "sigmoid" for a model of several labels an image; "auto": the model's own `scores`, which
            files of `vitx train` have, else "softmax".
        aspect: "squash": the whole picture; "crop": the part that the checkpoint's own evaluation shows, of which the
            result's image and maps are. A warning says where the two differ.
        options: arguments of `vitx.explain`, such as `start_layer`, `rules` and `target`, which replaces the classes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: for an image that cannot be read, a class that the model does not have, or what `vitx.explain`
            refuses.
    """
    if scores not in (known := ("auto", *SCORES)):
        raise ValueError(f"scores must be one of {', '.join(known)}, not {scores!r}")
    if scores == "auto":
        scores = getattr(model, "scores", None) or SCORES[0]
    if aspect not in ASPECTS:
        raise ValueError(f"aspect must be one of {', '.join(ASPECTS)}, not {aspect!r}")
    if remark := difference(model.preprocess, aspect):
        warnings.warn(remark, stacklevel=2)
    pixels = seen = to_pixels(image)
    if aspect == "crop":
        pixels, seen = shown(pixels, model.preprocess), cropped(pixels, model.preprocess)
    batch = model.preprocess(seen).astype(model.dtype)
    names = output_names(model.num_classes, getattr(model, "class_names", None) or ())
    numbers = None
    if classes is not None:
        one = isinstance(classes, int | np.integer)
        numbers = find_classes([int(classes)] if one else classes, names)  # type: ignore[arg-type]
    wanted = None if numbers is None else np.array([numbers], np.int32)
    logits, maps = explain(model, batch, wanted, method, **options)
    if numbers is None:
        numbers = () if options.get("target") is not None else (int(logits[0].argmax()),)
    return Result(
        image=pixels,
        maps=np.asarray(maps).reshape(-1, *maps.shape[-2:]),
        classes=numbers,
        logits=np.asarray(logits[0]),
        probabilities=np.asarray(ACTIVATIONS[scores](logits[0])) if names else np.zeros(0),
        class_names=names,
        method=method,
    )
