"""Trains the models of an experiment: classifier, seeds, labels, AffinityNet.

    python train.py --config configs/shapes.py --workdir runs/shapes [--config.key=value]

The same --workdir resumes. `evaluate.py` makes and scores the masks, and writes the report.
"""

from vitx.pipeline.affinity import train_affinity
from vitx.pipeline.classifier import train_classifier
from vitx.pipeline.labels import make_labels
from vitx.pipeline.preflight import preflight
from vitx.pipeline.seeds import make_seeds
from vitx.runtime.command_line import launch

STAGES = {
    "classifier": train_classifier,
    "seeds": make_seeds,
    "labels": make_labels,
    "affinity": train_affinity,
}

if __name__ == "__main__":
    launch(STAGES, check=preflight)
