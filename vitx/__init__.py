"""Explanations of Vision Transformers, and segmentation masks from them, in JAX.

`create` and `load` return a model, `save` writes one, `tokens` computes its tokens, `explain` logits and maps by one
of `METHODS`, `segment` the classes of pixels by a segmentation network.
"""

from vitx.models.registry import create
from vitx.models.segmenter import segment
from vitx.models.variants import tokens
from vitx.relevance.explain import METHODS, explain
from vitx.weights import load, save

__version__ = "0.1.0"

__all__ = ["METHODS", "create", "explain", "load", "save", "segment", "tokens"]
