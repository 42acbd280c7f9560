"""Explains your own images: for each a PNG with the classes found and every method's overlay, and the raw maps.

The default model is the one that `make demo` trains (runs/shapes/classifier). Any checkpoint that `vitx.load` reads
will do. The methods are those of [Re] Weakly-Supervised Semantic Segmentation via Transformer Explainability
(Athanasiadis et al., ReScience C 2022).

Run:
    python evaluate.py --config configs/explain.py --config.images=a.jpg,photos/
    python evaluate.py --config configs/explain.py --config.images=a.jpg --config.checkpoint=weights.safetensors \
        --config.methods=transformer_attribution,gradcam --config.classes="tabby,golden retriever"

In the workdir (default: runs/explain), `<image's name>-<hash of its path>.explained.png` and `.npz`. The same command
does again only what is missing, or what was made of another image, checkpoint or options.

The .npz holds: for each method its raw maps (K, h, w) by the method's name; `classes` (K,), those explained; `logits`
and `probabilities` (C,); `class_names` (C,); `image_size` and `input_size` (H, W), of the file and of what the model
saw; `source`, `scores`, and the `fingerprint` of all that they were made of.

ViT-Base at 224 on two cores: half a minute to start, then about 5 s an image for all six methods.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """What is explained, and how; `--config.key=value` changes one."""
    config = ConfigDict()
    config.stages = "explain"

    # Files and folders, comma-separated. Folders with all below them: files with a suffix of Pillow's, none hidden.
    # Names with commas: one alone, or a tuple in a config of your own.
    config.images = ""
    config.batch_size = 8
    config.on_bad_image = (
        "skip"  # leaves out what cannot be read, and names it at the end; or "stop"
    )

    config.checkpoint = ""  # a file or folder that vitx.load reads; "": the demo's
    config.num_heads = 0  # 0: the file's, else width / 64
    config.norm_eps = 0.0  # of LayerNorm; 0: the file's, else the convention of whose names it has
    config.final_norm_eps = 0.0  # of the last LayerNorm; 0: norm_eps; published: 1e-5

    config.image_size = ()  # (): the model's; a side; or (H, W)
    # "squash": every image to that size. "keep": to about as many tokens in the image's aspect, rounded to steps of
    # half an octave up to 4:1, so that at most nine sizes are compiled; the position embedding is resampled.
    config.aspect = "squash"

    config.methods = "all"  # or names, comma-separated
    config.rules = "published"  # or "stable": bounded denominators
    config.start_layer = ConfigDict({"rollout": 1, "transformer_attribution": 0})
    config.classes = (
        ""  # to explain in every image, numbers (from 0) or names; "": the most probable
    )
    config.best = 1  # where `classes` is empty: how many of the most probable

    # A file with one name a line; "": the classes that train.py trained the checkpoint on (its scores.json lies beside
    # it), else ImageNet's where there are 1000 outputs, else "class 0" and so on.
    config.class_names = ""
    # "sigmoid" (multi-label), "softmax", or "auto": sigmoid for what train.py trained, else softmax.
    config.scores = "auto"
    config.top = 3  # classes printed with their probability
    config.font = ""  # a .ttf file; Pillow's own writes only ASCII, so that other letters lose accents or become "?"
    return config
