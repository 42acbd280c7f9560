r"""The stages of `configs/voc.py` with a small hybrid trained from scratch, for small images on two cores.

Run:
    data="--config.data.root=DIR --config.data.classes=FILE"
    python train.py    --config configs/voc_small.py $data --workdir runs/small
    python evaluate.py --config configs/voc_small.py $data --workdir runs/small

    DIR has the folders JPEGImages, Annotations, ImageSets and SegmentationClass. FILE has one class per line,
    "background" first (docs/data.md).

The model sees images squashed to 48 x 48, the dense CRF at their own size. The masks of the first 15 % of train, if
there are any, choose the walk's options.
"""

from ml_collections import ConfigDict

from configs import shapes


def get_config() -> ConfigDict:
    """Options of shapes, with data in VOC's layout and more epochs."""
    config = shapes.get_config()
    config.stages = "classifier,seeds,labels,affinity,masks,controls,report"
    del config.methods

    config.data.name = "voc_segmentation"
    config.data.classes = ""
    config.data.train_split = "train"
    config.data.val_split = "val"
    train = shapes.reference(config.data, "train_split")
    val = shapes.reference(config.data, "val_split")

    config.classifier.train_split = train()
    config.classifier.val_split = val()  # chooses the checkpoint, as in voc.py
    config.classifier.epochs = 20
    config.seeds.train_split = train()
    config.labels.backend = "jax"
    config.labels.alpha_low = 2.0
    config.labels.alpha_high = 8.0
    # The widths of both CRFs are in pixels of the images: these suit 72 x 96 (docs/performance.md, "Small images").
    config.labels.crf.sxy_bilateral = config.masks.crf.sxy_bilateral = 12.0
    config.segmenter.crf.sxy_bilateral, config.segmenter.crf.srgb = 12.0, 15.0
    config.labels.crf.srgb = config.masks.crf.srgb = 15.0
    config.affinity.train_split = train()
    config.affinity.val_split = val()
    config.affinity.epochs = 6
    config.segmenter.train_split = train("[15%:]")
    config.segmenter.val_split = train("[:15%]")
    config.walk.split = train("[:15%]")
    config.walk.start = "crf"
    config.walk.beta = (8.0, 4.0)
    config.walk.log2_steps = (1, 3)
    config.walk.threshold = (0.3, 0.1, 0.2, 0.4, 0.5)

    config.report.title = "image labels to masks"
    config.report.note = ""
    return config
