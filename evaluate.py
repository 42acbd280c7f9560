"""Evaluates an experiment that `train.py` trained: masks, comparison of methods, report.

    python evaluate.py --config configs/shapes.py --workdir runs/shapes [--config.key=value]

The same --workdir resumes. Results: `results.json` and `report.html` in the workdir.
"""

from vitx.evaluation.masks import make_masks
from vitx.evaluation.methods import compare_methods
from vitx.evaluation.methods_pictures import write_gallery
from vitx.evaluation.summary import show_results, write_summary
from vitx.main import launch

STAGES = {
    "masks": make_masks,
    "methods": compare_methods,
    "report": write_summary,
    "gallery": write_gallery,
}

if __name__ == "__main__":
    launch(STAGES, finish=show_results)
