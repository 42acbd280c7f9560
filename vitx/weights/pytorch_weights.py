"""A checkpoint's tensors as PyTorch's own readers give them, under timm's names.

Half of the yardstick of `parity`: nothing of `vitx.weights` reads a tensor or maps a name here, so
a mistake there shows as a difference.
"""

import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from vitx.weights.files import file_in

Origin = Literal["timm", "transformers", "Google"]

# timm's names (# is a block's number), those of transformers' files, and of transformers 5's modules.
_NAMES: Final = (
    ("cls_token", "vit.embeddings.cls_token", "vit.embeddings.cls_token"),
    ("pos_embed", "vit.embeddings.position_embeddings", "vit.embeddings.position_embeddings"),
    (
        "patch_embed.proj",
        "vit.embeddings.patch_embeddings.projection",
        "vit.embeddings.patch_embeddings.projection",
    ),
    ("blocks.#.norm1", "vit.encoder.layer.#.layernorm_before", "vit.layers.#.layernorm_before"),
    (
        "blocks.#.attn.query",
        "vit.encoder.layer.#.attention.attention.query",
        "vit.layers.#.attention.q_proj",
    ),
    (
        "blocks.#.attn.key",
        "vit.encoder.layer.#.attention.attention.key",
        "vit.layers.#.attention.k_proj",
    ),
    (
        "blocks.#.attn.value",
        "vit.encoder.layer.#.attention.attention.value",
        "vit.layers.#.attention.v_proj",
    ),
    (
        "blocks.#.attn.proj",
        "vit.encoder.layer.#.attention.output.dense",
        "vit.layers.#.attention.o_proj",
    ),
    ("blocks.#.norm2", "vit.encoder.layer.#.layernorm_after", "vit.layers.#.layernorm_after"),
    ("blocks.#.mlp.fc1", "vit.encoder.layer.#.intermediate.dense", "vit.layers.#.mlp.fc1"),
    ("blocks.#.mlp.fc2", "vit.encoder.layer.#.output.dense", "vit.layers.#.mlp.fc2"),
    ("norm", "vit.layernorm", "vit.layernorm"),
    ("head", "classifier", "classifier"),
)
_PARTS: Final = ("query", "key", "value")
_WRAPPERS: Final = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES: Final = ("module.", "model.", "_orig_mod.")
_UNUSED: Final = re.compile(r"(vit\.)?(pooler\.|embeddings\.(mask_token|position_ids)$)")
_SETTINGS: Final = ("num_heads", "norm_eps", "final_norm_eps", "weight_standardisation_eps")


@dataclass(frozen=True)
class Weights:
    """What a file holds.

    Attributes:
      path: the file itself, also where a folder was given.
      origin: whose names its tensors have.
      tensors: the tensors by timm's names; of Google's arrays the position embedding alone, as
        timm reads those files itself.
      num_classes: outputs of its head, 0 without one.
      said: what it says of `num_heads`, `norm_eps`, `final_norm_eps` and `weight_standardisation_eps`.
      config: the config.json beside it.
    """

    path: Path
    origin: Origin
    tensors: Mapping[str, np.ndarray]
    num_classes: int
    said: Mapping[str, float] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


