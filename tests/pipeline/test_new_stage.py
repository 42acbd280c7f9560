"""A stage is one object: what a new one needs, from its options to the report page."""

import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import testing
from tests.runs import KNOWN
from vitx.pipeline.artifacts import SCORES, read_scores
from vitx.report.page import Section
from vitx.runtime.experiment import Run, Stage, check_options, run_stages
from vitx.runtime.files import write_json
from vitx.runtime.options import whole
from vitx.runtime.signals import StopRequest
from vitx.runtime.workdir import StageFolder, Workdir

# The new file: a stage that counts the images that show each class.


def count_images(run: Run, stage: StageFolder) -> None:
    source = run.source(run.config.data.val_split)
    labels = [source.labels(index) for index in range(min(len(source), run.config.count.most))]
    write_json(
        stage.folder / SCORES, dict(zip(source.classes[1:], map(int, sum(labels)), strict=True))
    )


STAGE = Stage(
    "count",
    count_images,
    keys=["data", "count"],
    ignores=["data.root"],
    facts=lambda run: {"data": {"fingerprint": run.source(run.config.data.val_split).fingerprint}},
    options={"count.most": whole(1)},
    splits=["data.val_split"],
    scores=lambda run: {"count": read_scores(run, "count")},
    tables=lambda results: [f"Images counted: {sum(results['count'].values())}"],
    section=lambda run, results: [Section("Images of each class", [results["count"]])],
)


def _run(folder: Path, most: int = 10) -> Run:
    config: ConfigDict = testing.get_config()
    config.stages, config.data.root = "count,report", str(folder / "data")
    for name in (
        "classifier",
        "seeds",
        "labels",
        "affinity",
        "walk",
        "controls",
        "segmenter",
        "methods",
    ):
        del config[name]
    config.count = ConfigDict({"most": most})
    # The new line, in the list of a script.
    stages = {"count": STAGE, **KNOWN}
    return Run(config, Workdir(folder / "run"), StopRequest(), stages)


def test_a_new_stage_is_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _run(tmp_path)
    check_options(run.config, run.stages)
    run_stages(run, list(run.stages.values()))
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert sum(results["count"].values()) >= 10 and list(results["stages"]) == ["count"]
    assert "Images of each class" in (tmp_path / "run/report.html").read_text()
    assert f"Images counted: {sum(results['count'].values())}" in capsys.readouterr().out
    run_stages(_run(tmp_path), list(run.stages.values()))
    assert "count: done before" in capsys.readouterr().err


def test_its_options_are_checked_and_recorded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.count\.most must be a whole number from 1 up"):
        check_options(_run(tmp_path, most=0).config, {"count": STAGE, **KNOWN})
    run = _run(tmp_path)
    run_stages(run, list(run.stages.values()))
    for name in ("count", "report"):
        with pytest.raises(ValueError, match=r"count\.most 10 -> 9"):
            _run(tmp_path, most=9).stage(name)
