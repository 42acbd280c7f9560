"""Masks on PASCAL VOC 2012 from [Re]'s hybrid, whose seed maps get the treatment of psa's in `configs/voc_cam.py`.

Table 4 compares seed maps of four scales, divided by their maximum, with seed maps of one scale and min-max, and walks
with other constants. Here only the backbone, its training and its method differ from configs/voc_cam.py, so that the
two runs compare these.

Run: as configs/voc.py, with --config configs/voc_alike.py
"""

from ml_collections import ConfigDict

from configs import voc, voc_cam


def get_config() -> ConfigDict:
    """The options that differ from configs/voc.py."""
    config = voc.get_config()
    config.stages = "classifier,seeds,labels,affinity,masks,segmenter,report"
    del config.controls
    voc_cam.treat(config)
    config.report.title = "image labels to masks, treated as in psa"
    return config
