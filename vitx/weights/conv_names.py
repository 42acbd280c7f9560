"""Gives the tensors of CNNs vitx's names and axes: psa's VGG-16 and AffinityNet, torchvision's VGG-16 and ResNet-50.

A project's names are a row of `schemes.SCHEMES`; here is what changes the numbers beside them.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np

from vitx.weights.tensor import Tensor

_FEATURES: Final = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # VGG-16's convolutions
_DEPTHS: Final = (2, 2, 3, 3, 3)
_PLACES: Final = [(stage, index) for stage, depth in enumerate(_DEPTHS) for index in range(depth)]
_NORM_EPS: Final = 1e-5  # of torchvision's BatchNorm


def psa_conv(found: re.Match[str]) -> str:
    """conv<stage>_<number> of psa, both from 1."""
    stage, number = (int(x) - 1 for x in found.groups())
    return f"stages.{stage}.{number}"


def torchvision_conv(found: re.Match[str]) -> str:
    """features.<number> of torchvision's VGG-16; its own name where that is no convolution of it."""
    number = int(found[1])
    if number not in _FEATURES:
        return found[0]
    return "stages.{}.{}".format(*_PLACES[_FEATURES.index(number)])


def from_psa(tensors: dict[str, Tensor]) -> None:
    """Turns the first convolution's channels from BGR to RGB, and the head's 1x1 convolution to a matrix."""
    _change(tensors, "stages.0.0.weight", lambda kernel: kernel[:, ::-1])
    head = tensors.get("head.weight")
    if head is not None and head.shape[2:] == (1, 1):
        tensors["head.weight"] = head.reshape(*head.shape[:2])


def psa_affinity(tensors: dict[str, Tensor]) -> None:
    """`from_psa`, and the backbone's names in front of it."""
    from_psa(tensors)
    for name in [n for n in tensors if n.startswith(("stages.", "fc6.", "fc7."))]:
        tensors[f"backbone.{name}"] = tensors.pop(name)


def from_torchvision_vgg(tensors: dict[str, Tensor]) -> None:
    """Convolutions from the fully connected layers, of which every fourth output and third cell stays, as in DeepLab.

    fc6 is classifier.0 seen as 7x7 kernels, fc7 classifier.3.
    """
    fc6 = tensors.get("fc6.weight")
    if fc6 is not None and len(fc6.shape) == 2 and fc6.shape[1] % 49 == 0:
        tensors["fc6.weight"] = fc6.reshape(fc6.shape[0], fc6.shape[1] // 49, 7, 7)
        _change(tensors, "fc6.weight", lambda kernel: kernel[::4, :, ::3, ::3])
        _change(tensors, "fc6.bias", lambda bias: bias[::4])
    fc7 = tensors.get("fc7.weight")
    if fc7 is not None and len(fc7.shape) == 2:
        tensors["fc7.weight"] = fc7.reshape(*fc7.shape, 1, 1)
        _change(tensors, "fc7.weight", lambda kernel: kernel[::4, ::4])
        _change(tensors, "fc7.bias", lambda bias: bias[::4])


def from_torchvision_resnet(tensors: dict[str, Tensor]) -> None:
    """Folds the running statistics of each BatchNorm into its factor and shift.

    Raises:
      ValueError: for a ResNet of basic blocks, such as ResNet-18.
    """
    if "stages.0.0.conv3.weight" not in tensors:
        raise ValueError(
            "this is a ResNet without bottlenecks, which vitx does not have: it reads ResNet-50 and its deeper forms"
        )
    for mean in [name for name in tensors if name.endswith(".running_mean")]:
        norm = mean.removesuffix("running_mean")
        names = [f"{norm}{part}" for part in ("weight", "bias", "running_mean", "running_var")]
        if all(name in tensors for name in names) and len({tensors[n].shape for n in names}) == 1:
            parts = [tensors[name] for name in names]
            tensors[names[0]] = Tensor(parts[0].shape, partial(_factor, *parts))
            tensors[names[1]] = Tensor(parts[0].shape, partial(_shift, *parts))
            del tensors[names[2]], tensors[names[3]]


def _factor(weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> np.ndarray:
    spread = variance.read()
    return weight.read() / np.sqrt(spread + np.asarray(_NORM_EPS, spread.dtype))


def _shift(weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> np.ndarray:
    return bias.read() - mean.read() * _factor(weight, bias, mean, variance)


def _change(
    tensors: dict[str, Tensor], name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Replaces a tensor, where there is one, by some of its numbers in another order."""
    if (old := tensors.get(name)) is not None and len(old.shape) in (1, 4):
        shape = change(np.broadcast_to(np.zeros(()), old.shape)).shape
        tensors[name] = Tensor(shape, lambda: change(old.read()))
