"""Evaluates: masks, a network that learns from them, the comparison of methods, the report.

It also explains images, scores any masks, and compares a checkpoint with PyTorch.

    python evaluate.py --config configs/shapes.py --workdir runs/shapes [--config.key=value]

The same --workdir resumes. The head of each config says how to use it.
"""

import train
from vitx.pipeline import (
    compare,
    controls,
    explain,
    gallery,
    masks,
    methods,
    report,
    score,
    segmenter,
)
from vitx.runtime.command_line import launch
from vitx.runtime.experiment import Stage

STAGES: tuple[Stage, ...] = (
    masks.STAGE,
    controls.STAGE,
    segmenter.STAGE,
    methods.STAGE,
    report.STAGE,
    gallery.COMMAND,
    explain.COMMAND,
    compare.COMMAND,
    score.COMMAND,
)

if __name__ == "__main__":
    launch(STAGES, before=train.STAGES)
