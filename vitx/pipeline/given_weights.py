"""Trained weights in place of a training stage: `config.classifier.checkpoint` and `config.affinity.checkpoint`.

The stage writes them into its folder as if it had trained them, so that later stages see no difference.
"""

import sys
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from vitx import parallel, weights
from vitx.models.affinitynet import AffinityNet, MultiLevelAffinityNet
from vitx.models.segmenter import Segmenter
from vitx.models.variants import Classifier
from vitx.pipeline.explainer import trained_classes
from vitx.pipeline.training_stage import WEIGHTS
from vitx.runtime.experiment import Run
from vitx.runtime.paths import as_path
from vitx.runtime.workdir import StageFolder, recorded_options
from vitx.weights.class_names import FILE


def given_path(config: ConfigDict, stage: str) -> str:
    """The file or folder whose weights count as a training stage; "" where the stage trains."""
    return config.get(stage, {}).get("checkpoint", "")


def digest_of(run: Run, path: str, stage: str, section: str) -> str:
    """The digest of the file at a `checkpoint` of the config that a stage begins with, see `weights.digest`.

    Once the stage has written its own weights the file is no longer needed: then it is the recorded one.

    Raises:
        FileNotFoundError: There is no such file, and it is still needed.
    """
    folder = run.workdir.folder / stage
    if not as_path(path).exists() and (folder / WEIGHTS).exists():
        recorded = recorded_options(folder).get(section, {}).get("checkpoint")
        if recorded:
            return recorded
    try:
        return run.digest(path)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"config.{section}.checkpoint: {error}") from error


def given_facts(run: Run, stage: str) -> dict[str, dict[str, Any]]:
    """The contents of given weights decide a stage's results, not where they are; nothing where it trains."""
    path = given_path(run.config, stage)
    return {stage: {"checkpoint": digest_of(run, path, stage, stage)}} if path else {}


def given_weights(run: Run, stages: Iterable[str]) -> dict[str, dict[str, str]]:
    """Path and digest of the weights that were given, by stage, for `results.json`."""
    return {
        stage: {"path": given_path(run.config, stage), "digest": facts[stage]["checkpoint"]}
        for stage in stages
        if (facts := given_facts(run, stage))
    }


def given_remark(results: dict[str, Any], stage: str) -> list[str]:
    """A paragraph of the page that says so where a stage's weights were given."""
    if not (found := results["given"].get(stage)):
        return []
    text = f"Not trained here: the weights are those of {found['path']}, digest {found['digest']}."
    return [f"{text} {results.get('assumed', {}).get(stage, '')}".rstrip()]


def given_classifier(run: Run) -> Classifier:
    """The model of `config.classifier.checkpoint`, at `model.image_size`.

    Raises:
        ValueError: It cannot be read, or its classes are not those of the data.
    """
    path, source = given_path(run.config, "classifier"), run.source(run.config.data.val_split)
    key, options = f"config.classifier.checkpoint={path}", run.config.model
    try:
        model = weights.load_classifier(
            path,
            image_size=options.image_size,
            final_norm_eps=options.get("final_norm_eps") or None,
        )
    except ValueError as error:
        raise ValueError(f"config.classifier.checkpoint: {error}") from error
    classes = source.classes[1:]
    if model.num_classes != len(classes):
        raise ValueError(
            f"{key} has {model.num_classes} classes, but {source.name} has {len(classes)}: give weights that were "
            "trained on these, or give the file as config.model.checkpoint, to train a new head"
        )
    named = model.class_names if model.class_names_source == FILE else None
    trained = named or trained_classes(as_path(path))
    if trained and trained != classes:
        first = next(place for place, name in enumerate(classes) if trained[place] != name)
        raise ValueError(
            f"{key} was trained on other classes: its class {first} is {trained[first]!r}, that of {source.name} "
            f"{classes[first]!r}"
        )
    model.name_classes(tuple(classes), "data", model.scores)
    return model


def given_net(run: Run) -> AffinityNet | MultiLevelAffinityNet:
    """The AffinityNet of `config.affinity.checkpoint`, at `model.image_size`.

    Raises:
        ValueError: It cannot be read, or its levels or its grid are not those of the config.
    """
    path, options = given_path(run.config, "affinity"), run.config.affinity
    key = f"config.affinity.checkpoint={path}"
    try:
        net: Any = weights.load(path, image_size=run.config.model.image_size)
    except ValueError as error:
        raise ValueError(f"config.affinity.checkpoint: {error}") from error
    if not isinstance(net, AffinityNet | MultiLevelAffinityNet):
        kind = "segmentation network" if isinstance(net, Segmenter) else "classifier"
        raise ValueError(f"{key} holds a {kind}, where an AffinityNet is expected")
    levels = net.levels if isinstance(net, MultiLevelAffinityNet) else ()
    if levels != tuple(options.levels):
        raise ValueError(
            f"{key} reads the levels {levels}, where config.affinity.levels is {tuple(options.levels)}"
        )
    if net.grid and net.grid != (options.grid, options.grid):  # None follows the image
        raise ValueError(
            f"{key} has a grid of {net.grid[0]} x {net.grid[1]} at config.model.image_size="
            f"{run.config.model.image_size}, where config.affinity.grid is {options.grid}"
        )
    return net


def keep(run: Run, stage: StageFolder, model: Any) -> None:
    """Writes given weights into the folder of their stage, as training would."""
    if parallel.is_first_process():
        weights.save(model, stage.folder / WEIGHTS)
        name = stage.folder.name
        print(
            f"{name}: has the weights of {given_path(run.config, name)}, nothing is trained",
            file=sys.stderr,
        )
