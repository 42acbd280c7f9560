"""Evaluates: masks, the comparison of methods, the report; explains images; compares a checkpoint with PyTorch.

    python evaluate.py --config configs/shapes.py --workdir runs/shapes [--config.key=value]

The same --workdir resumes. What each config gives stands at its head.
"""

from vitx.pipeline.compare import compare_with_pytorch
from vitx.pipeline.explain import explain_images
from vitx.pipeline.gallery import write_gallery
from vitx.pipeline.masks import make_masks
from vitx.pipeline.methods import compare_methods
from vitx.pipeline.preflight_methods import preflight
from vitx.pipeline.report import show_results, write_summary
from vitx.runtime.command_line import launch

STAGES = {
    "masks": make_masks,
    "methods": compare_methods,
    "report": write_summary,
    "gallery": write_gallery,
    "explain": explain_images,
    "parity": compare_with_pytorch,
}

if __name__ == "__main__":
    launch(STAGES, finish=show_results, check=preflight)
