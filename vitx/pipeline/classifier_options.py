"""Ranges of the options of stage `classifier`, and whether they fit its model."""

import math
import re
from typing import Any

from vitx.models.heads import HEADS
from vitx.models.tuning import kept_count
from vitx.models.variants import Classifier
from vitx.models.vit import VisionTransformer
from vitx.pipeline import training_stage
from vitx.pipeline.affinities import require_option
from vitx.runtime.options import BELOW_ONE, Wanted, number, whole


def _is_trainable(value: Any) -> bool:
    pattern = r"all|head|block\.[1-9]\d*|(conv|fc|layer)[1-9]"
    return isinstance(value, str) and bool(re.fullmatch(pattern, value))


def check_model(config: Any, model: Classifier) -> None:
    """Raises ValueError for options of the stage that the model does not have."""
    options, patches = config.classifier, math.prod(model.grid)
    if not isinstance(model, VisionTransformer):
        if options.token_dropout or options.trainable.startswith("block."):
            raise ValueError(
                "config.classifier.token_dropout and trainable=block.N are for Vision Transformers, not for a CNN"
            )
    elif options.dropout:
        raise ValueError("config.classifier.dropout is for CNNs, not for a Vision Transformer")
    if options.trainable not in ("all", "head"):
        require_option("classifier.trainable", [options.trainable], model)
    if not isinstance(model, VisionTransformer):
        return
    kept = kept_count(patches, options.token_dropout)
    if "best" in model.design.head and kept < model.design.best_patches:
        raise ValueError(
            f"config.classifier.best_patches {model.design.best_patches} must be at most the {kept} patches that "
            f"token_dropout={options.token_dropout:g} keeps of {patches}"
        )


OPTIONS = training_stage.ranges("classifier") | {
    "classifier.trainable": Wanted(
        _is_trainable, "all, head, or a block such as block.10; of a CNN a level such as conv3"
    ),
    "classifier.token_dropout": BELOW_ONE,
    "classifier.layer_decay": number(0, 1, above=True),
    "classifier.head": Wanted(
        lambda head: head in ("", *HEADS), f"empty, or one of {', '.join(HEADS)}"
    ),
    "classifier.best_patches": whole(1),
}
