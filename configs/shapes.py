"""The whole pipeline on `shapes`, the embedded dataset: image labels to masks in minutes on two cores.

The stages are those of [Re] Weakly-Supervised Semantic Segmentation via Transformer Explainability (Athanasiadis et
al., ReScience C 2022), with a small hybrid trained from scratch instead of ViT-Base/R50 at 448 x 448. docs/protocol.md
describes every setting.

Run:
    python train.py    --config configs/shapes.py --workdir runs/shapes
    python evaluate.py --config configs/shapes.py --workdir runs/shapes
"""

from collections.abc import Callable

from ml_collections import ConfigDict, FieldReference

from vitx.evaluation.perturbation import DIRECTIONS, FRACTIONS
from vitx.relevance.methods import TABLE_METHODS


def get_config() -> ConfigDict:
    """Every option of the pipeline; `--config.key=value` changes one."""
    config = ConfigDict()
    config.seed = 0
    # Stages to run; train.py and evaluate.py each run their own.
    config.stages = "classifier,seeds,labels,affinity,masks,controls,segmenter,methods,report"
    config.on_bad_image = "stop"  # or "skip": leave out files that cannot be read, and name them
    config.parallel = "jit"  # or "pmap": how a batch is split over devices

    config.data = ConfigDict()
    config.data.name = "shapes"
    config.data.root = "data"  # where the dataset is built
    config.data.train_split = "train"  # or a part of a split, in the syntax of TFDS: "train[:400]"
    config.data.val_split = "val"
    config.data.workers = 0  # loader processes; 0: threads instead, enough for small images

    config.model = ConfigDict()
    config.model.name = "vit_mini_conv_full_s4_48"
    config.model.image_size = 48
    config.model.checkpoint = ""  # pretrained weights, whose head is replaced
    # Epsilon of the final norm; 0: the checkpoint's own, or 1e-6 without a checkpoint. Published: 1e-5.
    config.model.final_norm_eps = 0.0

    config.classifier = ConfigDict()
    config.classifier.checkpoint = ""  # trained weights in place of the stage's training
    config.classifier.head = ""  # the model's own kind; or one of vitx.models.heads.HEADS
    config.classifier.best_patches = 8  # of the heads "best" and "pooled+best"
    # Or "block.10", of a CNN "conv3": this block or level and all above; or "head".
    config.classifier.trainable = "all"
    config.classifier.layer_decay = 1.0  # of the learning rate, from each layer to the one below
    config.classifier.token_dropout = 0.0  # share of patches that a training step leaves out
    config.classifier.train_split = "train[:2000]"
    config.classifier.val_split = "train[2000:]"  # chooses the checkpoint
    config.classifier.epochs = 4
    config.classifier.batch_size = 16
    config.classifier.optimizer = "adamw"
    config.classifier.momentum = 0.9  # of sgd
    config.classifier.learning_rate = 2e-3
    config.classifier.schedule = "linear"  # or poly, cosine
    config.classifier.new_rate = 1.0  # factor of the learning rate of the new head
    config.classifier.bias_rate = 1.0  # factor of the learning rate of biases
    config.classifier.weight_decay = 0.05
    config.classifier.decay_norms_and_biases = True
    config.classifier.clip_norm = 1.0
    config.classifier.warmup_epochs = 1
    config.classifier.accumulate = 1  # split each batch into this many parts, to save memory
    # "auto": bfloat16 where the device multiplies it fast, else float32; or one of these two. Parameters, their
    # gradients and the loss are float32.
    config.classifier.compute = "auto"
    # Decay per step of a moving average of the weights, which is validated and saved; published: 0.0, none.
    config.classifier.average = 0.0
    config.classifier.jitter = (0.2, 0.2, 0.2, 0.05)  # brightness, contrast, saturation, hue
    config.classifier.flip = True
    # Least and most pixels of the long side, before a random crop of the input's size; (): squashed to it.
    config.classifier.long_side = ()
    config.classifier.dropout = False  # of whole channels in training, of a CNN

    config.seeds = ConfigDict()
    config.seeds.train_split = "train[2000:]"  # training images that get seeds, labels and masks
    config.seeds.batch_size = 16
    config.seeds.method = "transformer_attribution"  # or another of vitx.METHODS
    config.seeds.start_layer = 0
    config.seeds.root = 3
    config.seeds.rules = "published"
    config.seeds.scales = (1.0,)  # of the input; seed maps are the mean over them
    config.seeds.own_size = False  # input of the image's own size, in whole cells
    # "min-max": each map. "maximum": their sum over scales, over its maximum.
    config.seeds.normalise = "min-max"
    config.seeds.contrast = False  # take from each map the mean of the image's other maps
    config.seeds.refine = (
        ""  # or "mctformer", "clip_es": spread maps along the model's own attention
    )
    # Background score of the seed masks; a tuple of candidates as in `walk` below. Published: 0.2.
    config.seeds.background = (0.15, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4)

    config.labels = ConfigDict()
    config.labels.backend = "exact"
    # Published: 4 and 32, and the constants of voc.py below. These are chosen on train (docs/protocol.md).
    config.labels.alpha_low = 5.0
    config.labels.alpha_high = 16.0
    # Processes for pydensecrf, threads per device for the CRF in JAX; 0: one per core, two for an accelerator.
    config.labels.workers = 0
    config.labels.crf = ConfigDict(
        {
            "iterations": 5,
            "sxy_gaussian": 3.0,
            "compat_gaussian": 3.0,
            "sxy_bilateral": 6.0,
            "srgb": 10.0,
            "compat_bilateral": 4.0,
        }
    )

    config.affinity = ConfigDict()
    config.affinity.checkpoint = ""  # a trained AffinityNet in place of the stage's training
    config.affinity.train_split = "train[2000:2304]"
    config.affinity.val_split = "train[2304:]"  # chooses the checkpoint
    config.affinity.epochs = 12
    config.affinity.batch_size = 16
    config.affinity.optimizer = "sgd"
    config.affinity.momentum = 0.9  # of sgd
    config.affinity.learning_rate = 0.05
    config.affinity.schedule = "linear"  # or poly, cosine
    config.affinity.new_rate = (
        1.0  # factors of the learning rate, of the head's layers and of biases
    )
    config.affinity.bias_rate = 1.0
    config.affinity.weight_decay = 1e-4
    config.affinity.decay_norms_and_biases = True
    config.affinity.clip_norm = 0.0
    config.affinity.warmup_epochs = 0
    config.affinity.accumulate = 1  # split each batch into this many parts, to save memory
    config.affinity.compute = "auto"  # as for the classifier
    # Decay per step of a moving average of the weights, which is validated and saved; published: 0.0, none.
    config.affinity.average = 0.0
    config.affinity.jitter = (0.2, 0.2, 0.2, 0.05)
    config.affinity.flip = True
    config.affinity.long_side = ()  # as for the classifier
    config.affinity.dropout = False  # of whole channels in training, of a CNN
    config.affinity.epsilon = 1e-6  # in the loss
    config.affinity.grid = 24  # side, of features and labels; published: the input over 8
    config.affinity.radius = 5
    config.affinity.pairs = "near"  # "published": fewer
    config.affinity.features = 64
    # Levels of the backbone that AffinityNet reads, such as ("stem.1", "stem.2", "block.1"); published: (), the stem.
    config.affinity.levels = ("stem.1", "stem.2", "stem.3", "block.2")
    config.affinity.train_backbone = True  # False: only the head is trained
    config.affinity.trainable = "all"  # or "conv3": of a CNN's backbone this level and all above

    # Tuples are candidates: the best one on the images of `split`, a part of train, is used.
    config.walk = ConfigDict()
    config.walk.split = "train[2304:]"
    # By the masks of `split`, or "auto": without masks, as is done where it has none.
    config.walk.choose = "masks"
    config.walk.affinity = "affinitynet"  # or features, attention, colour, uniform
    config.walk.levels = ("stem.2", "block.2")  # of affinity "features"
    config.walk.pairs = "near"  # "published": fewer near pairs; "all" pairs of the image
    config.walk.start = "seeds"  # or "crf": the posteriors at the low alpha
    config.walk.background = "constant"  # published: "walked"; or "recomputed" after the walk
    config.walk.over_maximum = True  # maps over their maximum, after the walk; published: no
    config.walk.threshold = (0.5, 0.2, 0.3, 0.4, 0.6, 0.7)  # of the constant background
    config.walk.method = "chebyshev"
    config.walk.beta = (8.0, 2.0, 4.0)  # published: 16
    config.walk.log2_steps = (3, 0, 1, 2)  # published: 8, on a grid of 56
    config.walk.alpha = (16.0, 4.0, 8.0, 32.0, 64.0)  # published: 4

    config.masks = ConfigDict()
    # After the walk; published: 0 iterations, which is none.
    config.masks.crf = ConfigDict(
        {
            "iterations": 5,
            "sxy_gaussian": 1.5,
            "compat_gaussian": 1.0,
            "sxy_bilateral": 6.0,
            "srgb": 8.0,
            "compat_bilateral": 3.0,
        }
    )

    # Masks of the same treatment with other affinities, or without a step, to compare the refined masks with.
    config.controls = ConfigDict()
    config.controls.arms = ("no_walk", "no_crf", "uniform", "colour", "features", "oracle")

    # A segmentation network that learns from the refined masks of training images.
    config.segmenter = ConfigDict()
    config.segmenter.train_split = "train[2000:2360]"  # both lie within `seeds.train_split`
    config.segmenter.val_split = "train[2360:]"  # chooses the checkpoint, by the masks, too
    config.segmenter.levels = ("stem.1", "stem.2", "stem.3", "block.3")  # of the classifier
    config.segmenter.hidden = 64  # channels of the head
    config.segmenter.backbone_rate = 1.0  # factor of its learning rate; 0: only the head is trained
    config.segmenter.trusted = "all"  # or "agreed": pixels on which the CRF agrees at some alpha
    config.segmenter.robustness = 0.5  # against wrong labels, see vitx.pipeline.segmenter; 0: none
    config.segmenter.epochs = 20
    config.segmenter.batch_size = 16
    config.segmenter.optimizer = "adamw"
    config.segmenter.momentum = 0.9  # of sgd
    config.segmenter.learning_rate = 2e-3
    config.segmenter.schedule = "poly"  # or linear, cosine
    config.segmenter.weight_decay = 0.05
    config.segmenter.decay_norms_and_biases = True
    config.segmenter.clip_norm = 1.0
    config.segmenter.warmup_epochs = 1
    config.segmenter.accumulate = 1  # split each batch into this many parts, to save memory
    config.segmenter.compute = "auto"  # as for the classifier
    config.segmenter.average = 0.0  # decay per step of a moving average of the weights
    config.segmenter.jitter = (0.2, 0.2, 0.2, 0.05)
    config.segmenter.flip = True
    config.segmenter.scale = (0.75, 1.5)  # least and most factor of the size, before a random crop
    config.segmenter.test = ConfigDict({"scales": (1.0,), "flip": False})  # views to average
    config.segmenter.crf = ConfigDict(config.masks.crf.to_dict() | {"iterations": 0})  # 0: none

    config.methods = ConfigDict()
    config.methods.split = "hard"  # images compared; "": data.val_split
    config.methods.images = 128  # number of them that show one class; 0: all of them
    config.methods.compared = (
        *TABLE_METHODS,
        "transformer_attribution/stable",
        "generic_attention",
        "attn_lrp_gamma",
        "libragrad",
        "random",
        "centre",
    )
    config.methods.explained = ("predicted", "target")
    config.methods.measures = ("perturbation", "segmentation")
    # Further scores of the maps, of vitx.evaluation.scores.SCORES; docs/methods.md says what each costs.
    config.methods.scores = ("pointing", "energy")
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
    config.methods.batch_size = 16

    config.report = ConfigDict()
    config.report.title = "image labels to masks"
    config.report.summary = (
        "A hybrid ViT learns from image labels what is shown; its explanations become seeds, a dense CRF and "
        "AffinityNet refine them into masks."
    )
    # Shown beside the scores of masks: how far they move with the seed (docs/protocol.md).
    config.report.note = (
        "These are figures of one training. configs/shapes.py over five seeds, mean and standard deviation of the mIoU "
        "on val: seeds 61.0 +- 3.3, CRF'd seeds at low alpha 69.8 +- 4.7, refined masks 78.5 +- 2.5, network "
        "81.6 +- 2.0."
    )
    config.report.images = 12
    config.report.extremes = 4  # number of images with the best masks, and with the worst
    config.report.published = False  # show the papers' figures beside the run's own
    return config


def reference(config: ConfigDict, key: str) -> Callable[..., FieldReference]:
    """Returns f: f(suffix) is an option that equals the string at `key` plus the suffix until it is set itself."""
    return lambda suffix="": config.get_ref(key) + suffix
