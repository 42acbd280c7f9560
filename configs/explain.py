r"""Explains your own images: writes for each a sheet of all overlays, each overlay on its own, and an .npz of raw maps.

The default model is the one that `make demo` trains (runs/shapes/classifier); any checkpoint that `vitx.load` reads
works too. The methods are by default those of [Re] Weakly-Supervised Semantic Segmentation via Transformer
Explainability (Athanasiadis et al., ReScience C 2022).

Run:
    python evaluate.py --config configs/explain.py --config.images=a.jpg,photos/
    python evaluate.py --config configs/explain.py --config.images=a.jpg --config.checkpoint=weights.safetensors \
        --config.methods=transformer_attribution,gradcam --config.classes="tabby,golden retriever"

The workdir (default: runs/explain) gets for each image `<its name>-<hash of its path>.explained.png`, the sheet, which
also lists the most probable classes; the same name with `.npz`; and each overlay on its own,
`<its name>-<hash>.<method>.<class>.explained.png`, of a size for a slide. If you run the command again, it writes
only results that are missing, or that belong to another image, checkpoint or options.

The .npz holds: for each method its raw maps (K, h, w) by the method's name; `classes` (K,), those explained; `logits`
and `probabilities` (C,); `class_names` (C,); `high_norm` (h, w), the patch tokens of high norm; `image_size` and
`input_size` (H, W), of the file and of the model's input; `source`, `scores`, and the `fingerprint` of everything that
the results depend on.

ViT-Base at 224 on two cores takes half a minute to start, then about 5 s an image for all six methods.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Images, model and methods; `--config.key=value` changes an option."""
    config = ConfigDict()
    config.stages = "explain"

    # Files and folders, comma-separated. A folder means all files below it whose suffix Pillow knows, except hidden
    # ones. A name that contains a comma must be the only one, or part of a tuple in a config of your own.
    config.images = ""
    config.batch_size = 8
    # Unreadable files. "skip": leave them out and name them at the end. "stop": end at the first.
    config.on_bad_image = "skip"

    # A file, a folder, or a name on the Hugging Face hub that vitx.load reads; "": the demo's.
    config.checkpoint = ""
    # Of a PyTorch file with several models' weights: "ema", "model", "teacher" or "student"; "": the running mean.
    config.which = ""
    config.num_heads = 0  # 0: the file's own value, else width / 64
    config.norm_eps = 0.0  # of LayerNorm; 0: the file's own value, else that of its library
    config.final_norm_eps = 0.0  # of the last LayerNorm; 0: the same as norm_eps; published: 1e-5

    config.image_size = ()  # (): the model's own; or a side, or (H, W)
    # "squash": resize every image to that size. "crop": show the middle, as the checkpoint's own evaluation does (by
    # timm's crop_pct, Hugging Face's crop_size). "keep": keep the image's aspect with about as many tokens, and
    # resample the position embedding.
    # Aspects are rounded to steps of half an octave up to 4:1: at most nine sizes are compiled.
    config.aspect = "squash"

    # Names of vitx.METHODS, comma-separated; "all": [Re]'s six and CAM, those that the model has; "auto":
    # transformer_attribution, of a CNN gradcam.
    config.methods = "all"
    config.rules = "published"  # or "stable": bounded denominators
    # Patch tokens of high norm (docs/explain.md): "keep" the maps' values there, or put their neighbours' "median".
    config.high_norm = "keep"
    config.start_layer = ConfigDict({"rollout": 1, "transformer_attribution": 0})
    # Classes to explain in every image, as numbers (from 0) or names; "": the most probable classes.
    config.classes = ""
    config.best = 1  # number of most probable classes to explain, if `classes` is empty

    # A file with one name per line; "": those of the checkpoint (`model.class_names`, see docs/checkpoints.md), else
    # "class 0" and so on.
    config.class_names = ""
    # "sigmoid" (multi-label), "softmax", or "auto": as the file says, sigmoid for those of `vitx train`, else softmax.
    config.scores = "auto"
    config.overlays = True  # each overlay as a file of its own, of a size for a slide
    # "transparency": high values cover the photograph, low ones leave it as it is. "blend": all cover the same share.
    config.overlay = "transparency"
    config.strength = 0.75  # largest share of a map's colour over the photograph
    config.top = 3  # number of classes listed with their probability
    config.font = ""  # a .ttf file; "": DejaVu Sans, which has Latin, Greek and Cyrillic letters
    return config
