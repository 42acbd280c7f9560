r"""Masks for a few hundred images with image labels, from a pretrained DINOv2 whose last blocks alone are trained.

No run has measured it yet. DINOv2-B/14 is Oquab et al., TMLR 2024. Its classifier reads the class token and the best
patches of each class. The last three blocks learn, at rates that fall from layer to layer, on half of the patches in
each step. The walk follows the model's own features, so AffinityNet is not trained: to train it on several blocks, add
    --config.stages=classifier,seeds,labels,affinity,masks,controls,report --config.walk.affinity=affinitynet
Seed maps are by the rules that cannot cancel. Without masks the options are chosen by the features (`walk.choose`).

Run:
    data="--config.data.root=DIR --config.data.classes=CLASSES --config.model.checkpoint=FILE"
    python train.py    --config configs/voc_dinov2.py $data --workdir runs/dinov2
    python evaluate.py --config configs/voc_dinov2.py $data --workdir runs/dinov2

    DIR and CLASSES are as for configs/voc_small.py (docs/data.md). FILE is timm's vit_base_patch14_dinov2.lvd142m or
    Hugging Face's facebook/dinov2-base; another size of DINOv2, or another model without a stem, goes too: choose
    blocks that it has. VOC 2012 itself needs no CLASSES.
"""

from ml_collections import ConfigDict

from configs import voc_best


def get_config() -> ConfigDict:
    """The options that differ from configs/voc_best.py."""
    config = voc_best.get_config()
    config.data.train_split = "train"
    config.walk.split = config.data.get_ref("train_split") + "[:100]"

    config.model.name = "vit_base_patch14_dinov2"
    config.model.image_size = 448  # 32 x 32 patches of 14 pixels

    config.classifier.head = "pooled+best"
    config.classifier.trainable = "block.10"
    config.classifier.layer_decay = 0.75
    config.classifier.token_dropout = 0.5
    config.classifier.epochs = 15
    config.classifier.batch_size = 16
    config.classifier.optimizer = "adamw"
    config.classifier.learning_rate = 5e-4
    config.classifier.weight_decay = 0.05
    config.classifier.decay_norms_and_biases = False
    config.classifier.clip_norm = 1.0
    config.classifier.warmup_epochs = 1

    config.seeds.rules = "stable"
    config.affinity.levels = ("block.3", "block.6", "block.9")
    config.affinity.train_backbone = False
    config.segmenter.levels = ("block.3", "block.6", "block.9", "block.12")
    config.segmenter.backbone_rate = 0.0  # only the head learns, as in DINOv2's own evaluation
    config.walk.levels = ("block.9", "block.10")
    config.report.title = "image labels to masks, from DINOv2"
    return config
