r"""Table 4, the columns CAM [VGG-16] and AffinityNet [VGG-16]: image labels to masks on PASCAL VOC 2012, as in psa.

Learning Pixel-level Semantic Affinity with Image-level Supervision (Ahn & Kwak, CVPR 2018); psa is its code,
github.com/jiwoon-ahn/psa. docs/protocol.md, "The CNN columns of Table 4", lists every setting, and what differs.

Run:
    options="--config.data.root=DIR --config.model.checkpoint=FILE"
    python train.py    --config configs/voc_cam.py $options --workdir runs/voc_cam
    python evaluate.py --config configs/voc_cam.py $options --workdir runs/voc_cam

    DIR is as for configs/voc.py. FILE is a VGG-16 trained on ImageNet: torchvision's, or the Caffe one that psa begins
    with. psa's own trained weights take the place of training: docs/published.md.

mIoU on val in percent, as printed by psa: seeds 46.60, refined masks 54.00 (train: 48.9 and 59.6). The network of stage
`segmenter` is not psa's. psa meant a momentum of 0.9, and ran one of 5e-4:
    --config.classifier.momentum=5e-4 --config.affinity.momentum=5e-4

configs/voc_alike.py gives [Re]'s hybrid the same treatment.
"""

from ml_collections import ConfigDict

from configs import voc
from vitx.models.vgg import AFFINITY_LEVELS


def get_config() -> ConfigDict:
    """The options that differ from configs/voc.py."""
    config = voc.get_config()
    config.stages = "classifier,seeds,labels,affinity,masks,segmenter,report"
    del config.controls
    config.model.name = "vgg16_cam"

    for stage in (config.classifier, config.affinity):
        stage.optimizer = "sgd"
        stage.learning_rate = 0.1
        stage.schedule = "poly"
        stage.weight_decay = 5e-4
        stage.decay_norms_and_biases = False
        stage.new_rate = 10.0
        stage.bias_rate = 2.0
        stage.trainable = "conv3"
        stage.dropout = True
    config.classifier.epochs = 15
    config.classifier.batch_size = 16
    config.classifier.long_side = (256, 512)

    config.affinity.epochs = 8
    config.affinity.batch_size = 8
    config.affinity.long_side = (
        500,
        500,
    )  # that of VOC's images: they are cropped, and not resized
    config.affinity.epsilon = 1e-5
    config.affinity.levels = AFFINITY_LEVELS
    config.affinity.features = 448

    config.seeds.method = "cam"
    treat(config)
    config.walk.levels = ("conv4", "fc7")
    config.segmenter.levels = ("conv3", *AFFINITY_LEVELS)
    config.report.title = "image labels to masks with VGG-16 (Table 4)"
    return config


def treat(config: ConfigDict) -> None:
    """Gives seed maps psa's treatment, from raw maps to masks."""
    config.seeds.own_size = True
    config.seeds.scales = (1.0, 0.5, 1.5, 2.0)
    config.seeds.root = 2
    config.seeds.normalise = "maximum"
    config.seeds.background = (0.2,)
    config.labels.alpha_low = 4.0
    config.labels.alpha_high = 32.0
    config.walk.beta = (8.0,)
    config.walk.log2_steps = (8,)
    config.walk.alpha = (16.0,)
