"""Runs a checkpoint in PyTorch, in timm's or transformers' own model class: the reference of `parity`.

PyTorch and the libraries are optional, so they are imported where they are needed.
"""

import importlib
import importlib.util
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from vitx.models.resnet import ResNetV2
from vitx.models.vit import VisionTransformer
from vitx.runtime.files import first_line
from vitx.weights import pytorch_models
from vitx.weights.files import Checkpoint, open_checkpoint
from vitx.weights.metadata import Metadata, read_metadata
from vitx.weights.names import Named, recognise
from vitx.weights.pytorch_families import family_model
from vitx.weights.schemes import HUGGING_FACE

LIBRARIES: Final = ("timm", "transformers")


@dataclass(frozen=True)
class Reference:
    """A PyTorch model with a checkpoint's weights; `_outputs` are those of its parts in the last call."""

    library: str
    versions: dict[str, str]  # of the library and of PyTorch
    settings: dict[str, float]  # heads and epsilons, which do not follow from the tensors' shapes
    assumed: tuple[str, ...]  # the settings that neither the file nor the library specifies
    output: str  # "logits" or, of a model without a head, "pooled"; "": the file has no such head to compare
    _model: Any = field(repr=False)
    _outputs: Mapping[str, np.ndarray] = field(repr=False)

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The output of each part for normalised images (B, H, W, 3), as in `compare.activations`."""
        import torch

        with warnings.catch_warnings(action="ignore"), torch.inference_mode():
            channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
            output = self._model(torch.from_numpy(channels_first))
        found = dict(self._outputs)
        if "stem" in found:
            found["stem"] = found["stem"].transpose(0, 2, 3, 1)  # (B, h, w, C)
        if self.output:
            names = ("logits", "image_embeds", "pooler_output")
            values = (getattr(output, name, None) for name in names)
            found[self.output] = next((v for v in values if v is not None), output).numpy()
        return found


def choose_library(name: str, project: str, model: VisionTransformer, architecture: str) -> str:
    """The library that `name` asks for; for "auto" that of the file's names, where it is installed."""
    if project == "[Re]":
        raise ValueError(
            "its tensors have neither timm's nor transformers' names, but [Re]'s; what vitx.load reads, vitx.save "
            "writes with timm's"
        )
    if model.stem is not None and not isinstance(model.stem, ResNetV2):
        raise ValueError(
            f"its stem is vitx's own {type(model.stem).__name__}, which neither timm nor transformers has: "
            "there is nothing in PyTorch to compare with"
        )
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
    missing = [module for module in ("torch", *suitable) if not _installed(module)]
    if "torch" in missing or len(missing) == len(suitable):
        reason = f" (only timm has {only_timm})" if only_timm else ""
        raise ImportError(
            f"comparing with PyTorch needs torch and {' or '.join(suitable)}{reason}; not installed "
            f"here: {', '.join(missing)}: pip install torch {suitable[0]}"
        )
    return next(library for library in suitable if library not in missing)


def build_reference(
    path: str | Path,
    model: VisionTransformer,
    library: str = "auto",
    architecture: str = "",
    precision: str = "float32",
    which: str | None = None,
) -> Reference:
    """The PyTorch model of the file that `vitx.load` read `model` from; `model` is for its sizes.

    `which` is that of `load`. `architecture` is timm's name of the model, which implies its heads and epsilons, by
    default that of the config.json beside the file, if any, with its `model_args`.
    """
    with open_checkpoint(path, which) as checkpoint, warnings.catch_warnings(action="ignore"):
        named = recognise(checkpoint.tensors)
        project = named.scheme.project
        library = choose_library(library, project, model, architecture)
        _check_positions(named, model)
        modules = _imported("torch"), _imported(library)
        head = named.tensors.get("head.weight")
        # The head of timm's CLIP is vitx's projection.
        projects = model.projection is not None and "projection.weight" not in named.tensors
        outputs = model.design.projection if projects else model.num_classes
        classes = outputs if head and head.shape[0] == outputs else 0
        arguments: dict[str, Any] = {}
        if project == "timm":
            arguments = {} if architecture else dict(checkpoint.config.get("model_args") or {})
            architecture = architecture or checkpoint.config.get("architecture", "")
            checkpoint = replace(checkpoint, config={})  # whose heads timm knows, and not vitx
        metadata = read_metadata(checkpoint, named)
        assumed = metadata.num_heads is None and not (library == "timm" and architecture)
        try:
            built, parts = _built(
                library,
                model,
                checkpoint,
                named,
                metadata,
                architecture,
                arguments,
                classes,
                precision,
            )
        except Exception as error:  # of any kind, as the library pleases
            message = " ".join(str(error).split())
            raise ValueError(f"{library} does not take it: {message[:500]}") from error
    return Reference(
        library,
        {module.__name__: str(module.__version__) for module in modules},
        pytorch_models.settings_of(built, parts),
        ("num_heads",) if assumed else (),
        "pooled" if not model.num_classes else "logits" if classes and not projects else "",
        built.eval(),
        _recorded(parts),
    )


def _check_positions(named: Named, model: VisionTransformer) -> None:
    if model.pos_embed is None:
        raise ValueError(
            "its positions are rotary, which PyTorch's libraries compute in float32: not compared"
        )
    if (positions := named.tensors["pos_embed"].shape) != model.pos_embed.shape:
        raise ValueError(
            f"config.image_size resamples its position embedding, {positions} to "
            f"{model.pos_embed.shape}; compare at the file's own size"
        )


def _built(
    library: str,
    model: VisionTransformer,
    checkpoint: Checkpoint,
    named: Named,
    metadata: Metadata,
    architecture: str,
    arguments: Mapping[str, Any],
    classes: int,
    precision: str,
) -> tuple[Any, dict[str, Any]]:
    """The library's model with the checkpoint's weights, and its parts that are compared."""
    project = named.scheme.project
    if library == "transformers" and named.scheme.family not in ("", "vit"):
        return family_model(named, checkpoint.config, precision)
    if library == "transformers":
        native = checkpoint.config if project == HUGGING_FACE.project else None
        tensors = named.tensors if native is None else named.original
        state = pytorch_models.torch_tensors(tensors, classes, precision)
        return pytorch_models.transformers_model(model, metadata, native, state, classes)
    built, parts = pytorch_models.timm_model(model, metadata, architecture, classes, arguments)
    if project == "Google":
        pytorch_models.fill_from_npz(built, checkpoint.path, precision)
    else:
        state = pytorch_models.torch_tensors(named.tensors, classes, precision)
        built.load_state_dict(state, assign=True)
    return built, parts


def _recorded(parts: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The outputs of the parts, and the input of the first block, of whichever forward pass was the last."""
    outputs = {}

    def keep(name: str, output: Any) -> None:
        outputs[name] = (output[0] if isinstance(output, tuple) else output).numpy()

    parts["blocks.0"].register_forward_pre_hook(lambda module, inputs: keep("embedding", inputs))
    for name, part in parts.items():
        part.register_forward_hook(lambda module, inputs, output, name=name: keep(name, output))
    return outputs


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # as where torchvision is another PyTorch's
        raise ImportError(
            f"{name} is installed but does not import: {first_line(error)}"
        ) from error
