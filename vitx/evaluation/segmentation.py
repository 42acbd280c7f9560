"""Scores of explanation maps as foreground masks (docs/protocol.md, "ImageNet-Segmentation (Table 3)")."""

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from vitx.data.palette import IGNORED
from vitx.data.transforms import resize_maps
from vitx.evaluation.metrics import SegmentationCounts, segmentation_counts


def method_scores(
    maps: ArrayLike,
    masks: ArrayLike,
    *,
    threshold: float | None = None,
) -> SegmentationCounts:
    """Scores one batch of explanation maps as foreground masks.

    The maps are upsampled to the masks' size (bilinear, half-pixel centres); `segmentation_counts`
    does the rest.

    Args:
        maps: (B, h, w) raw maps, on the token grid or in pixels.
        masks: (B, H, W) foreground 1, background 0, -1 or 255 ignored, as from `foreground_masks`.
        threshold: of the foreground, in [0, 1]; None: the map's mean.

    Returns:
        One row for each image; `SegmentationCounts.concatenate(...).scores()` are the figures of a set.

    Raises:
        ValueError: the batch sizes differ, a map is not finite, or a mask has another value.
    """
    masks, raw = np.asarray(masks), np.asarray(maps)
    if raw.ndim != 3 or masks.ndim != 3 or len(raw) != len(masks):
        raise ValueError(
            f"maps {raw.shape} and masks {masks.shape} must be (B, h, w), (B, H, W) of one batch"
        )
    resized = np.asarray(resize_maps(jnp.asarray(raw), masks.shape[1:]))  # (B, H, W)
    return segmentation_counts(resized, masks, threshold)


def foreground_masks(masks: ArrayLike, classes: ArrayLike | None = None) -> np.ndarray:
    """Class masks (B, H, W) with 255 ignored -> foreground masks int16 (B, H, W): 0, 1, -1 ignored.

    Args:
        masks: of class indices, background 0.
        classes: (B,) mask classes that count as foreground; by default every class but background
            does.
    """
    masks = np.asarray(masks).astype(np.int16)
    wanted = masks > 0 if classes is None else masks == np.asarray(classes, np.int16)[:, None, None]
    return np.where(masks == IGNORED, np.int16(-1), wanted.astype(np.int16))
