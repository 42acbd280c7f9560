"""Explanations of Vision Transformers, and segmentation masks made from them, in JAX.

`create` and `load` make a model, `save` writes one, `explain` gives logits and maps by one of
`METHODS`.
"""

from vitx.models.registry import create
from vitx.relevance.explain import METHODS, explain
from vitx.weights import load, save

__version__ = "0.1.0"

__all__ = ["METHODS", "create", "explain", "load", "save"]
