"""The heads that a backbone may get for classes of your own."""

from dataclasses import replace
from typing import Final

from vitx.models.design import Design

_BEST_PATCHES: Final = 8
HEADS: Final = ("pooled", "class+mean", "best", "pooled+best")


def with_head(
    design: Design, head: str, num_classes: int, best_patches: int | None = None
) -> Design:
    """The design with a new linear head for `num_classes` classes.

    Args:
      design: of the backbone.
      head: "pooled": on the pooled output. "class+mean": on the class token and the mean of the patches side by side,
        as DINOv2's linear classifiers. "best": on each patch; a class's logit is the mean over its `best_patches` best
        patches. "pooled+best": the mean of the first and the third.
      num_classes: at least 1.
      best_patches: at least 1; default: the design's own where its head is of this kind, else 8.

    Raises:
      ValueError: for an unknown head, no classes, or "class+mean" where there is no class token.
    """
    if head not in HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)}, not {head!r:.100}")
    if not num_classes:
        raise ValueError(f"head {head!r} needs num_classes, the number of classes")
    if head == "class+mean":
        if not design.class_token:
            raise ValueError(
                'head "class+mean" needs a class token, which this model does not have'
            )
        return replace(design, pooling=head, pooled_norm=False, projection=0, head="pooled")
    if best_patches is None:
        best_patches = design.best_patches if head == design.head else _BEST_PATCHES
    return replace(design, head=head, best_patches=1 if head == "pooled" else best_patches)
