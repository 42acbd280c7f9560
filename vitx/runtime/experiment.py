"""Stages of an experiment: what each declares, and running those that are not done."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import jax
from ml_collections import ConfigDict

from vitx import parallel, weights
from vitx.report.page import Section, Tile
from vitx.runtime.options import COMMON, Wanted, check_ranges, settled
from vitx.runtime.progress import busy
from vitx.runtime.signals import StopRequest
from vitx.runtime.sources import Sources
from vitx.runtime.workdir import StageFolder, Workdir

if TYPE_CHECKING:  # its package TFDS is needed only where a dataset is read
    from vitx.data.source import Source

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Stage:
    """One step of an experiment, declared in the file of its function. Nothing else knows it by name.

    Attributes:
        name: In `config.stages`; also its folder in the workdir.
        run: Does the work, and writes into the stage's folder.
        needs: The last stages whose results it reads, or a function of the config that names them; it may read what
            they need, too. What decides their results decides its own.
        needs_all: It reads the results of all stages of the experiment.
        keys: Sections and entries of the config that decide its results. An experiment whose config lacks one of
            these sections does not have the stage.
        ignores: Entries of `keys` that decide nothing.
        facts: What decides its results beside the config, such as fingerprints of data: {section: {entry: value}}.
        options: Ranges of options, by patterns of keys.
        check_options: Raises ValueError for options that do not fit together.
        check_model: Raises ValueError for a trained model that it cannot use; stage `classifier` calls it.
        splits: Keys of the splits that it reads. Each is read once before the first stage begins.
        check: Raises what would otherwise end the stage later.
        scores: Its part of `results.json`.
        tables: What the terminal shows of the results: strings and tables of rich.
        tiles: Its main figures, at the top of the report page.
        section: Its sections of the report page.
        show: Called in the first process at the end of each start that wants the stage.
        command: It has no folder of its own and runs at each start, in one process.
    """

    name: str
    run: Callable[["Run", StageFolder], None]
    needs: Sequence[str] | Callable[[ConfigDict], Sequence[str]] = ()
    needs_all: bool = False
    keys: Sequence[str] = ()
    ignores: Sequence[str] = ()
    facts: Callable[["Run"], Mapping[str, Mapping[str, Any]]] = lambda run: _NOTHING
    options: Mapping[str, Wanted] = field(default_factory=dict)
    check_options: Callable[[ConfigDict], None] = lambda config: None
    check_model: Callable[[ConfigDict, Any], None] = lambda config, model: None
    splits: Sequence[str] = ()
    check: Callable[["Run"], None] = lambda run: None
    scores: Callable[["Run"], Mapping[str, Any]] = lambda run: _NOTHING
    tables: Callable[[dict[str, Any]], Iterable[Any]] = lambda results: ()
    tiles: Callable[[dict[str, Any]], Sequence[Tile]] = lambda results: ()
    section: Callable[["Run", dict[str, Any]], Sequence[Section]] = lambda run, results: ()
    show: Callable[["Run"], None] = lambda run: None
    command: bool = False

    def needs_of(self, config: ConfigDict) -> Sequence[str]:
        """The last stages whose results it reads in an experiment."""
        return self.needs(config) if callable(self.needs) else self.needs

    def part_of(self, config: ConfigDict) -> bool:
        """Whether an experiment has this stage."""
        return not self.command and all(key.partition(".")[0] in config for key in self.keys)


@dataclass
class Run:
    """One experiment in one workdir, handed from stage to stage.

    Attributes:
        config: The experiment.
        workdir: Its folder.
        stop: Checked where stopping is safe.
        stages: All that the experiment may have, by name.
        sources: The images, by split.
    """

    config: ConfigDict
    workdir: Workdir
    stop: StopRequest
    stages: Mapping[str, Stage]
    sources: Sources = field(init=False)
    _digests: dict[str, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.config = settled(self.config, self.workdir.recorded(self.stages))
        self.sources = Sources(self.config, self.workdir.folder / "unreadable", self.stop)

    def source(self, split: str) -> "Source":
        """The images of a split such as "val" or "train[:400]", opened once; see `Sources`."""
        return self.sources[split]

    def chain(self, name: str) -> list[Stage]:
        """The stages whose options decide a stage's results, itself last."""
        stage = self.stages[name]
        others = [other.name for other in self.stages.values() if other.part_of(self.config)]
        needs = (
            [other for other in others if other != name]
            if stage.needs_all
            else stage.needs_of(self.config)
        )
        found = {before.name: before for other in needs for before in self.chain(other)}
        return [*found.values(), stage]

    def declared(self, name: str, ignored: bool = False) -> dict[str, Any]:
        """The part of the config that decides a stage's results; with `ignored` also what a stage ignores."""
        config, options = self.config.to_dict(), dict[str, Any]()
        for stage in self.chain(name):
            for key in stage.keys:
                section, _, entry = key.partition(".")
                value = config.get(section)
                if isinstance(value, dict):
                    kept = {
                        k: v
                        for k, v in value.items()
                        if entry in ("", k) and (ignored or f"{section}.{k}" not in stage.ignores)
                    }
                    options[section] = options.get(section, {}) | kept
                elif section in config:
                    options[section] = value
        return options

    def stage(self, name: str) -> StageFolder:
        """The folder of a stage, checked against the options that it was begun with."""
        if self.stages[name].command:
            return StageFolder(self.workdir.folder, {})
        options = self.declared(name)
        for stage in self.chain(name):
            for section, facts in stage.facts(self).items():
                if section in options:
                    options[section] = options[section] | facts
        return self.workdir.stage(name, options)

    def digest(self, path: str) -> str:
        """The digest of a checkpoint, see `weights.digest`, computed once."""
        if path not in self._digests:
            self._digests[path] = weights.digest(path)
        return self._digests[path]

    def finished(self, name: str) -> StageFolder:
        """The folder of a stage that has to be done.

        Raises:
            ValueError: It is not done.
        """
        folder = self.stage(name)
        if not folder.done:
            raise ValueError(
                f"stage {name!r} is not done in {self.workdir.folder}: run it first, with the same "
                "--workdir and --config"
            )
        return folder


