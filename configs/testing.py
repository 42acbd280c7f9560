"""The stages of `configs/shapes.py`, so small that a test runs them all; the masks are meaningless.

Run:
    python train.py    --config configs/testing.py --workdir runs/testing
    python evaluate.py --config configs/testing.py --workdir runs/testing
"""

from ml_collections import ConfigDict

from configs import shapes


def get_config() -> ConfigDict:
    """Options for 24 images, 2 epochs and a grid of 12."""
    config = shapes.get_config()
    config.data.name = "shapes/tiny"
    config.model.name = "vit_test_conv_s4_48"
    config.classifier.train_split = "train[:16]"
    config.classifier.val_split = "train[16:]"
    config.classifier.epochs = 2
    config.classifier.batch_size = 8
    config.seeds.train_split = "train[:16]"
    config.seeds.batch_size = 6
    config.affinity.train_split = "train[:8]"
    config.affinity.val_split = "train[8:16]"
    config.affinity.epochs = 2
    config.affinity.batch_size = 8
    config.affinity.grid = 12
    config.walk.split = "train[8:16]"
    config.walk.beta = (4.0, 16.0)
    config.walk.log2_steps = (2,)
    config.affinity.features = 32
    config.affinity.levels = ("stem.1", "stem.2", "block.1")
    config.walk.threshold = (0.5, 0.3)
    config.controls.arms = ("no_walk", "uniform")
    config.segmenter.train_split = "train[:8]"
    config.segmenter.val_split = "train[8:16]"
    config.segmenter.levels = ("stem.1", "block.1")
    config.segmenter.hidden = 32
    config.segmenter.epochs = 2
    config.segmenter.batch_size = 8
    config.methods.images = 5
    config.methods.compared = (
        "rollout",
        "gradcam",
        "transformer_attribution",
        "transformer_attribution/stable",
    )
    config.methods.batch_size = 3
    config.report.images = 2
    config.report.extremes = 1
    config.report.note = ""
    return config
