"""The stages of an experiment: what each one's results depend on, and running those that are not done."""

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vitx import parallel, weights
from vitx.data import loader
from vitx.data.unreadable import find_unreadable, recorded, refuse
from vitx.runtime.paths import as_path
from vitx.runtime.signals import StopRequest
from vitx.runtime.workdir import StageFolder, Workdir, recorded_options

# The keys of the config, or of a section of it, that decide a stage's results, those of the stages before it included.
_CLASSIFIER = ("seed", "data", "model", "classifier")
_SEEDS = (*_CLASSIFIER, "seeds")
_LABELS = (*_SEEDS, "labels", "affinity.grid")
_AFFINITY = (*_SEEDS, "labels", "affinity")
_MASKS = (*_AFFINITY, "walk")
DEPENDS: dict[str, tuple[str, ...]] = {
    "classifier": _CLASSIFIER,
    "seeds": _SEEDS,
    "labels": _LABELS,
    "affinity": _AFFINITY,
    "masks": _MASKS,
    "methods": (*_CLASSIFIER, "methods"),
    "report": (*_MASKS, "methods", "report"),
}
# Not stages but commands: run anew each time, in the workdir itself, and never "done".
COMMANDS = ("explain", "gallery", "parity")
_SPLITS = ("train_split", "val_split", "split")  # options of a section that name one


def declared(config: ConfigDict, name: str) -> dict[str, Any]:
    """The part of a config that decides a stage's results."""
    whole, options = config.to_dict(), {}
    for key in DEPENDS[name]:
        section, _, entry = key.partition(".")
        if section in whole:
            options[section] = {entry: whole[section][entry]} if entry else whole[section]
    return options


@dataclass
class Run:
    """One experiment in one workdir, handed from stage to stage.

    Attributes:
      config: of the experiment.
      workdir: its folder.
      stop: looked at where stopping is safe.
    """

    config: ConfigDict
    workdir: Workdir
    stop: StopRequest
    _opened: dict[str, loader.Source] = field(default_factory=dict)  # whole
    _sources: dict[str, loader.Source] = field(default_factory=dict)  # without what is left out
    _unreadable: dict[str, dict[str, str]] = field(default_factory=dict)

    def stage(self, name: str) -> StageFolder:
        """The folder of a stage, checked against the options that it was begun with."""
        if name in COMMANDS:
            return StageFolder(self.workdir.folder, {})
        options = declared(self.config, name)
        # What the data and the weights hold counts, not where they lie, nor how many processes read.
        elsewhere = ("root", "classes", "workers")
        options["data"] = {k: v for k, v in options["data"].items() if k not in elsewhere}
        if "background" in options.get("seeds", {}) and name in ("seeds", "labels", "affinity"):
            del options["seeds"]["background"]  # of the masks that are scored, not of the seed maps
        if "labels" in options:
            del options["labels"]["workers"]
        data = self.config.data
        options["data"]["fingerprint"] = self.source(data.val_split).fingerprint
        if "train_split" in data:
            options["data"]["train_fingerprint"] = self.source(data.train_split).fingerprint
        if name in ("masks", "report") and "walk" in options:
            splits = dict.fromkeys((data.val_split, options["seeds"]["train_split"]))
            masks = [self.source(split).mask_fingerprint for split in splits]
            options["data"]["mask_fingerprints"] = masks
        if "checkpoint" in options.get("model", {}):
            options["model"] = {**options["model"], "checkpoint": self.checkpoint_digest}
        return self.workdir.stage(name, options)

    @functools.cached_property
    def checkpoint_digest(self) -> str:
        """Of `config.model.checkpoint`, see `checkpoints.digest`; "" where there is none.

        Raises:
          FileNotFoundError: where the file is not there.
        """
        path = self.config.get("model", {}).get("checkpoint", "")
        trained = self.workdir.folder / "classifier"
        if path and not as_path(path).exists() and (trained / "model.safetensors").exists():
            return recorded_options(trained)["model"]["checkpoint"]  # it is no longer needed
        return weights.digest(path) if path else ""

    def finished(self, name: str) -> StageFolder:
        """A stage that has to be done.

        Raises:
          ValueError: where it is not, saying how to get it.
        """
        stage = self.stage(name)
        if not stage.done:
            raise ValueError(
                f"stage {name!r} is not done in {self.workdir.folder}: run it first, with the same "
                "--workdir and --config"
            )
        return stage

    def source(self, split: str) -> loader.Source:
        """The images of a split such as "val" or "train[:400]", opened once.

        Under `config.on_bad_image` "skip" all processes call it together, and it leaves out what `unreadable` finds.
        """
        if split not in self._sources:
            source = self._open(split)
            if self._skips:
                source = source.without(self.unreadable(split))
            self._sources[split] = source
        return self._sources[split]

    @property
    def _skips(self) -> bool:
        return self.config.get("on_bad_image") == "skip"

    def unreadable(self, split: str) -> dict[str, str]:
        """What cannot be read in a split: ids, and why.

        Decodes, once in a workdir, all of the split of `config.data` that it is a part of. All processes call it
        together.
        """
        whole = self._whole(split)
        if whole not in self._unreadable:
            source = self._open(whole)
            found = find_unreadable(source, self._records, self.stop, keep=self._skips)
            self._unreadable[whole] = found
            if found and self._skips and parallel.is_first_process():
                print(
                    f"{whole}: {len(found)} of {len(source)} images cannot be read and are left out; "
                    f"{self._records} lists them",
                    file=sys.stderr,
                )
        found, source = self._unreadable[whole], self._open(split)
        if not found or split == whole:
            return found
        held = map(source.identifier, range(len(source)))
        return {identifier: found[identifier] for identifier in held if identifier in found}

    def _whole(self, split: str) -> str:
        """The split of `config.data` that another is a part of, or itself."""
        data = self.config.data
        wholes = [data[name] for name in ("train_split", "val_split") if name in data]
        return next((name for name in wholes if split.startswith(f"{name}[")), split)

    @property
    def _records(self) -> Path:
        return self.workdir.folder / "unreadable"

    def require_readable(self, split: str) -> None:
        """ValueError where something in a split cannot be read and is not left out."""
        if not self._skips:
            refuse(self.unreadable(split), self._open(split))

    def left_out(self) -> dict[str, dict[str, str]]:
        """Of each split that the config names, what this or an earlier start has left out: ids, and why."""
        if not self._skips:
            return {}
        sections = [section for section in self.config.values() if isinstance(section, ConfigDict)]
        named = [section.get(key, "") for section in sections for key in _SPLITS]
        wholes = dict.fromkeys(self._whole(split) for split in named if split)
        found = {split: recorded(self._open(split), self._records) for split in wholes}
        return {split: ids for split, ids in found.items() if ids}

    def _open(self, split: str) -> loader.Source:
        if split not in self._opened:
            data = self.config.data
            self._opened[split] = loader.open_source(
                data.name, split, data.root, classes=data.get("classes", "")
            )
        return self._opened[split]


