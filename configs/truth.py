"""Which explanation finds the cause? Methods and scores judged on pictures whose label has a known cause.

In half of the pictures of `planted` a faint watermark decides the class, in the others an object; a distractor is
beside them. A small hybrid ViT learns the classes, and the maps of the methods are compared: "energy inside" is the
share of a map on the cause, and each other score says who it believes to be best. `python -m benchmarks.truth` runs
five trainings and ranks methods by the truth, and scores by their agreement with it.

Run:
    python train.py    --config configs/truth.py --workdir runs/truth
    python evaluate.py --config configs/truth.py --workdir runs/truth

Run time: minutes on two cores.
"""

from ml_collections import ConfigDict

from configs import shapes
from vitx.evaluation.scores import SCORES
from vitx.relevance.explain import METHODS

# Minutes each; and what only a model with a pooled linear head has.
_LEFT_OUT = ("rise", "smoothgrad", "beyond_intuition_head", "beyond_intuition_token", "cam")


def get_config() -> ConfigDict:
    """Options of `shapes`, of the stages that are run here."""
    config = shapes.get_config()
    for stage in ("seeds", "labels", "affinity", "walk", "masks", "controls"):
        del config[stage]
    config.stages = "classifier,methods,report"
    config.data.name = "planted"

    config.classifier.train_split = "train[:5600]"
    config.classifier.val_split = "train[5600:]"
    config.classifier.epochs = 4
    config.classifier.jitter = (0.0, 0.0, 0.0, 0.0)  # would blur a watermark
    config.classifier.flip = False  # a watermark has an orientation

    config.methods.split = ""  # data.val_split
    config.methods.images = 34  # every third of 100: each second one has a watermark
    config.methods.compared = tuple(name for name in METHODS if name not in _LEFT_OUT)
    config.methods.explained = ("target",)
    config.methods.measures = ("perturbation", "segmentation")
    config.methods.scores = tuple(name for name in SCORES if name != "road")

    config.report.title = "which explanation finds the cause"
    config.report.summary = (
        "Every label has a known cause, a watermark or an object. Energy inside is the share of a "
        "map on the cause."
    )
    config.report.note = "These are figures of one training; benchmarks/truth.py has five."
    return config
