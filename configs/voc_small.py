r"""The stages of `configs/voc.py` with a small hybrid from scratch, for small images on two cores.

Run:
    data="--config.data.root=DIR --config.data.classes=FILE"
    python train.py    --config configs/voc_small.py $data --workdir runs/small
    python evaluate.py --config configs/voc_small.py $data --workdir runs/small

    DIR has the folders JPEGImages, Annotations, ImageSets and SegmentationClass, FILE one class a line, "background"
    first (docs/data.md).

The model sees images squashed to 48 x 48, the dense CRF at their own size. Where a part of train has masks, they choose
the walk's options.
"""

from ml_collections import ConfigDict

from configs import shapes


def get_config() -> ConfigDict:
    """As for shapes, but for the data and the size."""
    config = shapes.get_config()
    config.stages = "classifier,seeds,labels,affinity,masks,report"
    del config.methods

    config.data.name = "voc_segmentation"
    config.data.classes = ""
    config.data.train_split = "train"
    config.data.val_split = "val"
    train, val = (
        shapes.followed(config.data, "train_split"),
        shapes.followed(config.data, "val_split"),
    )

    config.classifier.train_split = train()
    config.classifier.val_split = val()  # chooses the checkpoint, as in voc
    config.classifier.epochs = 12
    config.seeds.train_split = train()
    config.labels.backend = "jax"
    config.affinity.train_split = train()
    config.affinity.val_split = val()
    config.affinity.epochs = 8
    config.walk.split = train("[:15%]")

    config.report.title = "image labels to masks"
    return config
