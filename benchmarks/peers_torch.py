"""The PyTorch side of `python -m benchmarks.peers`, which starts it; it needs nothing of vitx or JAX.

It has several kinds of processes that measure, because lxt changes classes of PyTorch for the whole process: "plain"
has PyTorch and captum, "lxt" has lxt and zennit, "attribution" has `peers_attribution` and "chefer" the published code
of it. "base" and "small" write the model and end.
"""

import sys
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers_chefer import published
from benchmarks.peers_worker import Call, images, serve, use_threads

STEPS, GAMMA, GAMMA_PIXELS = (
    20,
    0.05,
    0.25,
)  # vitx's defaults; the gammas are those of lxt's example
SIZES: dict[str, dict[str, int]] = {
    "base": {},  # what transformers has by default is ViT-B/16 at 224
    "small": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "intermediate_size": 128,
        "image_size": 32,
    },
}
AT_ONCE = 20  # images; without a limit captum computes all steps of all images at once


def main(kind: str, folder: Path, threads: int, clone: str = "") -> None:
    use_threads(threads)
    import torch

    import benchmarks.peers_torchvision  # noqa: F401  # transformers and lxt import torchvision

    torch.set_num_threads(threads)
    if kind in SIZES:
        write(SIZES[kind], folder)
    else:
        kinds: dict[str, Callable[[Path], dict[str, Call]]] = {
            "plain": plain,
            "lxt": lxt,
            "attribution": attribution,
            "chefer": partial(published, clone=Path(clone)),
        }
        calls = kinds[kind](folder)
        serve(calls, folder, partial(products, calls))


def products(calls: Mapping[str, Call], name: str, batch: int) -> float:
    """FLOPs of the matrix products of a call, counted while it runs.

    PyTorch's own counter also follows modules, by hooks that captum's gradients do not allow.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    counts, found = dict(flop_registry), []
    for way in ("", "_backward"):  # which PyTorch counts on GPUs only
        fused = f"_scaled_dot_product_flash_attention{{}}{way}"
        on_cpu = getattr(torch.ops.aten, fused.format("_for_cpu"))
        counts[on_cpu] = counts[getattr(torch.ops.aten, fused.format(""))]

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, arguments=(), options=None):
            options, count = options or {}, counts.get(operation._overloadpacket)
            if count is None:
                with self:  # without gradients a layer arrives whole
                    parts = operation.decompose(*arguments, **options)
                return operation(*arguments, **options) if parts is NotImplemented else parts
            result = operation(*arguments, **options)
            found.append(count(*arguments, **options, out_val=result))
            return result

    with Counter():
        calls[name](batch)
    return sum(found)


def write(sizes: dict[str, int], folder: Path) -> None:
    """Saves a ViT with random weights and 1000 classes."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(num_labels=1000, **sizes)).save_pretrained(folder)


def plain(folder: Path) -> dict[str, Call]:
    """The forward, and captum's integrated gradients."""
    import torch

    model = read(folder)

    def forward(batch: int) -> np.ndarray:
        with torch.inference_mode():
            return model(inputs(model, batch)).logits.numpy()

    def integrated_gradients(batch: int) -> np.ndarray:
        from captum.attr import IntegratedGradients

        found = IntegratedGradients(lambda x: model(x).logits).attribute(
            inputs(model, batch),
            target=torch.arange(batch),
            n_steps=STEPS,
            internal_batch_size=max(AT_ONCE, batch),
        )
        return found.sum(1).detach().numpy()

    return {"forward": forward, "integrated_gradients": integrated_gradients}


def lxt(folder: Path) -> dict[str, Call]:
    """AttnLRP with epsilon 0, by lxt's patches of transformers' ViT, and with zennit's gamma rule as in lxt's example.

    The map of patches that lxt 2.1 has for a ViT (torchvision's) is CP-LRP in attention: here it has AttnLRP's.
    """
    import torch
    from lxt.efficient import monkey_patch, monkey_patch_zennit, patches
    from transformers.activations import GELUActivation
    from transformers.models.vit import modeling_vit
    from zennit.composites import LayerMapComposite
    from zennit.rules import Gamma

    patch = patches.patch_method
    table = {
        GELUActivation: partial(patch, patches.non_linear_forward, keep_original=True),
        torch.nn.LayerNorm: partial(patch, patches.layer_norm_forward),
        modeling_vit: patches.patch_attention,
    }
    monkey_patch(modeling_vit, table)
    monkey_patch_zennit()
    model = read(folder)
    rules = [(torch.nn.Conv2d, Gamma(GAMMA_PIXELS)), (torch.nn.Linear, Gamma(GAMMA))]

    def epsilon(batch: int) -> np.ndarray:
        x = inputs(model, batch).requires_grad_()
        logits = model(x).logits
        logits[torch.arange(batch), torch.arange(batch)].sum().backward()
        return (x * x.grad).sum(1).detach().numpy()

    def gamma(batch: int) -> np.ndarray:
        with LayerMapComposite(rules).context(model):
            return epsilon(batch)

    return {"attn_lrp": epsilon, "attn_lrp_gamma": gamma}


def attribution(folder: Path) -> dict[str, Call]:
    """Transformer attribution and generic attention from their papers."""
    from benchmarks import peers_attribution

    model = read(folder, attn_implementation="eager")

    def call(name: str, batch: int) -> np.ndarray:
        return getattr(peers_attribution, name)(model, inputs(model, batch), range(batch)).numpy()

    return {name: partial(call, name) for name in ("transformer_attribution", "generic_attention")}


def read(folder: Path, **options: Any) -> Any:
    """The model, with parameters that need no gradients, as lxt's example has it."""
    from transformers import ViTForImageClassification

    model = ViTForImageClassification.from_pretrained(folder, **options)
    return model.eval().requires_grad_(False)


@cache
def _images(batch: int, side: int) -> Any:
    import torch

    return torch.from_numpy(images(batch, side))


def inputs(model: Any, batch: int) -> Any:
    """Images (batch, 3, H, W), a new tensor in each call."""
    return _images(batch, model.config.image_size).clone()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
