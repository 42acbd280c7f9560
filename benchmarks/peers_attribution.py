"""Transformer attribution and generic attention in PyTorch, as a peer of vitx's for `python -m benchmarks.peers`.

Written from the papers (Chefer, Gur and Wolf, CVPR 2021 and ICCV 2021) and docs/method.md, for transformers' ViT with
eager attention. Hooks keep the inputs and outputs of the layers, autograd gives the gradients at the attention, and
relevance goes back layer by layer. One image after the other, as published. It needs nothing of vitx or JAX.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

DENOMINATOR = 1e-9
Kept = dict[nn.Module, tuple[Tensor, Tensor]]
"""The input and output of each layer."""


def transformer_attribution(model: nn.Module, images: Tensor, classes: Sequence[int]) -> Tensor:
    """Maps (B, N patches) of images (B, 3, H, W): the product of I + E[relu(G * R)], R the attention's relevance."""

    def one(image: Tensor, label: int) -> Tensor:
        blocks = blocks_of(model)
        layers = [layer for block in blocks for layer in layers_of(block)]
        with keeping([*layers, head_of(model)]) as kept:
            gradients, attentions = gradients_at(model, image, label)
        with torch.no_grad():
            matrices = relevances(model, kept, attentions, label)
            return product([_mean_positive(g, r) for g, r in zip(gradients, matrices, strict=True)])

    return _one_by_one(one, images, classes)


def generic_attention(model: nn.Module, images: Tensor, classes: Sequence[int]) -> Tensor:
    """The same with the attention itself in place of its relevance."""

    def one(image: Tensor, label: int) -> Tensor:
        pairs = zip(*gradients_at(model, image, label), strict=True)
        with torch.no_grad():
            return product([_mean_positive(g, a) for g, a in pairs])

    return _one_by_one(one, images, classes)


def _one_by_one(
    one: Callable[[Tensor, int], Tensor], images: Tensor, classes: Sequence[int]
) -> Tensor:
    pairs = zip(images.split(1), classes, strict=True)
    return torch.cat([one(image, label) for image, label in pairs])


def blocks_of(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if type(module).__name__ == "ViTLayer"]


def layers_of(block: nn.Module) -> list[nn.Module]:
    """Queries, keys, values, projection and the two layers of the MLP; then the two LayerNorms."""
    found = [module for module in block.modules() if isinstance(module, nn.Linear | nn.LayerNorm)]
    return sorted(found, key=lambda module: isinstance(module, nn.LayerNorm))


def head_of(model: nn.Module) -> nn.Linear:
    """The classifier, the last of the model's layers."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


@contextmanager
def keeping(layers: Sequence[nn.Module]) -> Iterator[Kept]:
    """Each layer's input and output of the forwards within."""
    kept: Kept = {}

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kept[layer] = inputs[0].detach(), output.detach()

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def gradients_at(
    model: nn.Module, image: Tensor, label: int
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """The logit's gradients at the attention of each block, and the attention, (1, heads, N, N)."""
    with torch.enable_grad():
        output = model(image.detach().requires_grad_(), output_attentions=True)
        gradients = torch.autograd.grad(output.logits[0, label], output.attentions)
    return gradients, [attention.detach() for attention in output.attentions]


def relevances(
    model: nn.Module, kept: Kept, attentions: Sequence[Tensor], label: int
) -> list[Tensor]:
    """The relevance of the attention of each block (1, heads, N, N), from the last block down."""
    head, (*below, last) = head_of(model), blocks_of(model)
    read, logits = kept[head]
    start = torch.zeros_like(logits)
    start[0, label] = 1
    relevance = torch.zeros_like(kept[layers_of(last)[-1]][0])  # (1, N, D)
    relevance[:, 0] = linear(head, read, start)  # LayerNorm passes it, of the class token alone
    found = []
    for block, attention in zip((last, *reversed(below)), reversed(attentions), strict=True):
        matrix, relevance = through_block(layers_of(block), kept, attention, relevance)
        found.append(matrix)
    return found[::-1]


def through_block(
    layers: Sequence[nn.Module], kept: Kept, attention: Tensor, relevance: Tensor
) -> tuple[Tensor, Tensor]:
    """The relevance of a block's attention and of its input; softmax, GELU and LayerNorm pass it unchanged."""
    query, key, value, projection, first, second, before, after = layers
    tokens, middle = kept[before][0], kept[after][0]
    skip, branch = add(middle, kept[second][1], relevance)
    branch = linear(second, kept[second][0], branch)
    branch = linear(first, kept[first][0], branch)
    skip, branch = add(tokens, kept[projection][1], clone(middle, skip, branch))
    mixed = kept[projection][0]
    branch = linear(projection, mixed, branch)

    heads = attention.shape[1]
    q, k, v = (_split(kept[layer][1], heads) for layer in (query, key, value))
    of_attention, of_v = matmul(attention, v, _split(mixed, heads), _split(branch, heads))
    of_q, of_k = matmul(q, k.mT, q @ k.mT, of_attention)
    pairs = zip((query, key, value), (of_q, of_k.mT, of_v), strict=True)
    branch = sum(linear(layer, kept[layer][0], _joined(r)) for layer, r in pairs)
    return of_attention, clone(tokens, skip, branch)


def inverse(z: Tensor) -> Tensor:
    """1 / (z + 1e-9), 0 for 0."""
    return torch.where(z == 0, 0, 1 / (z + DENOMINATOR))


def linear(layer: nn.Module, x: Tensor, relevance: Tensor) -> Tensor:
    """Eq. 4: relevance in proportion to the positive products x+ w+ and x- w-."""
    weight = layer.weight
    parts = [(sign * x).clamp(min=0) for sign in (1, -1)]
    weights = [(sign * weight).clamp(min=0) for sign in (1, -1)]
    total = sum(part @ w.mT for part, w in zip(parts, weights, strict=True))
    share = relevance * inverse(total)
    return sum(part * (share @ w) for part, w in zip(parts, weights, strict=True))


def add(x: Tensor, y: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """The z-rule of x + y; then the shares' sums keep |sum| : |sum| and their total (section 4.2)."""
    share = relevance * inverse(x + y)
    shares = x * share, y * share
    sums = [part.sum() for part in shares]
    scale = relevance.sum() * inverse(sums[0].abs() + sums[1].abs())
    first, second = (p * (s.abs() * scale * inverse(s)) for p, s in zip(shares, sums, strict=True))
    return first, second


def matmul(x: Tensor, y: Tensor, output: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """The z-rule of x y, half for each factor."""
    share = relevance * inverse(output)
    return x * (share @ y.mT) / 2, y * (x.mT @ share) / 2


def clone(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Of a value with two readers: x (R_1 / x + R_2 / x)."""
    inverted = inverse(x)
    return x * (first * inverted + second * inverted)


def product(matrices: Sequence[Tensor]) -> Tensor:
    """The class token's row of (I + M_L) ... (I + M_1), M (1, N, N), without its own column: (1, N - 1)."""
    unit = torch.eye(matrices[0].shape[-1], dtype=matrices[0].dtype, device=matrices[0].device)
    joint = unit
    for matrix in matrices:
        joint = (unit + matrix) @ joint
    return joint[:, 0, 1:]


def _mean_positive(gradient: Tensor, other: Tensor) -> Tensor:
    return (gradient * other).clamp(min=0).mean(1)


def _split(x: Tensor, heads: int) -> Tensor:
    """(1, N, D) -> (1, heads, N, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)