def wanted_stages(config: ConfigDict) -> list[str]:
    """The names in `config.stages`; ValueError for one that is no stage."""
    wanted = [name.strip() for name in config.stages.split(",")]
    known = (*DEPENDS, *COMMANDS)
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(
            f"config.stages has no stage {unknown[0]!r}; there are: {', '.join(known)}"
        )
    return wanted


def run_stages(
    run: Run,
    stages: Mapping[str, Callable[[Run, StageFolder], None]],
    check: Callable[[Run], None] = lambda run: None,
) -> None:
    """Runs those of `stages` that `config.stages` names and that are not done, in their order, after `check`.

    Raises:
      ValueError: for a name that is no stage.
    """
    wanted = wanted_stages(run.config)
    chosen = [name for name in stages if name in wanted]
    if not chosen:
        raise ValueError(
            f"config.stages={run.config.stages} names no stage of this script, which has "
            f"{', '.join(stages)}"
        )
    check(run)
    for name in chosen:
        run.stop.check()
        stage = run.stage(name)
        if name in COMMANDS:
            if parallel.process_shard()[1] > 1:
                raise ValueError(f"{name} runs in one process: start it without the others")
            stages[name](run, stage)
            continue
        if stage.done:
            if parallel.is_first_process():
                print(f"{name}: done before, in {stage.seconds:.0f} s", file=sys.stderr)
            continue
        parallel.barrier()  # all have looked at the stage's folder before one writes there
        with stage.run():
            stages[name](run, stage)
            parallel.barrier()  # all parts are there
        parallel.barrier()  # the first process has recorded it
        if parallel.is_first_process():
            print(f"{name}: done in {stage.seconds:.0f} s", file=sys.stderr)
