"""Evaluates: masks, a network that learns from them, the comparison of methods, the report.

It also explains images, scores any masks, and compares a checkpoint with PyTorch.

    python evaluate.py --config configs/shapes.py --workdir runs/shapes [--config.key=value]

The same --workdir resumes. The head of each config says how to use it. The same as `vitx evaluate`.
"""

from vitx.pipeline.stages import EVALUATE, TRAIN
from vitx.runtime.command_line import launch

if __name__ == "__main__":
    launch(EVALUATE, before=TRAIN)
