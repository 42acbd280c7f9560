"""Evaluates: masks, the comparison of methods, the report; explains images; compares a checkpoint with PyTorch.

    python evaluate.py --config configs/shapes.py --workdir runs/shapes [--config.key=value]

The same --workdir resumes. What each config gives stands at its head.
"""

from vitx.evaluation.masks import make_masks
from vitx.evaluation.methods import compare_methods
from vitx.evaluation.methods_pictures import write_gallery
from vitx.evaluation.own_images import explain_images
from vitx.evaluation.parity import compare_with_pytorch
from vitx.evaluation.preflight import preflight
from vitx.evaluation.summary import show_results, write_summary
from vitx.main import launch

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
