"""Trains the models of an experiment: classifier, seeds, labels, AffinityNet. The same as `vitx train`.

    python train.py --config configs/shapes.py --workdir runs/shapes [--config.key=value]

The same --workdir resumes. `evaluate.py` makes and scores the masks, and writes the report.
"""

from vitx.pipeline.stages import EVALUATE, TRAIN
from vitx.runtime.command_line import launch

if __name__ == "__main__":
    launch(TRAIN, after=EVALUATE)
