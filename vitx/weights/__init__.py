"""Checkpoints of several projects into a model, and a model into timm's names.

`files` opens a file, `names` gives its tensors timm's names, `metadata` reads what it specifies besides,
`build` creates the model they describe, `read` fills it, and `write` is the way back. `layout` relates
parameters and tensors for both ways. `pytorch_reference` runs the same file in PyTorch.
"""

from vitx.weights.metadata import digest
from vitx.weights.read import load, load_classifier
from vitx.weights.write import save

__all__ = ["digest", "load", "load_classifier", "save"]
