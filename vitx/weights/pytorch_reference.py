"""A checkpoint run by PyTorch, in timm's or transformers' own model class: the yardstick of `parity`.

PyTorch and the libraries are optional, so they are imported where they are needed.
"""

import contextlib
import importlib
import importlib.util
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from vitx.models.resnet import ResNetV2
from vitx.models.vit import VisionTransformer
from vitx.runtime.files import first_line
from vitx.weights.pytorch_models import build, settings_of
from vitx.weights.pytorch_weights import Weights, read_weights

LIBRARIES: Final = ("timm", "transformers")


@dataclass(frozen=True)
class Reference:
    """A PyTorch model with a checkpoint's weights.

    Attributes:
      library: "timm" or "transformers".
      versions: of the library and of PyTorch.
      settings: heads and epsilons, which no tensor's shape tells.
      assumed: what the file does not say of them and the library does not know.
      has_head: whether the file has a classifier to compare.
    """

    library: str
    versions: dict[str, str]
    settings: dict[str, float]
    assumed: tuple[str, ...]
    has_head: bool
    _model: Any = field(repr=False)
    _parts: dict[str, Any] = field(repr=False)

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """What each part gives for normalised images (B, H, W, 3), as `parity.activations`."""
        import torch

        found: dict[str, np.ndarray] = {}
        handles = [
            self._parts["blocks.0"].register_forward_pre_hook(
                lambda module, inputs: _keep(found, "embedding", inputs[0])
            )
        ]
        handles += [
            part.register_forward_hook(
                lambda module, inputs, output, name=name: _keep(found, name, output)
            )
            for name, part in self._parts.items()
        ]
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
            _keep(found, "logits", getattr(logits, "logits", logits))
        return found


def require_library(name: str) -> None:
    """Checks that PyTorch is there, and the library `name`, or one of the two for "auto".

    Raises:
      ValueError: for a name that is none of these.
      ImportError: says what to install.
    """
    if name not in ("auto", *LIBRARIES):
        raise ValueError(f"config.reference must be auto, {' or '.join(LIBRARIES)}, not {name!r}")
    wanted = LIBRARIES if name == "auto" else (name,)
    missing = [] if _installed("torch") else ["torch"]
    if not any(map(_installed, wanted)):
        missing.append(" or ".join(wanted))
    if missing:
        raise ImportError(
            f"comparing with PyTorch needs {' and '.join(missing)}, not installed here: pip install torch {wanted[0]}"
        )


def choose_library(name: str, weights: Weights, model: VisionTransformer, architecture: str) -> str:
    """The library that `name` or the file asks for: the one whose names it has, where that is installed.

    Raises:
      ValueError: where that library does not have such models.
      ImportError: where the only one that has them is not installed.
    """
    only_timm = (
        (weights.origin == "Google" and "Google's .npz files")
        or (model.stem is not None and "hybrids with a ResNet stem")
        or (bool(architecture) and "models by their architecture's name")
    )
    if only_timm and name == "transformers":
        raise ValueError(f"{weights.path}: transformers does not have {only_timm}, timm does")
    if only_timm and not _installed("timm"):
        raise ImportError(f"{weights.path}: only timm has {only_timm}: pip install timm")
    if name != "auto" or only_timm:
        return "timm" if only_timm else name
    other = "transformers" if weights.origin == "timm" else "timm"
    return weights.origin if _installed(weights.origin) else other


def build_reference(
    path: str | Path,
    model: VisionTransformer,
    library: str = "auto",
    architecture: str = "",
    dtype: Any = np.float32,
) -> Reference:
    """The PyTorch model that a checkpoint describes, with its weights.

    Args:
      path: what `vitx.load` made `model` of.
      model: for its sizes.
      library: "timm", "transformers" or "auto".
      architecture: timm's name of the model, which tells its heads and epsilons; default: that of
        the config.json beside the file, or else none.
      dtype: of weights and arithmetic, float32 or float64.

    Raises:
      ValueError: for a model that the library does not have, or tensors that it does not take.
      ImportError: for a library that is missing or does not import.
    """
    if model.stem is not None and not isinstance(model.stem, ResNetV2):
        raise ValueError(
            f"{path}: its stem is vitx's own {type(model.stem).__name__}, which neither timm nor transformers has: "
            "there is nothing in PyTorch to compare with"
        )
    with _quiet():
        weights = read_weights(path, np.dtype(dtype))
        library = choose_library(library, weights, model, architecture)
        positions = weights.tensors.get("pos_embed")
        if positions is not None and positions.shape != model.pos_embed.shape:
            raise ValueError(
                f"{path}: config.image_size resamples its position embedding, {positions.shape} to "
                f"{model.pos_embed.shape}; compare at the file's own size"
            )
        modules = _imported("torch"), _imported(library)
        classes = model.num_classes if weights.num_classes == model.num_classes else 0
        if weights.origin == "timm":
            architecture = architecture or weights.config.get("architecture", "")
        try:
            built, parts = build(weights, model, library, architecture, classes, np.dtype(dtype))
        except Exception as error:  # of any kind, as the library pleases
            message = " ".join(str(error).split())
            raise ValueError(f"{path}: {library} does not take it: {message[:500]}") from error
    known = "num_heads" in weights.said or (library == "timm" and architecture)
    return Reference(
        library,
        {module.__name__: str(module.__version__) for module in modules},
        settings_of(built, parts),
        () if known else ("num_heads",),
        bool(classes),
        built,
        parts,
    )


def _keep(found: dict[str, np.ndarray], name: str, output: Any) -> None:
    found[name] = (output[0] if isinstance(output, tuple) else output).numpy()


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
    """Keeps warnings of PyTorch and the libraries, which tell nothing of vitx, from the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
