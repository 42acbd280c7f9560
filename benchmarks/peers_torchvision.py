"""Lets torchvision be imported where its compiled operators do not load; import it before anything that does.

PyPI's torchvision is built for CUDA. Beside a build of PyTorch for CPUs its operators are missing, and its import fails
where it describes two of them. A Vision Transformer uses none: they are only declared.
"""

import torch

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")  # kept, or its declarations vanish

if torch.version.cuda is None:
    for name in ("nms", "qnms"):
        _LIBRARY.define(f"{name}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
