"""Trains the models of an experiment: classifier, seeds, labels, AffinityNet.

    python train.py --config configs/shapes.py --workdir runs/shapes [--config.key=value]

The same --workdir resumes. `evaluate.py` makes and scores the masks, and writes the report.
"""

from vitx.main import launch
from vitx.training.affinity import train_affinity
from vitx.training.classifier import train_classifier
from vitx.training.labels import make_labels
from vitx.training.preflight import preflight
from vitx.training.seeds import make_seeds

STAGES = {
    "classifier": train_classifier,
    "seeds": make_seeds,
    "labels": make_labels,
    "affinity": train_affinity,
}

if __name__ == "__main__":
    launch(STAGES, check=preflight)