def wanted_stages(config: ConfigDict, known: Iterable[str]) -> list[str]:
    """The names in `config.stages`; ValueError for one that is not known."""
    wanted, known = [name.strip() for name in config.stages.split(",")], list(known)
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(
            f"config.stages has no stage {unknown[0]!r}; there are: {', '.join(known)}"
        )
    return wanted


def ranges_of(stages: Mapping[str, Stage]) -> dict[str, Wanted]:
    """The ranges of all options, by patterns of keys."""
    return {
        key: range for stage in stages.values() for key, range in stage.options.items()
    } | COMMON


def check_options(config: ConfigDict, stages: Mapping[str, Stage]) -> None:
    """Checks the options of a config: ranges, choices, and what must fit together in the stages to run.

    Raises:
        ValueError: Names the first option that is wrong, and what it must be.
    """
    wanted = wanted_stages(config, stages)
    check_ranges(config, ranges_of(stages))
    for name in wanted:
        stages[name].check_options(config)


def run_stages(run: Run, own: Sequence[Stage], later: Sequence[Stage] = ()) -> None:
    """Runs those of `own` that `config.stages` names and that are not done, in their order.

    Checks these first, and those of `later` that `config.stages` names; see `check_stages`.

    Raises:
        ValueError: `config.stages` has an unknown name, or none of `own`; or a check has failed.
    """
    wanted = wanted_stages(run.config, run.stages)
    chosen = [stage for stage in own if stage.name in wanted]
    if not chosen:
        raise ValueError(
            f"config.stages={run.config.stages} names no stage of this script, which has "
            f"{', '.join(stage.name for stage in own)}"
        )
    with busy("reading data and weights"):
        check_stages(run, (*chosen, *(stage for stage in later if stage.name in wanted)))
    for stage in chosen:
        run.stop.check()
        folder = run.stage(stage.name)
        if stage.command:
            if jax.process_count() > 1:
                raise ValueError(f"{stage.name} runs in one process: start it without the others")
            with busy(f"{stage.name}: running"):
                stage.run(run, folder)
            continue
        if folder.done:
            _report(f"{stage.name}: done before, in {folder.seconds:.0f} s")
            continue
        parallel.barrier()  # all have looked at the stage's folder before one writes there
        with folder.run(), busy(f"{stage.name}: running"):
            stage.run(run, folder)
            parallel.barrier()  # all parts are there
        parallel.barrier()  # the first process has recorded it
        _report(f"{stage.name}: done in {folder.seconds:.0f} s")
    for stage in chosen:
        if parallel.is_first_process():
            stage.show(run)


def _report(line: str) -> None:
    if parallel.is_first_process():
        print(line, file=sys.stderr)


def check_stages(run: Run, stages: Iterable[Stage]) -> None:
    """Reads the splits of those stages that are not done, and calls each `Stage.check`, before work begins.

    Raises:
        ValueError, FileNotFoundError, ImportError: What would otherwise end a stage later.
    """
    for stage in stages:
        if stage.command or run.stage(stage.name).done:
            continue
        for key in stage.splits:
            section, _, name = key.partition(".")
            split = run.config[section][name]
            try:
                run.source(split)
                run.sources.require_readable(split)
            except ValueError as error:
                raise ValueError(f"config.{key}={split}: {error}") from error
        stage.check(run)
