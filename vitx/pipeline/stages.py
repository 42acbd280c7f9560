"""The stages of `vitx train` and `vitx evaluate`, in the order in which they run."""

from vitx.pipeline import (
    affinity,
    classifier,
    compare,
    controls,
    explain,
    gallery,
    labels,
    masks,
    methods,
    report,
    score,
    seeds,
    segmenter,
)
from vitx.runtime.experiment import Stage

TRAIN: tuple[Stage, ...] = (
    classifier.STAGE,
    seeds.STAGE,
    labels.STAGE,
    affinity.STAGE,
)
EVALUATE: tuple[Stage, ...] = (
    masks.STAGE,
    controls.STAGE,
    segmenter.STAGE,
    methods.STAGE,
    report.STAGE,
    gallery.COMMAND,
    explain.COMMAND,
    compare.COMMAND,
    score.COMMAND,
)
