"""Runs a checkpoint through PyTorch (timm or transformers) and through vitx, and compares block by block.

Both get the same images, preprocessed once. The PyTorch library loads the file into its own model.

Run:
    pip install torch timm  # or transformers
    python evaluate.py --config configs/compare.py --config.checkpoint=FILE

Exit code 0: equal within the tolerance; 1: different; 2: wrong input. `parity.json` in the workdir has all figures.

A ViT-Base at 224 x 224 takes about a minute on two cores, an R50 stem half a minute more.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Options of the comparison; `--config.key=value` changes one."""
    config = ConfigDict()
    config.stages = "parity"
    config.checkpoint = ""  # a .safetensors, .pth/.pt/.bin or .npz file, or a folder with one
    config.images = ""  # files and folders, comma-separated; "": generated ones
    config.count = 4  # generated images
    config.batch_size = 4
    config.reference = "auto"  # "timm", "transformers", or "auto": the one whose names the file has
    config.precision = "float64"  # or "float32": quicker, but blind below its rounding
    # Relative; 0: 1e-9 in float64, 1e-4 in float32, ten times as much for hybrids.
    config.tolerance = 0.0

    # Arguments of vitx.load, not of the PyTorch model; 0: the file's own value.
    config.which = ""  # "ema", "model", "teacher" or "student", where a PyTorch file has several; "": the running mean
    config.num_heads = 0
    config.norm_eps = 0.0
    config.final_norm_eps = 0.0
    config.image_size = ()  # (H, W); needed if they differ and the file has no metadata
    config.num_classes = 0  # for a file without a head; logits are then not compared
    # timm's name of the model, such as "vit_huge_patch14_224"; needed if the file does not specify its number of heads.
    config.architecture = ""
    return config
