"""Trained weights in place of the training stages: masks to the bit, digests, and what does not fit."""

import json
import shutil
from pathlib import Path

import pytest
from flax import nnx
from safetensors.numpy import load_file

import vitx
from configs import testing
from tests.runs import KNOWN, STAGES, begun
from tests.small_models import filled, guessing
from vitx import weights
from vitx.models.affinitynet import AffinityNet, MultiLevelAffinityNet
from vitx.models.design import Preprocess
from vitx.models.resnet import ResNetV2
from vitx.models.segmenter import Segmenter
from vitx.models.vit import VisionTransformer
from vitx.pipeline.artifacts import read_mask, read_seed_maps, seeded
from vitx.pipeline.report import gather
from vitx.runtime.experiment import Run, Stage, check_options, check_stages, run_stages

LEVELS = testing.get_config().affinity.levels
PIPELINE = "classifier,seeds,labels,affinity,masks,report"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def _run(folder: Path, data: Path, **changes: object) -> Run:
    config = testing.get_config()
    del config.methods, config.controls
    config.data.root, config.stages = str(data), PIPELINE
    config.update_from_flattened_dict(changes)
    check_options(config, KNOWN)
    return begun(config, folder)


def _stages(run: Run) -> list[Stage]:
    return [stage for stage in STAGES if stage.name in run.config.stages.split(",")]


def _hybrid(classes: int = 5, seed: int = 0) -> VisionTransformer:
    return filled(lambda: vitx.create("vit_test_conv_s4_48", num_classes=classes), seed)


def _net(levels: tuple[str, ...] = LEVELS, grid: int = 12) -> AffinityNet | MultiLevelAffinityNet:
    hybrid, options = _hybrid(seed=3), {"hidden": 32, "features": 32, "rngs": nnx.Rngs(0)}
    if levels:
        return MultiLevelAffinityNet(hybrid, levels, (grid, grid), **options)
    return AffinityNet(hybrid.stem, (grid, grid), preprocess=hybrid.preprocess, **options)


def _saved(model: object, path: Path) -> str:
    vitx.save(model, path)
    return str(path)


def _require_equal(a: Run, b: Run) -> None:
    """The same seed maps and masks to the bit; the files differ in their stamps."""
    folders = [{name: run.finished(name) for name in ("seeds", "masks")} for run in (a, b)]
    for split in ("train", "val"):
        for example in seeded(a, split):
            maps, others = (read_seed_maps(each["seeds"], split, example.id) for each in folders)
            for array, other in zip(maps, others, strict=True):
                assert array.tobytes() == other.tobytes()
            mask, other = (read_mask(each["masks"], split, example.id) for each in folders)
            assert mask.tobytes() == other.tobytes()


@pytest.mark.exhaustive
def test_the_weights_of_a_run_make_its_masks_without_training(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = _run(tmp_path / "trained", data)
    run_stages(trained, _stages(trained))
    folders = {name: tmp_path / "trained" / name for name in ("classifier", "affinity")}
    given = {f"{name}.checkpoint": str(folder) for name, folder in folders.items()}
    capsys.readouterr()
    run = _run(tmp_path / "given", data, **given)
    run_stages(run, _stages(run))
    assert "classifier: has the weights of" in (printed := capsys.readouterr().err)
    assert "affinity: has the weights of" in printed and "random weights" not in printed
    for name, folder in folders.items():
        own = tmp_path / "given" / name
        assert not (own / "checkpoints").exists() and not (own / "metrics.jsonl").exists()
        assert (own / "model.safetensors").read_bytes() == (
            folder / "model.safetensors"
        ).read_bytes()
    _require_equal(trained, run)

    first, second = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("trained", "given")
    )
    assert first["given"] == {} and first["masks"] == second["masks"]
    assert first["classifier"] == second["classifier"]
    assert second["given"] == {
        name: {"path": str(folder), "digest": weights.digest(folder)}
        for name, folder in folders.items()
    }
    page = (tmp_path / "given/report.html").read_text()
    for name in folders:
        assert f"the weights are those of {folders[name]}, digest" in page
    assert "Not trained here" not in (tmp_path / "trained/report.html").read_text()

    # Once they are in the workdir, the files are no longer needed.
    shutil.rmtree(tmp_path / "trained")
    again = _run(tmp_path / "given", data, **given)
    assert all(again.stage(stage.name).done for stage in _stages(again))