def read_weights(path: str | Path, dtype: np.dtype) -> Weights:
    """Reads the tensors of a .safetensors, PyTorch or .npz file, or of a folder with one.

    Raises:
      ValueError: where the names are neither timm's nor transformers' nor Google's.
    """
    path = Path(path)
    if path.is_dir():
        path = file_in(path)
    beside = path.parent / "config.json"
    config = json.loads(beside.read_text()) if beside.is_file() else {}
    config = config if isinstance(config, dict) else {}
    if _is_npz(path):
        return _google(path)
    tensors, metadata = _read(path, dtype)
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): array for name, array in tensors.items()}
    published = any(name.startswith("resnet_backbone.") for name in tensors)
    if "blocks.0.norm1.weight" in tensors and not published:
        said = {name: json.loads(metadata[name]) for name in _SETTINGS if name in metadata}
        origin: Origin = "timm"
    elif any("embeddings.patch_embeddings." in name for name in tensors):
        keys = {"num_heads": "num_attention_heads", "norm_eps": "layer_norm_eps"}
        said = {name: config[key] for name, key in keys.items() if key in config}
        origin, tensors = "transformers", to_timm(tensors)
    else:
        raise ValueError(
            f"{path}: its tensors ({', '.join(sorted(tensors)[-3:])}, ...) have neither timm's nor transformers' "
            "names; what vitx.load reads, vitx.save writes with timm's"
        )
    head = tensors.get("head.weight")
    return Weights(path, origin, tensors, 0 if head is None else len(head), said, config)


def _is_npz(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return all(name.endswith(".npy") for name in file.namelist())


def _google(path: Path) -> Weights:
    with np.load(path, allow_pickle=False) as file:
        query = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"
        positions = "Transformer/posembed_input/pos_embedding"
        if query not in file or positions not in file:
            raise ValueError(f"{path}: no .npz file of Google's ViT, the only ones that timm reads")
        heads = file[query].shape[1]  # (width, heads, width of a head)
        classes = len(file["head/bias"]) if "head/bias" in file else 0
        tensors = {"pos_embed": file[positions]}
    return Weights(path, "Google", tensors, classes, {"num_heads": heads})


def _read(path: Path, dtype: np.dtype) -> tuple[dict[str, np.ndarray], Mapping[str, str]]:
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file

    metadata: Mapping[str, str] = {}
    with path.open("rb") as file:
        safe = file.read(9)[8:] == b"{"
    if safe:
        value: Any = load_file(path)
        with safe_open(path, "pt") as opened:
            metadata = opened.metadata() or {}
    else:
        value = torch.load(path, map_location="cpu", weights_only=True)
        while inner := [value[k] for k in _WRAPPERS if isinstance(value.get(k), dict)]:
            value = inner[0]
    return {
        name: tensor.detach().double().numpy().astype(dtype)
        for name, tensor in value.items()
        if isinstance(tensor, torch.Tensor)
    }, metadata


def to_timm(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors with transformers' names, of its files or its modules, under timm's; unknown names stay."""
    renamed: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        if _UNUSED.match(name):
            continue
        if not name.startswith(("vit.", "classifier.")):  # a ViTModel's own file
            name = f"vit.{name}"
        renamed[_translated(_translated(name, 1, 0), 2, 0)] = array
    joined = dict(renamed)
    for name in renamed:
        if ".attn.query." in name:
            parts = [joined.pop(name.replace("query", part), None) for part in _PARTS]
            found = [part for part in parts if part is not None]
            joined[name.replace("query", "qkv")] = np.concatenate(found)
    return joined


def to_transformers(tensors: Mapping[str, np.ndarray], known: set[str]) -> dict[str, np.ndarray]:
    """Tensors with timm's names under those of `known`, a transformers model's; unknown names stay."""
    split: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        if ".attn.qkv." not in name:
            split[name] = array
            continue
        for part, piece in zip(_PARTS, np.split(array, 3), strict=True):
            split[name.replace("qkv", part)] = piece
    column = 1 if any(name.startswith("vit.encoder.layer.") for name in known) else 2
    return {_translated(name, 0, column): array for name, array in split.items()}


def _translated(name: str, source: int, target: int) -> str:
    """A tensor's name in another column of the table."""
    stem, dot, leaf = name.rpartition(".")
    if leaf not in ("weight", "bias"):
        stem, dot, leaf = name, "", ""
    number = re.search(r"\.(\d+)\.", stem)
    general = stem if number is None else stem.replace(number[0], ".#.", 1)
    for row in _NAMES:
        if row[source] == general:
            return row[target].replace("#", number[1] if number else "") + dot + leaf
    return name
