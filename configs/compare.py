"""Runs a checkpoint through PyTorch (timm or transformers) and through vitx, and compares block by block.

Both get the same images, preprocessed once. The library fills its own model from the file.

Run:
    pip install torch timm  # or transformers
    python evaluate.py --config configs/compare.py --config.checkpoint=FILE

Exit code 0: equal within the tolerance; 1: off; 2: wrong input. `parity.json` in the workdir has the table's figures.

A ViT-Base at 224 x 224 takes about a minute on two cores, with an R50 stem half a minute more.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """What to compare; `--config.key=value` changes one."""
    config = ConfigDict()
    config.stages = "parity"
    config.checkpoint = ""  # a .safetensors, .pth/.pt/.bin or .npz file, or a folder with one
    config.images = ""  # files and folders, comma-separated; "": drawn ones
    config.count = 4  # drawn images
    config.batch_size = 4
    config.reference = "auto"  # "timm", "transformers", or the one whose names the file has
    config.precision = "float64"  # or "float32": quicker, and blind to what is below its rounding
    config.tolerance = (
        0.0  # relative; 0: 1e-9 in float64, 1e-4 in float32, for hybrids ten times as much
    )

    # Arguments of vitx.load; 0 means: use the file's own value. PyTorch's model does not get them.
    config.num_heads = 0
    config.norm_eps = 0.0
    config.final_norm_eps = 0.0
    config.image_size = ()  # (H, W), which a file without metadata does not specify where they differ
    config.num_classes = 0  # for a file without a head: logits are left out
    # timm's name of the model, such as "vit_huge_patch14_224", where the file does not specify its heads.
    config.architecture = ""
    return config
