"""Runs of experiments, as the command line begins them."""

from pathlib import Path

from ml_collections import ConfigDict

from vitx.pipeline.stages import EVALUATE, TRAIN
from vitx.runtime.experiment import Run
from vitx.runtime.signals import StopRequest
from vitx.runtime.workdir import Workdir

KNOWN = {stage.name: stage for stage in (*TRAIN, *EVALUATE)}
STAGES = tuple(stage for stage in KNOWN.values() if not stage.command)


def begun(config: ConfigDict, folder: Path, stop: StopRequest | None = None) -> Run:
    """An experiment in a workdir."""
    return Run(config, Workdir(folder), stop or StopRequest(), KNOWN)
