"""The small twin of `make soak`: killed in every stage, a run ends with the bytes of an undisturbed one."""

from pathlib import Path

import pytest

from tests import soak
from tests.made_voc import make_voc, write_sbd

OPTIONS = (
    "--config.data.workers=0",
    "--config.model.name=vit_test_conv_s4_48",
    "--config.model.image_size=48",
    "--config.classifier.epochs=3",
    "--config.classifier.batch_size=4",
    "--config.seeds.batch_size=2",
    "--config.affinity.grid=12",
    "--config.affinity.epochs=3",
    "--config.affinity.batch_size=4",
    "--config.affinity.features=32",
    "--config.walk.log2_steps=3",
    "--config.walk.levels=('stem.2',)",
    "--config.segmenter.levels=('stem.1','block.1')",
    "--config.segmenter.hidden=32",
    "--config.segmenter.epochs=3",
    "--config.segmenter.batch_size=4",
)


@pytest.mark.exhaustive
def test_killed_in_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = tmp_path / "data"
    made = make_voc(data / "VOCdevkit/VOC2012", train=8, aug=8, val=8, size=(60, 80))
    write_sbd(made, data / "benchmark_RELEASE/dataset")
    whole, broken, log = tmp_path / "whole", tmp_path / "broken", tmp_path / "log.txt"
    for script in dict.fromkeys(soak.STAGES.values()):
        code, _, _ = soak.run(soak.command(script, data, whole, OPTIONS), log)
        assert code == 0, log.read_text()
    assert soak.disturbed(data, broken, OPTIONS, log) == len(soak.STAGES), log.read_text()
    assert soak.different(whole, broken) == []
    assert soak.different(whole, data)  # nothing is equal to what has no results
