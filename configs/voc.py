r"""Table 4: image labels to masks on PASCAL VOC 2012, with a hybrid ViT-Base/R50 at 448 x 448.

[Re] Weakly-Supervised Semantic Segmentation via Transformer Explainability (Athanasiadis et al., ReScience C 2022),
Table 4; AffinityNet is Ahn & Kwak, CVPR 2018. docs/protocol.md describes every setting.

Run:
    python train.py    --config configs/voc.py --config.data.root=DIR --config.model.checkpoint=FILE --workdir runs/voc
    python evaluate.py --config configs/voc.py --config.data.root=DIR --config.model.checkpoint=FILE --workdir runs/voc

    DIR has VOCdevkit/VOC2012 or its tar, and SBD (docs/tables.md). FILE is a pretrained hybrid, such as timm's
    vit_base_r50_s16_384; its head is replaced.

Your own images in VOC's layout:
    --config.data.classes=FILE --config.data.train_split=train; FILE has one class per line, "background" first.
    Images without masks get refined masks too, but no scores.

mIoU on val in percent, as printed by [Re]: seeds 44.60, refined masks 50.90. An image's classes come from its
ground-truth label, on val too. The loss on val chooses the checkpoints. --config.model.final_norm_eps=1e-5 gives the
final norm the epsilon of [Re]'s code.

Run time: docs/performance.md.
"""

from ml_collections import ConfigDict

from configs import shapes


def get_config() -> ConfigDict:
    """The published settings; `--config.key=value` changes one."""
    config = shapes.get_config()
    config.stages = "classifier,seeds,labels,affinity,masks,controls,segmenter,report"
    del config.methods

    config.data.name = "voc_segmentation"
    config.data.classes = ""  # a file of class names, for your own data; "": VOC's 21
    config.data.train_split = "train_aug"
    config.data.val_split = "val"
    # Loader processes, at most four per core, or 16. docs/performance.md shows how many a device needs.
    config.data.workers = 8
    train = shapes.reference(config.data, "train_split")
    val = shapes.reference(config.data, "val_split")

    config.model.name = "vit_base_r50_s16_224"
    config.model.image_size = 448

    jitter = (0.3, 0.3, 0.3, 0.1)
    config.classifier.train_split = train()
    config.classifier.val_split = val()
    config.classifier.epochs = 20
    config.classifier.batch_size = 8
    config.classifier.optimizer = "sgd"
    config.classifier.learning_rate = 5e-3
    config.classifier.weight_decay = 1e-4
    config.classifier.clip_norm = 0.0
    config.classifier.warmup_epochs = 0
    config.classifier.compute = "float32"
    config.classifier.jitter = jitter

    config.seeds.train_split = train()
    config.seeds.batch_size = 8

    config.labels.backend = "jax"
    config.labels.alpha_low = 4.0
    config.labels.alpha_high = 32.0
    config.labels.crf.iterations = 10
    config.labels.crf.sxy_bilateral = 80.0
    config.labels.crf.srgb = 13.0
    config.labels.crf.compat_bilateral = 10.0
    config.affinity.grid = 56
    config.affinity.pairs = "published"
    config.affinity.levels = ()

    config.affinity.train_split = train()
    config.affinity.val_split = val()
    config.affinity.epochs = 7
    config.affinity.compute = "float32"
    config.affinity.batch_size = 8
    config.affinity.learning_rate = 0.1
    config.affinity.jitter = jitter
    config.affinity.features = 512

    config.walk.split = train()
    # Of several values in a tuple, the best one is used, see `walk.choose`.
    config.seeds.background = (0.2,)
    config.walk.pairs = "published"
    config.walk.background = "walked"
    config.walk.over_maximum = False
    config.walk.beta = (16.0,)
    config.walk.log2_steps = (8,)
    config.walk.alpha = (4.0,)
    config.walk.levels = ("stem.3", "block.6")
    config.masks.crf.iterations = 0

    # Not published, and not run yet: SGD, poly and a faster head as in DeepLab. Masks of val know its labels, so none
    # chooses the checkpoint.
    config.segmenter.train_split = train("[5%:]")
    config.segmenter.val_split = train("[:5%]")
    config.segmenter.levels = ("stem.1", "stem.2", "stem.3", "block.12")
    config.segmenter.hidden = 256
    config.segmenter.crf = ConfigDict(config.labels.crf.to_dict() | {"iterations": 0})
    config.segmenter.warmup_epochs = 0
    config.segmenter.backbone_rate = 0.1
    config.segmenter.robustness = 0.0
    config.segmenter.epochs = 20
    config.segmenter.batch_size = 16
    config.segmenter.optimizer = "sgd"
    config.segmenter.learning_rate = 1e-2
    config.segmenter.weight_decay = 1e-4
    config.segmenter.clip_norm = 0.0
    config.segmenter.jitter = jitter
    config.segmenter.scale = (0.5, 2.0)

    config.report.title = "image labels to masks (Table 4)"
    config.report.published = True  # show the paper's figures too, if the classes are VOC's
    config.report.note = ""
    return config
