r"""Table 2: accuracy while relevant or irrelevant pixels are removed; [Re]'s methods on ImageNet's validation images.

[Re] Weakly-Supervised Semantic Segmentation via Transformer Explainability (Athanasiadis et al., ReScience C 2022),
Table 2; protocol of Chefer, Gur, Wolf (CVPR 2021). docs/protocol.md describes every setting.

Run:
    python evaluate.py --config configs/imagenet_perturbation.py --config.model.checkpoint=FILE \
        --config.data.root=DIR --workdir runs/perturbation

    DIR has the validation images in class folders, or all in DIR/val, or the tar in DIR/downloads/manual.
    --config.limit=512: a quick look.
    --config.data.name=folder --config.data.val_split=all: your own class folders, as many as the model has outputs.

AUC in percent as printed by [Re], with the papers' weights, timm's jx_vit_base_p16_224-80ecf9dd.pth (others, such as
augreg, have other accuracies):

    negative, predicted   rollout 53.10  raw 45.55  GradCAM 41.52  LRP 43.49  partial LRP 50.49  attribution 54.13
    negative, target      rollout   -    raw   -    GradCAM 42.02  LRP 43.49  partial LRP 50.49  attribution 55.03
    positive, predicted   rollout 20.05  raw 23.99  GradCAM 34.06  LRP 41.94  partial LRP 19.64  attribution 17.03
    positive, target      rollout   -    raw   -    GradCAM 33.56  LRP 41.93  partial LRP 19.64  attribution 16.38

Accuracy of the unperturbed model: 80.3 or 80.8 % in published runs.

Run time: about 2 hours on one H100, 15 minutes on eight (estimated, docs/performance.md).
"""

from ml_collections import ConfigDict

from vitx.evaluation.perturbation import DIRECTIONS, FRACTIONS
from vitx.relevance.methods import TABLE_METHODS


def get_config() -> ConfigDict:
    """Every option of the run; `--config.key=value` changes one."""
    config = ConfigDict()
    config.stages = "methods,report"
    config.on_bad_image = "stop"  # or "skip": leave out files that cannot be read, and name them
    config.limit = 0  # number of images, spread evenly over the split; 0: all of them
    config.parallel = "jit"  # or "pmap": how a batch is split over devices

    config.data = ConfigDict()
    config.data.name = "imagenet2012"  # or "folder"
    config.data.root = "data"
    config.data.val_split = "validation"

    config.model = ConfigDict()
    config.model.checkpoint = ""
    # 0: the checkpoint's own value
    config.model.image_size = 0
    config.model.num_heads = 0
    config.model.norm_eps = 0.0
    config.model.final_norm_eps = 0.0
    config.model.dtype = "float32"  # or "float64": docs/precision.md

    config.methods = ConfigDict()
    config.methods.split = ""  # images compared; "": data.val_split
    config.methods.images = config.get_ref("limit")
    # [Re]'s six and two controls, or any of vitx.METHODS; "lrp/stable" uses the stable rules.
    config.methods.compared = (*TABLE_METHODS, "random", "centre")
    config.methods.explained = ("predicted", "target")
    config.methods.measures = ("perturbation",)
    # Further scores of the maps, of vitx.evaluation.scores.SCORES; docs/methods.md says what each costs.
    config.methods.scores = ()
    config.methods.reference = (
        "transformer_attribution"  # all others are compared with it, image by image; "": none
    )
    config.methods.directions = DIRECTIONS  # positive and negative
    config.methods.fractions = FRACTIONS  # 0, 0.1, ..., 0.9
    config.methods.fill = 0.0  # value of removed pixels, in [0, 1]
    # Of the masked forwards: float32, or faster and to be said with the figures: "tf32" (GPUs), "bfloat16".
    config.methods.compute = "float32"
    config.methods.threshold = "mean"  # a map's foreground exceeds its mean; or a number in [0, 1]
    # Options of methods, such as {"integrated_gradients": {"steps": 50}}; docs/methods.md has them.
    config.methods.options = ConfigDict()
    config.methods.start_layer = ConfigDict({"rollout": 1, "transformer_attribution": 0})
    config.methods.batch_size = 32

    config.report = ConfigDict()
    config.report.title = "explanation methods by perturbation"
    config.report.summary = "Accuracy while pixels are removed in the order of their relevance."
    config.report.images = 8
    config.report.published = True  # show the papers' figures beside the run's own
    return config
