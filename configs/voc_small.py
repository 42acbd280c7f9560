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
    config.classifier.epochs = 12
    config.seeds.train_split = train()
    config.labels.backend = "jax"
    config.affinity.train_split = train()
    config.affinity.val_split = val()
    config.affinity.epochs = 8
    config.walk.split = train("[:15%]")

    config.report.title = "image labels to masks"
    return config
