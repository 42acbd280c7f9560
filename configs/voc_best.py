r"""Masks on PASCAL VOC 2012 with the classifier and seeds of `configs/voc.py`, and what made better masks elsewhere.

No run on VOC has measured it yet. Where it was tried (docs/performance.md, "Small images"), the similarity of the
classifier's own features made better masks than AffinityNet, so the walk follows it and AffinityNet is not trained.
Maps are divided by their maximum, with a constant background (IRN, Ahn et al., CVPR 2019). A weaker dense CRF follows
the walk. Options are chosen without masks, on 500 images of train, which the classifier was trained on too.

Run: as configs/voc.py, with --config configs/voc_best.py
"""

from ml_collections import ConfigDict

from configs import voc


def get_config() -> ConfigDict:
    """The options that differ from configs/voc.py."""
    config = voc.get_config()
    config.stages = "classifier,seeds,labels,masks,controls,report"
    config.classifier.compute = "auto"
    config.affinity.compute = "auto"
    config.labels.crf.iterations = 5
    config.labels.crf.sxy_bilateral = 40.0
    config.labels.crf.srgb = 10.0
    config.labels.crf.compat_bilateral = 4.0
    config.walk.affinity = "features"
    config.walk.levels = ("block.6", "block.9")
    config.walk.choose = "auto"
    config.walk.split = config.data.get_ref("train_split") + "[:500]"
    config.walk.pairs = "near"
    config.walk.background = "constant"
    config.walk.over_maximum = True
    config.walk.beta = (6.0, 3.0, 12.0)
    config.walk.log2_steps = (3, 1, 5)
    config.walk.threshold = (0.25, 0.2, 0.3, 0.4, 0.5)
    config.seeds.background = (0.2, 0.1, 0.15, 0.25, 0.3)
    config.masks.crf = dict(config.labels.crf)
    config.report.title = "image labels to masks"
    return config
