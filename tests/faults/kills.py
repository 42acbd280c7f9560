"""SIGKILL at random moments of every stage."""

import random
import signal
from pathlib import Path

from tests.faults.pipeline import STAGES, Pipeline, after, begun, seconds, wrong_files

TRIES = 2  # kills of a stage in a round


def one_round(
    pipeline: Pipeline, workdir: Path, usual: dict[str, float], generator: random.Random
) -> dict[str, int]:
    """Takes a new workdir through all stages, and returns how often each was killed.

    A stage is killed twice, each time after a random part of its usual time, before it may end.
    """
    kills = dict.fromkeys(STAGES, 0)
    for stage, script in STAGES.items():
        for _ in range(TRIES):
            due = after(generator.uniform(0, usual[stage]), begun(workdir, stage))
            ended = pipeline.start(script, workdir, stage, until=due)
            if ended.code == 0:
                break  # it was faster
            if ended.code != -signal.SIGKILL:
                raise RuntimeError(
                    f"{stage} in {workdir} ended with {ended.code}: {ended.printed[-2000:]}"
                )
            kills[stage] += 1
        if (ended := pipeline.start(script, workdir, stage)).code:
            raise RuntimeError(
                f"{stage} in {workdir} ended with {ended.code}: {ended.printed[-2000:]}"
            )
    return kills


def kill_everywhere(pipeline: Pipeline, undisturbed: Path, wanted: int, seed: int) -> list[str]:
    """Repeats rounds until so many kills, and some in every stage; prints a table, returns the files that differ."""
    again = (
        pipeline.folder / "again"
    )  # like the rounds it finds the programs that the first run compiled
    pipeline.finish(again)
    wrong = [f"{again.name}: {name}" for name in wrong_files(undisturbed, again)]
    usual, generator = seconds(again), random.Random(seed)
    kills = dict.fromkeys(STAGES, 0)
    rounds = 0
    while sum(kills.values()) < wanted or not all(kills.values()):
        rounds += 1
        workdir = pipeline.folder / f"round{rounds}"
        found = one_round(pipeline, workdir, usual, generator)
        kills = {stage: kills[stage] + found[stage] for stage in STAGES}
        differ = wrong_files(undisturbed, workdir)
        wrong += [f"{workdir.name}: {name}" for name in differ]
        print(
            f"round {rounds}: {sum(kills.values())} kills, {len(differ)} files differ", flush=True
        )
    print("\n| stage | seconds | kills |\n|---|---|---|")
    for stage, count in kills.items():
        print(f"| {stage} | {usual[stage]:.1f} | {count} |")
    print(
        f"\n{sum(kills.values())} kills in {rounds} rounds (seed {seed}), {len(wrong)} files differ\n"
    )
    return wrong
