"""The small twin of `make soak`: killed in every stage, a run ends with the bytes of an undisturbed one."""

from pathlib import Path

import pytest

from tests import soak
from tests.made_voc import make_voc, write_sbd

HYBRID = (
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
VGG = (
    "--config.data.workers=0",
    "--config.model.name=vgg_test_cam",
    "--config.model.image_size=96",
    "--config.classifier.epochs=3",
    "--config.classifier.batch_size=4",
    "--config.classifier.long_side=(60,110)",
    "--config.classifier.learning_rate=1e-3",
    "--config.seeds.batch_size=2",
    "--config.seeds.scales=(1.0,0.5)",
    "--config.affinity.grid=12",
    "--config.affinity.epochs=3",
    "--config.affinity.batch_size=4",
    "--config.affinity.features=56",
    "--config.affinity.long_side=(80,80)",
    "--config.affinity.learning_rate=1e-3",
    "--config.walk.log2_steps=3",
    "--config.segmenter.hidden=32",
    "--config.segmenter.epochs=3",
    "--config.segmenter.batch_size=4",
)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("config", "options"), [("voc", HYBRID), ("voc_cam", VGG)])
def test_killed_in_every_stage(
    config: str, options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data, path = tmp_path / "data", f"configs/{config}.py"
    made = make_voc(data / "VOCdevkit/VOC2012", train=8, aug=8, val=8, size=(60, 80))
    write_sbd(made, data / "benchmark_RELEASE/dataset")
    whole, broken, log = tmp_path / "whole", tmp_path / "broken", tmp_path / "log.txt"
    for script in dict.fromkeys(soak.STAGES.values()):
        command = soak.command(script, data, whole, options, config=path)
        code, _, _ = soak.run(command, log)
        assert code == 0, log.read_text()
    kills = soak.disturbed(data, broken, options, log, path)
    assert kills == len(soak.STAGES), log.read_text()
    assert soak.different(whole, broken) == []
    assert soak.different(whole, data)  # nothing is equal to what has no results
