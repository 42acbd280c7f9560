"""Published figures of [Re] for ViT-Base, as fractions.

[Re]: Athanasiadis et al., ReScience C 2022, Tables 2 to 4. Its baselines are those of Chefer et al., CVPR 2021;
transformer attribution is its own run (Chefer et al. print 54.16, 55.04, 17.03, 16.04 and 79.70, 86.03, 61.95).
"""

from collections.abc import Mapping
from typing import Final

_PERTURBATION = ("negative_predicted", "negative_target", "positive_predicted", "positive_target")
_SEGMENTATION = ("pixel_accuracy", "map", "miou")


def _table(keys: tuple[str, ...], rows: dict[str, tuple[float | None, ...]]) -> dict:
    return {
        method: {key: x / 100 for key, x in zip(keys, row, strict=True) if x is not None}
        for method, row in rows.items()
    }


PUBLISHED: Final[Mapping[str, Mapping[str, Mapping[str, float]]]] = {
    "perturbation": _table(
        _PERTURBATION,
        {
            "rollout": (53.10, None, 20.05, None),
            "raw_attention": (45.55, None, 23.99, None),
            "gradcam": (41.52, 42.02, 34.06, 33.56),
            "lrp": (43.49, 43.49, 41.94, 41.93),
            "partial_lrp": (50.49, 50.49, 19.64, 19.64),
            "transformer_attribution": (54.13, 55.03, 17.03, 16.38),
        },
    ),
    "segmentation": _table(
        _SEGMENTATION,
        {
            "rollout": (73.54, 84.76, 55.42),
            "raw_attention": (67.84, 80.24, 46.37),
            "gradcam": (64.44, 71.60, 40.82),
            "lrp": (51.09, 55.68, 32.89),
            "partial_lrp": (76.31, 84.67, 57.94),
            "transformer_attribution": (79.73, 86.03, 62.01),
        },
    ),
}

# Table 4, with the hybrid ViT, on VOC 2012's val: mIoU.
PUBLISHED_MASKS: Final[Mapping[str, float]] = {"seeds": 0.4460, "masks": 0.5090}
