r"""Table 3: explanation maps as foreground masks, [Re]'s methods on ImageNet-Segmentation (4,276 images).

[Re] Weakly-Supervised Semantic Segmentation via Transformer Explainability (Athanasiadis et al., ReScience C 2022),
Table 3; protocol of Chefer, Gur, Wolf (CVPR 2021). docs/protocol.md describes every setting.

Run:
    python evaluate.py --config configs/imagenet_segmentation.py --config.model.checkpoint=FILE \
        --config.data.root=DIR --workdir runs/segmentation

    DIR/downloads/manual holds gtsegs_ijcv.mat.
    --config.limit=64: a quick look.

Percent as printed by [Re], with the weights of Table 2:

    pixel accuracy   rollout 73.54  raw 67.84  GradCAM 64.44  LRP 51.09  partial LRP 76.31  attribution 79.73
    mAP              rollout 84.76  raw 80.24  GradCAM 71.60  LRP 55.68  partial LRP 84.67  attribution 86.03
    mIoU             rollout 55.42  raw 46.37  GradCAM 40.82  LRP 32.89  partial LRP 57.94  attribution 62.01

Run time: minutes on one H100, 5 hours on two cores (estimated, docs/performance.md).
"""

from ml_collections import ConfigDict

from configs import imagenet_perturbation


def get_config() -> ConfigDict:
    """Options of Table 2, with the data and measures of Table 3; only the predicted class is explained."""
    config = imagenet_perturbation.get_config()
    config.data.name = "imagenet_segmentation"
    config.data.val_split = "test"
    config.methods.explained = ("predicted",)
    config.methods.measures = ("segmentation",)
    config.report.title = "explanation methods by segmentation"
    config.report.summary = "The maps of the predicted class as masks of the object."
    return config
