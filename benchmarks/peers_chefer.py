"""The published code of transformer attribution as a peer, read at run time from the user's own clone.

python -m benchmarks.peers --chefer PATH, a clone of github.com/hila-chefer/Transformer-Explainability
"""

import sys
from pathlib import Path

import numpy as np

from benchmarks.peers_worker import Call, images

FILES = ("baselines/ViT/ViT_LRP.py", "baselines/ViT/ViT_explanation_generator.py")
WEIGHTS = "timm.safetensors"  # the weights by timm's names


def require(clone: Path) -> None:
    """Raises FileNotFoundError where the folder is no clone of the published code."""
    if missing := [name for name in FILES if not (clone / name).is_file()]:
        raise FileNotFoundError(f"{clone} is no clone of the published code: no {missing[0]}")


def published(folder: Path, clone: Path) -> dict[str, Call]:
    """Transformer attribution, one image after the other, with the weights in `folder`."""
    import torch
    from safetensors.torch import load_file
    from transformers import ViTConfig

    sys.path.insert(0, str(clone))
    from baselines.ViT.ViT_explanation_generator import LRP
    from baselines.ViT.ViT_LRP import VisionTransformer

    if not torch.cuda.is_available():
        torch.Tensor.cuda = lambda tensor: tensor  # which the published code calls
    config = ViTConfig.from_pretrained(folder)
    model = VisionTransformer(
        img_size=config.image_size,
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        mlp_ratio=config.intermediate_size / config.hidden_size,
        qkv_bias=True,
    )
    model.load_state_dict(load_file(folder / WEIGHTS))
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = config.layer_norm_eps
    explain = LRP(model).generate_LRP

    def attribution(batch: int) -> np.ndarray:
        x = torch.from_numpy(images(batch, config.image_size))
        return torch.cat([explain(x[i : i + 1], index=i) for i in range(batch)]).detach().numpy()

    return {"transformer_attribution": attribution}
