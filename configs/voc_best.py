r"""Masks on PASCAL VOC 2012 as in `configs/voc.py`, with what made better masks where it was tried (docs/protocol.md).

No run on VOC has measured it yet. AffinityNet reads several levels of the classifier. The walk joins all near pairs.
Maps are divided by their maximum, with a constant background (IRN, Ahn et al., CVPR 2019). Weaker dense CRFs make the
labels and follow the walk. Options are chosen without masks.

Run: as configs/voc.py, with --config configs/voc_best.py
"""

from ml_collections import ConfigDict

from configs import voc


def get_config() -> ConfigDict:
    """The options that differ from configs/voc.py."""
    config = voc.get_config()
    config.labels.crf.iterations = 5
    config.labels.crf.sxy_bilateral = 40.0
    config.labels.crf.srgb = 10.0
    config.labels.crf.compat_bilateral = 4.0
    config.affinity.levels = ("stem.1", "stem.2", "stem.3", "block.6")
    config.affinity.pairs = "near"
    config.walk.choose = "auto"
    config.walk.split = config.data.get_ref("train_split") + "[:500]"
    config.walk.pairs = "near"
    config.walk.background = "constant"
    config.walk.over_maximum = True
    config.walk.beta = (8.0, 4.0, 16.0)
    config.walk.log2_steps = (4, 2, 6)
    config.walk.threshold = (0.25, 0.2, 0.3, 0.4, 0.5)
    config.seeds.background = (0.2, 0.1, 0.15, 0.25, 0.3)
    config.masks.crf = dict(config.labels.crf)
    config.report.title = "image labels to masks"
    return config
