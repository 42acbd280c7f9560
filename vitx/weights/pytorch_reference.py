"""Runs a checkpoint in PyTorch, in timm's or transformers' own model class: the reference of `parity`.

PyTorch and the libraries are optional, so they are imported where they are needed.
"""

import contextlib
import importlib
import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from vitx.models.resnet import ResNetV2
from vitx.models.vit import VisionTransformer
from vitx.runtime.files import first_line
from vitx.weights.files import Checkpoint, open_checkpoint
from vitx.weights.metadata import read_metadata
from vitx.weights.names import recognise
from vitx.weights.pytorch_models import (
    arrays,
    fill_from_npz,
    settings_of,
    timm_model,
    transformers_model,
)

LIBRARIES: Final = ("timm", "transformers")


@dataclass(frozen=True)
class Reference:
    """A PyTorch model with a checkpoint's weights.

    Attributes:
      library: "timm" or "transformers".
      versions: of the library and of PyTorch.
      settings: heads and epsilons, which do not follow from the tensors' shapes.
      assumed: the settings that neither the file nor the library specifies.
      has_head: whether the file has a classifier to compare.
    """

    library: str
    versions: dict[str, str]
    settings: dict[str, float]
    assumed: tuple[str, ...]
    has_head: bool
    _model: Any = field(repr=False)
    _parts: Mapping[str, Any] = field(repr=False)

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The output of each part for normalised images (B, H, W, 3), as in `compare.activations`."""
        import torch

        found: dict[str, np.ndarray] = {}

        def keep(name: str, output: Any) -> None:
            found[name] = (output[0] if isinstance(output, tuple) else output).numpy()

        handles = [
            self._parts["blocks.0"].register_forward_pre_hook(
                lambda module, inputs: keep("embedding", inputs)
            )
        ]
        for name, part in self._parts.items():
            handles.append(
                part.register_forward_hook(
                    lambda module, inputs, output, name=name: keep(name, output)
                )
            )
        try:
            with _quiet(), torch.inference_mode():
                channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
                logits = self._model(torch.from_numpy(channels_first))
        finally:
            for handle in handles:
                handle.remove()
        if "stem" in found:
            found["stem"] = found["stem"].transpose(0, 2, 3, 1)  # (B, h, w, C)
        found["norm"] = found["norm"][:, 0]
        if self.has_head:
            keep("logits", getattr(logits, "logits", logits))
        return found


def choose_library(name: str, project: str, model: VisionTransformer, architecture: str) -> str:
    """The library that `name` asks for; for "auto" that of the file's names, where it is installed.

    Raises:
      ValueError: where that library does not have such models.
      ImportError: where PyTorch or the library is not installed; names what to install.
    """
    only_timm = (
        (project == "Google" and "Google's .npz files")
        or (model.stem is not None and "hybrids with a ResNet stem")
        or (bool(architecture) and "models by their architecture's name")
    )
    if only_timm and name == "transformers":
        raise ValueError(f"transformers does not have {only_timm}, timm does")
    suitable: tuple[str, ...] = LIBRARIES if project == "timm" else LIBRARIES[::-1]
    if only_timm or name != "auto":
        suitable = ("timm" if only_timm else name,)
    found = [library for library in suitable if _installed(library)]
    missing = [] if _installed("torch") else ["torch"]
    if not found:
        missing.append(" or ".join(suitable))
    if missing:
        reason = f" (only timm has {only_timm})" if only_timm else ""
        raise ImportError(
            f"comparing with PyTorch needs {' and '.join(missing)}{reason}, not installed here: "
            f"pip install torch {suitable[0]}"
        )
    return found[0]


def build_reference(
    path: str | Path,
    model: VisionTransformer,
    library: str = "auto",
    architecture: str = "",
    dtype: Any = np.float32,
) -> Reference:
    """The PyTorch model that a checkpoint describes, with its weights.

    Args:
      path: the file that `vitx.load` read `model` from.
      model: for its sizes.
      library: "timm", "transformers" or "auto".
      architecture: timm's name of the model, which implies its heads and epsilons; default: that of
        the config.json beside the file, if any.
      dtype: of weights and arithmetic, float32 or float64.

    Raises:
      ValueError: for a model that the library does not have, or tensors that do not fit it.
      ImportError: for a library that is missing or cannot be imported.
    """
    with open_checkpoint(path) as checkpoint, _quiet():
        return _reference(checkpoint, model, library, architecture, np.dtype(dtype))


def _reference(
    checkpoint: Checkpoint,
    model: VisionTransformer,
    library: str,
    architecture: str,
    dtype: np.dtype,
) -> Reference:
    named = recognise(checkpoint.tensors)
    project = named.scheme.project
    if project == "[Re]":
        raise ValueError(
            f"its tensors ({', '.join(sorted(named.original)[-3:])}, ...) have neither timm's nor transformers' "
            "names; what vitx.load reads, vitx.save writes with timm's"
        )
    if model.stem is not None and not isinstance(model.stem, ResNetV2):
        raise ValueError(
            f"its stem is vitx's own {type(model.stem).__name__}, which neither timm nor transformers has: "
            "there is nothing in PyTorch to compare with"
        )
    library = choose_library(library, project, model, architecture)
    if (positions := named.tensors["pos_embed"].shape) != model.pos_embed.shape:
        raise ValueError(
            f"config.image_size resamples its position embedding, {positions} to {model.pos_embed.shape}; "
            "compare at the file's own size"
        )
    modules = _imported("torch"), _imported(library)
    head = named.tensors.get("head.weight")
    classes = model.num_classes if head and head.shape[0] == model.num_classes else 0
    config = checkpoint.config
    if project == "timm":
        architecture = architecture or config.get("architecture", "")
        checkpoint = replace(checkpoint, config={})  # whose heads timm knows, and not vitx
    metadata = read_metadata(checkpoint, named)
    assumed = metadata.num_heads is None and not (library == "timm" and architecture)
    try:
        if library == "transformers":
            built, parts = transformers_model(config, named, metadata, model, classes, dtype)
        elif project == "Google":
            built, parts = timm_model(model, metadata, architecture, classes)
            fill_from_npz(built, checkpoint.path, dtype)
        else:
            built, parts = timm_model(model, metadata, architecture, classes)
            built.load_state_dict(arrays(named.tensors, classes, dtype), assign=True)
    except Exception as error:  # of any kind, as the library pleases
        message = " ".join(str(error).split())
        raise ValueError(f"{library} does not take it: {message[:500]}") from error
    return Reference(
        library,
        {module.__name__: str(module.__version__) for module in modules},
        settings_of(built, parts),
        ("num_heads",) if assumed else (),
        bool(classes),
        built.eval(),
        parts,
    )


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # as where torchvision is another PyTorch's
        raise ImportError(
            f"{name} is installed but does not import: {first_line(error)}"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides the warnings of PyTorch and the libraries, which do not concern vitx."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
