"""Trains the models of an experiment: classifier, seeds, labels, AffinityNet.

    python train.py --config configs/shapes.py --workdir runs/shapes [--config.key=value]

The same --workdir resumes. `evaluate.py` makes and scores the masks, and writes the report.
"""

from vitx.pipeline import affinity, classifier, labels, seeds
from vitx.runtime.command_line import launch
from vitx.runtime.experiment import Stage

STAGES: tuple[Stage, ...] = (
    classifier.STAGE,
    seeds.STAGE,
    labels.STAGE,
    affinity.STAGE,
)

if __name__ == "__main__":
    import evaluate

    launch(STAGES, after=evaluate.STAGES)
