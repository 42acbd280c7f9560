"""Explains your own images: for each a PNG with its most probable classes and every method's overlay, and the raw maps.

The default model is the one that `make demo` trains (runs/shapes/classifier). Any checkpoint that `vitx.load` reads
works. The methods are those of [Re] Weakly-Supervised Semantic Segmentation via Transformer Explainability
(Athanasiadis et al., ReScience C 2022).

Run:
    python evaluate.py --config configs/explain.py --config.images=a.jpg,photos/
    python evaluate.py --config configs/explain.py --config.images=a.jpg --config.checkpoint=weights.safetensors \
        --config.methods=transformer_attribution,gradcam --config.classes="tabby,golden retriever"

The workdir (default: runs/explain) gets `<image's name>-<hash of its path>.explained.png` and `.npz`. The same command
writes only results that are missing, or that belong to another image, checkpoint or options.

The .npz holds: for each method its raw maps (K, h, w) by the method's name; `classes` (K,), those explained; `logits`
and `probabilities` (C,); `class_names` (C,); `image_size` and `input_size` (H, W), of the file and of the model's
input; `source`, `scores`, and the `fingerprint` of everything that the results depend on.

ViT-Base at 224 on two cores: half a minute to start, then about 5 s an image for all six methods.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The images, and how they are explained; `--config.key=value` changes an option."""
    config = ConfigDict()
    config.stages = "explain"

    # Files and folders, comma-separated. A folder stands for all files below it with a suffix of Pillow's, except
    # hidden ones. Names that contain commas: one alone, or a tuple in a config of your own.
    config.images = ""
    config.batch_size = 8
    # "skip": leave out files that cannot be read, and name them at the end. "stop": end at the first.
    config.on_bad_image = "skip"

    config.checkpoint = ""  # a file or folder that vitx.load reads; "": the demo's
    config.num_heads = 0  # 0: the file's own value, else width / 64
    config.norm_eps = 0.0  # of LayerNorm; 0: the file's, else that of its library
    config.final_norm_eps = 0.0  # of the last LayerNorm; 0: norm_eps; published: 1e-5

    config.image_size = ()  # (): the model's; a side; or (H, W)
    # "squash": every image to that size. "keep": to about as many tokens in the image's aspect, rounded to steps of
    # half an octave up to 4:1, so that at most nine sizes are compiled; the position embedding is resampled.
    config.aspect = "squash"

    config.methods = "all"  # or names, comma-separated
    config.rules = "published"  # or "stable": bounded denominators
    config.start_layer = ConfigDict({"rollout": 1, "transformer_attribution": 0})
    # Classes to explain in every image, as numbers (from 0) or names; "": the most probable ones.
    config.classes = ""
    config.best = 1  # how many of the most probable, where `classes` is empty

    # A file with one name a line; "": the classes that train.py trained the checkpoint on (in scores.json beside it),
    # else ImageNet's where there are 1000 outputs, else "class 0" and so on.
    config.class_names = ""
    # "sigmoid" (multi-label), "softmax", or "auto": sigmoid for what train.py trained, else softmax.
    config.scores = "auto"
    config.top = 3  # classes listed with their probability
    config.font = ""  # a .ttf file; "": DejaVu Sans, which has Latin, Greek and Cyrillic letters
    return config
