"""Markdown tables of figures, and of the targets they are compared with."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.targets import TARGETS, Target


def markdown(header: Sequence[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """The lines of a table, each as soon as its row is there."""
    yield f"| {' | '.join(header)} |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def print_table(header: Sequence[str], rows: Iterable[Iterable[str]]) -> None:
    """Prints a Markdown table, row by row."""
    for line in markdown(header, rows):
        print(line, flush=True)


def judge(target: Target, figures: Mapping[str, float]) -> dict[str, Any]:
    """A target's row: figure, limit, their ratio and whether the target is met; None for what is unknown."""
    row = target._asdict()
    row["figure"] = figure = figures.get(target.figure)
    row["limit"] = limit = (
        figures.get(target.limit) if isinstance(target.limit, str) else target.limit
    )
    row["ratio"] = row["met"] = None
    if figure is not None and limit is not None:
        row["ratio"] = ratio = figure / limit
        row["met"] = bool(ratio <= 1 if target.at_most else ratio >= 1)
    return row


def target_table(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The lines of the table of targets; rows as `judge` returns them."""
    cells = (
        (
            row["text"],
            row["yardstick"],
            "not measured" if row["figure"] is None else f"{row['figure']:.3g} {row['unit']}",
            "-" if row["ratio"] is None else f"{row['ratio']:.2f}",
            {True: "yes", False: "no", None: "-"}[row["met"]],
        )
        for row in rows
    )
    return markdown(("target", "yardstick", "figure", "ratio", "met"), cells)


def print_targets(benchmark: str, figures: Mapping[str, float]) -> None:
    """Prints the targets of one benchmark."""
    rows = [judge(target, figures) for target in TARGETS if target.benchmark == benchmark]
    print("", *target_table(rows), sep="\n")


def print_figures(benchmark: str, figures: Mapping[str, float]) -> None:
    """Prints every figure of one benchmark, and its targets."""
    print_table(("figure", "value"), ((name, f"{value:.4g}") for name, value in figures.items()))
    print_targets(benchmark, figures)
