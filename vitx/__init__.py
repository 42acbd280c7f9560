"""Explanations of Vision Transformers, and segmentation masks from them, in JAX.

`create` and `load` return a model, `save` writes one, `tokens` computes its tokens, `explain` logits and maps by one
of `METHODS`, `explain_many` by several, `segment` the classes of pixels by a segmentation network. `explain_image`
explains a photograph, and `overlay` draws a map over it.
"""

from vitx.models.registry import create
from vitx.models.segmenter import segment
from vitx.models.variants import tokens
from vitx.photo import Result, explain_image
from vitx.relevance.explain import METHODS, explain, explain_many
from vitx.report.overlay import overlay
from vitx.weights import load, save

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "Result",
    "create",
    "explain",
    "explain_image",
    "explain_many",
    "load",
    "overlay",
    "save",
    "segment",
    "tokens",
]
