"""Checkpoints in and out: whosever names they have into a model, a model into timm's names.

`files` opens a file, `names` finds out whose names it has and gives timm's, `facts` gathers what is
said beside the tensors, `build` makes the model they describe, `read` fills it, and `write` is the
way back. `layout` says for both ways which parameter has which name and axes.
"""

from vitx.weights.facts import digest
from vitx.weights.read import load, load_classifier
from vitx.weights.write import save

__all__ = ["digest", "load", "load_classifier", "save"]