def test_another_file_is_refused_by_name(data: Path, tmp_path: Path) -> None:
    first, second = (
        _saved(_hybrid(seed=seed), tmp_path / f"{seed}.safetensors") for seed in (0, 1)
    )
    changes = {"stages": "classifier"}
    run = _run(tmp_path / "run", data, **{"classifier.checkpoint": first}, **changes)
    run_stages(run, _stages(run))
    digests = [weights.digest(path) for path in (first, second)]
    assert run.finished("classifier").options["classifier"]["checkpoint"] == digests[0]
    with pytest.raises(
        ValueError, match=rf'classifier\.checkpoint "{digests[0]}" -> "{digests[1]}"'
    ):
        _run(tmp_path / "run", data, **{"classifier.checkpoint": second}).stage("classifier")
    with pytest.raises(ValueError, match=rf'classifier\.checkpoint "{digests[0]}" -> absent'):
        _run(tmp_path / "run", data).stage("classifier")
    moved = tmp_path / "moved.safetensors"
    Path(first).rename(moved)  # contents decide, not the path
    for path in (moved, first):
        found = _run(tmp_path / "run", data, **{"classifier.checkpoint": str(path)})
        assert found.finished("classifier").done


def test_the_page_says_that_heads_were_guessed(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "given.safetensors"
    heads = guessing(path, num_classes=5, side=48)
    run = _run(tmp_path / "run", data, **{"classifier.checkpoint": str(path)}, stages="classifier")
    run_stages(run, [KNOWN["classifier"]])
    results = gather(run, [KNOWN["classifier"]])
    sentence = f"The number of heads of classifier, {heads}, was guessed from the width"
    assert results["assumed"]["classifier"].startswith(sentence)
    (section,) = KNOWN["classifier"].section(run, results)
    assert f"given.safetensors, digest {weights.digest(path)}. {sentence}" in section.body[0]


def test_a_stage_that_trains_records_nothing_new(data: Path, tmp_path: Path) -> None:
    run = _run(tmp_path, data)
    for name in ("classifier", "masks"):
        options = run.stage(name).options
        assert "checkpoint" not in options["classifier"]
        assert "checkpoint" not in options.get("affinity", {})


def _refused(folder: Path, data: Path, message: str, **changes: object) -> None:
    run = _run(folder / "run", data, **changes)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        check_stages(run, _stages(run))
    assert not list((folder / "run").rglob("*.safetensors"))


def test_a_classifier_that_does_not_fit_ends_the_run_at_its_start(
    data: Path, tmp_path: Path
) -> None:
    key = "classifier.checkpoint"
    _refused(tmp_path, data, r"config\.classifier\.checkpoint: .*no such file", **{key: "absent"})
    seven = _saved(_hybrid(7), tmp_path / "seven.safetensors")
    _refused(
        tmp_path,
        data,
        r"has 7 classes, but shapes/tiny.* has 5: give .*model\.checkpoint",
        **{key: seven},
    )
    net = _saved(_net(), tmp_path / "net.safetensors")
    _refused(tmp_path, data, r"config\.classifier\.checkpoint: .*an AffinityNet", **{key: net})
    noise = tmp_path / "noise.safetensors"
    noise.write_bytes(b"noise, too short for a header")
    _refused(tmp_path, data, r"config\.classifier\.checkpoint: .*damaged", **{key: str(noise)})

    folder = tmp_path / "trained"
    folder.mkdir()
    _saved(_hybrid(), folder)
    own = list(_run(tmp_path / "run", data).source("val").classes[1:])
    _scores_of(folder, own)
    check = _run(tmp_path / "fits", data, **{key: str(folder)})
    check_stages(check, _stages(check))
    _scores_of(folder, [own[1], own[0], *own[2:]])
    message = f"its class 0 is '{own[1]}', that of shapes/.* '{own[0]}'"
    _refused(tmp_path, data, message, **{key: str(folder)})

    with pytest.raises(ValueError, match=r"leave one of them out"):
        _run(tmp_path / "run", data, **{key: seven, "model.checkpoint": seven})
    deep = {"seeds.start_layer": 9, key: str(tmp_path / "fits.safetensors")}
    _saved(_hybrid(), tmp_path / "fits.safetensors")
    _refused(tmp_path, data, r"seeds\.start_layer 9 must be less than", **deep)


def _scores_of(folder: Path, names: list[str]) -> None:
    scores = {"loss": 1.0, "map": 0.5, "average_precision": dict.fromkeys(names, 0.5)}
    (folder / "scores.json").write_text(json.dumps(scores))


def test_an_affinitynet_that_does_not_fit_ends_the_run_at_its_start(
    data: Path, tmp_path: Path
) -> None:
    key = "affinity.checkpoint"
    hybrid = _saved(_hybrid(), tmp_path / "hybrid.safetensors")
    _refused(
        tmp_path, data, "holds a classifier, where an AffinityNet is expected", **{key: hybrid}
    )
    network = Segmenter(_hybrid(), ("stem.1",), 6, hidden=32, rngs=nnx.Rngs(0))
    network_file = _saved(network, tmp_path / "network.safetensors")
    _refused(tmp_path, data, "holds a segmentation network, where", **{key: network_file})
    published = _saved(_net(()), tmp_path / "published.safetensors")
    _refused(tmp_path, data, r"reads the levels \(\), where .*'block\.1'\)", **{key: published})
    levels = _saved(_net(LEVELS), tmp_path / "levels.safetensors")
    changes = {key: levels, "affinity.levels": ()}
    _refused(tmp_path, data, r"reads the levels .*'block\.1'\), where .* is \(\)", **changes)
    wide = _saved(_net(LEVELS, grid=24), tmp_path / "wide.safetensors")
    message = (
        r"a grid of 24 x 24 at config\.model\.image_size=48, where config\.affinity\.grid is 12"
    )
    _refused(tmp_path, data, message, **{key: wide})
    for path, own in ((levels, LEVELS), (published, ())):
        run = _run(tmp_path / "fits", data, **{key: path, "affinity.levels": own})
        check_stages(run, _stages(run))


@pytest.mark.slow
def test_files_like_the_published_ones_make_masks(data: Path, tmp_path: Path) -> None:
    """Two .pth with the names of [Re], which hold nothing but tensors, at the published stride of 8."""
    torch = pytest.importorskip("torch")
    sizes = {"width": 64, "depth": 2, "heads": 1, "hidden": 96, "patch": 1, "num_classes": 5}
    preprocess = Preprocess(size=(96, 96))

    def hybrid() -> VisionTransformer:
        stem = ResNetV2((1, 1, 1), rngs=nnx.Rngs(0))
        return VisionTransformer(**sizes, stem=stem, preprocess=preprocess, rngs=nnx.Rngs(0))

    def net() -> AffinityNet:
        return AffinityNet(hybrid().stem, (12, 12), preprocess=preprocess, rngs=nnx.Rngs(0))

    models = {"classifier": filled(hybrid), "affinity": filled(net, 1)}
    changes, written = {}, {}
    for name, model in models.items():
        tensors = load_file(_saved(model, tmp_path / f"{name}.safetensors"))
        written[name] = tensors
        state = {
            key.replace("patch_embed.backbone.", "resnet_backbone."): torch.from_numpy(array)
            for key, array in tensors.items()
        }
        torch.save(state, tmp_path / f"{name}.pth")
        changes[f"{name}.checkpoint"] = str(tmp_path / f"{name}.pth")
    changes |= {"model.image_size": 96, "affinity.levels": ()}
    run = _run(tmp_path / "run", data, **changes)
    run_stages(run, _stages(run))
    for name, tensors in written.items():
        kept = load_file(tmp_path / "run" / name / "model.safetensors")
        assert kept.keys() == tensors.keys()
        for key, array in tensors.items():
            assert array.tobytes() == kept[key].tobytes(), key
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert 0 <= results["masks"]["miou"] <= 1 and results["given"].keys() == written.keys()
