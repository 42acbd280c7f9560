"""The part of a picture that a checkpoint's own evaluation shows its model, resized as there."""

import math
from typing import Protocol

import numpy as np
from PIL import Image

from vitx.images.pixels import resize_image

Size = tuple[int, int]


class Evaluation(Protocol):
    """How a picture becomes a model's input, see `vitx.models.design.Preprocess`."""

    @property
    def size(self) -> Size: ...  # noqa: D102

    @property
    def interpolation(self) -> str: ...  # noqa: D102

    @property
    def crop_mode(self) -> str: ...  # noqa: D102

    @property
    def crop_pct(self) -> float: ...  # noqa: D102


def resized(image: np.ndarray, size: Size, evaluation: Evaluation) -> np.ndarray:
    """A whole picture, uint8 (H, W, 3), squashed to `size` (h, w) by the evaluation's interpolation."""
    return resize_image(image, size, Image.Resampling[evaluation.interpolation.upper()])


def cropped(image: np.ndarray, evaluation: Evaluation) -> np.ndarray:
    """A picture, uint8 (H, W, 3), as the model's own evaluation shows it, (h, w, 3) of its input size.

    As in timm and torchvision: the picture is resized, so that its shorter side (or with `crop_mode` "squash" both
    sides) is the input's / `crop_pct`, and the input is the middle of it.
    """
    whole = _whole(image.shape[:2], evaluation)
    top, left = _corner(whole, evaluation.size)
    height, width = evaluation.size
    return resized(image, whole, evaluation)[top : top + height, left : left + width]


def shown(image: np.ndarray, evaluation: Evaluation) -> np.ndarray:
    """The part of a picture (H, W, 3) that `cropped` shows, at its own resolution."""
    whole = _whole(image.shape[:2], evaluation)
    corners = zip(
        _corner(whole, evaluation.size), evaluation.size, whole, image.shape, strict=False
    )
    rows, columns = (_part(first, some, of, side) for first, some, of, side in corners)
    return image[rows, columns]


def _part(first: int, count: int, of: int, side: int) -> slice:
    """`count` pixels of `of`, from the first, as those of a side of another length; at least one."""
    start = min(round(first * side / of), side - 1)
    return slice(start, max(round((first + count) * side / of), start + 1))


def difference(evaluation: Evaluation, aspect: str, interpolation: str = "") -> str:
    """How the input of an `aspect` differs from that of the checkpoint's own evaluation; "" where it does not.

    It is resized by an `interpolation`, or with "" by the evaluation's own.
    """
    parts, own = [], (evaluation.crop_mode, evaluation.crop_pct)
    if interpolation not in ("", evaluation.interpolation):
        parts.append(f"resizes by {evaluation.interpolation} interpolation, here {interpolation}")
    if aspect != "crop" and own != ("squash", 1.0):
        how = "squashed" if evaluation.crop_mode == "squash" else "kept in their aspect"
        share = "" if evaluation.crop_pct == 1 else f" {evaluation.crop_pct:.4g}"
        parts.append(
            f"shows the middle{share} of pictures that are {how}; here they are shown whole "
            f"(aspect={aspect}), and aspect=crop shows what it shows"
        )
    return f"the checkpoint's own evaluation {', and '.join(parts)}" if parts else ""


def _whole(image_size: tuple[int, ...], evaluation: Evaluation) -> Size:
    """The size (H, W) of the resized picture that the input is the middle of."""
    # 224 / (224 / 256) must not become 255.
    height, width = (math.floor(n / evaluation.crop_pct + 1e-6) for n in evaluation.size)
    if evaluation.crop_mode == "squash":
        return height, width
    scale = max(height / image_size[0], width / image_size[1])
    sides = [max(int(n * scale + 1e-6), 1) for n in image_size[:2]]
    return max(sides[0], height), max(sides[1], width)


def _corner(whole: Size, size: Size) -> Size:
    """Top and left of the middle, rounded as torchvision does."""
    top, left = (round((n - m) / 2) for n, m in zip(whole, size, strict=True))
    return top, left
