"""Results name what made them: what is of another image, of other options or of an older version is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import testing
from tests.runs import KNOWN, begun
from vitx.data.palette import encode_mask
from vitx.pipeline.affinity import _Labels
from vitx.pipeline.artifacts import (
    SPLITS,
    read_mask,
    read_seed_maps,
    seeded,
    write_mask,
    write_seed_maps,
)
from vitx.pipeline.choice import read_choice
from vitx.pipeline.mask_scores import stored_masks
from vitx.runtime.experiment import Run, run_stages
from vitx.runtime.files import read_npz, write_json, write_npz
from vitx.runtime.workdir import StageFolder, Workdir


def _run(folder: Path, data: Path, **changes: object) -> Run:
    config = testing.get_config()
    config.data.root = str(data)
    config.update_from_flattened_dict(changes)
    return begun(config, folder)


def _write_seeds(run: Run) -> StageFolder:
    """Seed maps of noise for every image, which take no model."""
    stage, generator = run.stage("seeds"), np.random.default_rng(0)
    with stage.run():
        for split in SPLITS:
            for example in seeded(run, split):
                classes = np.flatnonzero(example.labels).astype(np.int32)
                seed_maps = generator.random((len(classes), 12, 12), np.float32)
                write_seed_maps(stage, split, example.id, seed_maps, classes)
    return stage


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Run:
    """Stages seeds and labels are done."""
    run = _run(tmp_path_factory.mktemp("runs") / "labelled", data)
    _write_seeds(run)
    run_stages(run, [KNOWN["labels"]])
    return run


@pytest.fixture
def copied(labelled: Run, data: Path, tmp_path: Path) -> Run:
    shutil.copytree(labelled.workdir.folder, tmp_path / "run")
    return _run(tmp_path / "run", data)


def _set_undone(stage: StageFolder) -> None:
    record = json.loads((stage.folder / "stage.json").read_text())
    write_json(stage.folder / "stage.json", record | {"done": False})


def _two_ids(run: Run, split: str = "val") -> tuple[str, str]:
    source = seeded(run, split)
    return source.identifier(0), source.identifier(1)


# A stage's folder


@pytest.mark.parametrize(
    "name", ["val/a.npz", "checkpoints/4/_METADATA", "model.safetensors", "chosen.json"]
)
def test_results_without_their_record_are_refused(tmp_path: Path, name: str) -> None:
    workdir = Workdir(tmp_path)
    with pytest.raises(RuntimeError), workdir.stage("seeds", {"start_layer": 0}).run():
        path = tmp_path / "seeds" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        raise RuntimeError("killed")
    (tmp_path / "seeds/stage.json").unlink()
    first = name.split("/")[0]
    for options in ({"start_layer": 1}, {"start_layer": 0}):
        with pytest.raises(
            ValueError, match=rf"seeds holds results \({first}\) but no stage\.json"
        ):
            workdir.stage("seeds", options)


def test_an_empty_folder_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds/.DS_Store").write_bytes(b"")
    assert not Workdir(tmp_path).stage("seeds", {}).done


def test_a_trained_classifier_without_its_record_is_refused(tmp_path: Path, data: Path) -> None:
    run = _run(tmp_path / "run", data, **{"model.checkpoint": str(tmp_path / "gone.safetensors")})
    (tmp_path / "run/classifier").mkdir()
    (tmp_path / "run/classifier/model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"classifier holds results .* delete .*classifier"):
        run.stage("classifier")


def test_the_labels_stage_does_not_mix_options(copied: Run, data: Path) -> None:
    folder = copied.workdir.folder / "labels"
    (folder / "stage.json").unlink()
    for path in sorted((folder / "train").glob("*.png"))[::2]:
        path.unlink()
    other = _run(copied.workdir.folder, data, **{"labels.alpha_low": 1.5})
    with pytest.raises(ValueError, match=r"labels holds results .* no stage\.json"):
        run_stages(other, [KNOWN["labels"]])


# Files of images


def test_a_stamp_names_stage_options_item_and_folder(tmp_path: Path) -> None:
    def stamp(name: str, options: object, *item: str) -> str:
        return Workdir(tmp_path).stage(name, {"options": options}).stamp(*item)

    stamps = [
        stamp("seeds", 1, "a", "val"),
        stamp("seeds", 1, "b", "val"),
        stamp("seeds", 1, "a", "train"),
        stamp("seeds", 2, "a", "val"),
        stamp("labels", 1, "a", "val"),
    ]
    assert len(set(stamps)) == 5
    again = Workdir(tmp_path / "other").stage("seeds", {"options": np.int64(1)})
    assert again.stamp("a", "val") == stamps[0]
    assert again.stamp("\udce9")  # a file's name need not be Unicode


def test_the_same_options_give_the_same_bytes_in_another_workdir(
    labelled: Run, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "data"
    shutil.copytree(labelled.config.data.root, elsewhere)
    other = _run(tmp_path / "run", elsewhere)
    _write_seeds(other)
    first = labelled.workdir.folder / "seeds"
    for path in sorted(first.rglob("*.npz")):
        assert (
            path.read_bytes()
            == (other.workdir.folder / "seeds" / path.relative_to(first)).read_bytes()
        )
    stamps = {run.stage("labels").stamp("a", "val") for run in (labelled, other)}
    assert len(stamps) == 1


def test_masks_stay_palette_pngs_for_anyone(labelled: Run) -> None:
    name, _ = _two_ids(labelled)
    stage = labelled.finished("labels")
    with Image.open(stage.item(name, ".png", "low/val")) as image:
        assert image.mode == "P" and image.text["vitx"] == stage.stamp(name, "low/val")
        pixels = np.asarray(image)
    np.testing.assert_array_equal(pixels, read_mask(stage, "low/val", name))


MADE = r"was made for another image or with other options.*delete it, set \"done\" to false in .*"


def test_a_seed_map_of_another_image_is_refused(copied: Run) -> None:
    one, two = _two_ids(copied)
    seeds = copied.finished("seeds")
    shutil.copy(seeds.item(two, ".npz", "val"), seeds.item(one, ".npz", "val"))
    shutil.rmtree(copied.workdir.folder / "labels")
    with pytest.raises(ValueError, match=rf"seeds/val/{one}\.npz {MADE}seeds/stage\.json"):
        run_stages(copied, [KNOWN["labels"]])


def test_labels_of_another_image_are_refused(copied: Run) -> None:
    one, two = _two_ids(copied)
    labels = copied.finished("labels")
    shutil.copy(labels.item(two, ".png", "val"), labels.item(one, ".png", "val"))
    with pytest.raises(ValueError, match=rf"labels/val/{one}\.png {MADE}labels/stage\.json"):
        _Labels(copied, copied.source("val"))


@pytest.mark.parametrize("folder", ["labels/low", "labels/high", "masks"])
def test_masks_of_another_image_are_refused(copied: Run, folder: str) -> None:
    one, two = _two_ids(copied)
    masks = copied.workdir.stage("masks", {})
    for name in (one, two):
        write_mask(masks, "val", name, np.zeros((4, 4), np.uint8))
    assert set(stored_masks(copied.finished("labels"), masks, "val", one)) == {
        "crf_low",
        "crf_high",
        "masks",
    }
    place = copied.workdir.folder / folder / "val"
    shutil.copy(place / f"{two}.png", place / f"{one}.png")
    with pytest.raises(ValueError, match=rf"{folder}/val/{one}\.png was made for another image"):
        stored_masks(copied.finished("labels"), masks, "val", one)


def test_a_mask_of_the_other_alpha_is_refused(copied: Run) -> None:
    name, _ = _two_ids(copied)
    labels = copied.finished("labels")
    shutil.copy(labels.item(name, ".png", "high/val"), labels.item(name, ".png", "low/val"))
    with pytest.raises(ValueError, match=rf"low/val/{name}\.png was made for another image"):
        read_mask(labels, "low/val", name)


def test_a_file_of_other_options_is_refused(copied: Run, data: Path, tmp_path: Path) -> None:
    name, _ = _two_ids(copied)
    other = _write_seeds(_run(tmp_path / "other", data, **{"seeds.start_layer": 1}))
    seeds = copied.finished("seeds")
    shutil.copy(other.item(name, ".npz", "val"), seeds.item(name, ".npz", "val"))
    with pytest.raises(ValueError, match=rf"{name}\.npz was made for .* with other options"):
        read_seed_maps(seeds, "val", name)


@pytest.mark.parametrize("folder", ["val", "low/val"])
def test_a_stage_that_goes_on_refuses_files_of_other_images(copied: Run, folder: str) -> None:
    one, two = _two_ids(copied)
    labels = copied.finished("labels")
    shutil.copy(labels.item(two, ".png", folder), labels.item(one, ".png", folder))
    _set_undone(labels)
    message = rf"labels/{folder}/{one}\.png was made for another .*delete it and start again"
    with pytest.raises(ValueError, match=message):
        run_stages(copied, [KNOWN["labels"]])
    labels.item(one, ".png", folder).unlink()
    run_stages(copied, [KNOWN["labels"]])
    read_mask(copied.finished("labels"), folder, one)


def test_files_of_an_older_version_are_refused(copied: Run) -> None:
    one, _ = _two_ids(copied)
    seeds, labels = copied.finished("seeds"), copied.finished("labels")
    path = seeds.item(one, ".npz", "val")
    arrays = read_npz(path)
    write_npz(path, {name: arrays[name] for name in ("cues", "classes")})
    mask = labels.item(one, ".png", "val")
    mask.write_bytes(encode_mask(read_mask(labels, "val", one)))
    older = r"was made by an older version of vitx .*delete .*/"
    with pytest.raises(ValueError, match=rf"{one}\.npz {older}seeds and the folders"):
        read_seed_maps(seeds, "val", one)
    with pytest.raises(ValueError, match=rf"{one}\.png {older}labels and the folders"):
        read_mask(labels, "val", one)


# Missing and damaged files


def _drop(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_drop, "stage '{stage}' is done, but {path} is missing: put it back, or set \"done\""),
        (_cut, '{path}.*; delete it, set "done" to false in .*/{stage}/stage.json and run stage'),
    ],
)
def test_a_lost_or_damaged_file_of_a_done_stage_is_named(
    copied: Run, spoil: Callable[[Path], None], message: str
) -> None:
    one, _ = _two_ids(copied)
    for name, suffix, read in (("seeds", ".npz", read_seed_maps), ("labels", ".png", None)):
        stage = copied.finished(name)
        path = stage.item(one, suffix, "val")
        spoil(path)
        with pytest.raises(ValueError, match=message.format(stage=name, path=path)):
            read(stage, "val", one) if read else read_mask(stage, "val", one)


def test_a_lost_label_is_named_when_affinity_is_to_learn(copied: Run) -> None:
    one, _ = _two_ids(copied)
    path = copied.finished("labels").item(one, ".png", "val")
    path.unlink()
    with pytest.raises(ValueError, match=f"stage 'labels' is done, but {path} is missing: put"):
        _Labels(copied, copied.source("val"))


def test_what_the_message_advises_makes_the_file_again(copied: Run) -> None:
    one, _ = _two_ids(copied)
    labels = copied.finished("labels")
    path = labels.item(one, ".png", "high/val")  # not the one that is written last
    before = path.read_bytes()
    path.unlink()
    _set_undone(labels)
    run_stages(copied, [KNOWN["labels"]])
    assert path.read_bytes() == before


CHOSEN = {"beta": 4.0, "log2_steps": 2, "level": 0.5, "background": 0.2}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"beta": 4.0', "damaged .*: delete it and start again"),
        (b"\xff\xfe", "damaged .*: delete it and start again"),
        (b"[1]", r"damaged \(it holds no JSON object\)"),
        (json.dumps({"beta": 4.0}).encode(), "damaged .its log2_steps is None"),
        (json.dumps(CHOSEN | {"level": "16"}).encode(), "damaged .its level is '16'"),
        (json.dumps(CHOSEN | {"log2_steps": 1.5}).encode(), "damaged .its log2_steps is 1.5"),
        (json.dumps(CHOSEN).encode(), "was made by an older version"),
        (json.dumps(CHOSEN | {"stamp": "0"}).encode(), "was made for another image or with other"),
    ],
)
def test_a_damaged_choice_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    stage = Workdir(tmp_path).stage("masks", {})
    path = stage.folder / "chosen.json"
    write_json(path, CHOSEN | {"stamp": stage.stamp("chosen.json")})
    assert read_choice(stage, path) == CHOSEN
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"masks/chosen\.json (is )?{reason}") as error:
        read_choice(stage, path)
    assert len(str(error.value).splitlines()) == 1
