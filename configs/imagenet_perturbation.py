r"""Table 2: how fast accuracy falls as relevant, or irrelevant, pixels go; six methods on ImageNet's validation images.

[Re] Weakly-Supervised Semantic Segmentation via Transformer Explainability (Athanasiadis et al., ReScience C 2022),
Table 2; the protocol is that of Chefer, Gur, Wolf (CVPR 2021). Every choice is an option here: docs/protocol.md.

Run:
    python evaluate.py --config configs/imagenet_perturbation.py --config.model.checkpoint=FILE \
        --config.data.root=DIR --workdir runs/perturbation

    --config.limit=512 for a quick look, --config.data.name=folder for class folders of your own images. DIR has the
    validation images in class folders, or all in DIR/val, or the tar in DIR/downloads/manual.

Expected, ViT-Base/16 of timm (augreg2 or the older "jx" weights give other accuracies), AUC %, printed by [Re]:

    negative, predicted   rollout 53.10  raw 45.55  GradCAM 41.52  LRP 43.49  partial LRP 50.49  attribution 54.13
    positive, predicted   rollout 20.05  raw 23.99  GradCAM 34.06  LRP 41.94  partial LRP 19.64  attribution 17.03

Run time: docs/performance.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """All that decides the numbers; `--config.key=value` changes one."""
    config = ConfigDict()
    config.stages = "methods,report"
    config.seed = 0
    config.limit = 0  # images; 0: all of them

    config.data = ConfigDict()
    config.data.name = "imagenet2012"  # or "folder"
    config.data.root = "data"
    config.data.val_split = "validation"

    config.model = ConfigDict()
    config.model.checkpoint = ""
    # 0: as the file says
    config.model.image_size = 0
    config.model.num_heads = 0
    config.model.norm_eps = 0.0
    config.model.final_norm_eps = 0.0

    config.methods = ConfigDict()
    config.methods.images = config.get_ref("limit")
    config.methods.compared = (
        "rollout",
        "raw_attention",
        "gradcam",
        "lrp",
        "partial_lrp",
        "transformer_attribution",
    )
    config.methods.explained = ("predicted", "target")
    config.methods.measures = ("perturbation",)
    config.methods.directions = ("positive", "negative")
    config.methods.fractions = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    config.methods.fill = 0.0  # what removed pixels become, in [0, 1]
    config.methods.threshold = "mean"  # of segmentation: or a number in [0, 1]
    config.methods.start_layer = ConfigDict({"rollout": 1, "transformer_attribution": 0})
    config.methods.batch_size = 32

    config.report = ConfigDict()
    config.report.title = "explanation methods by perturbation"
    config.report.summary = "Accuracy while pixels are removed in the order of their relevance."
    config.report.images = 8
    config.report.published = True  # the papers' figures beside ours
    return config
