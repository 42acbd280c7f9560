"""Command `score`: folders of masks from anywhere, their figures, and what is refused by name."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import score
from tests.made_voc import Made, make_voc
from tests.runs import KNOWN, begun
from vitx.data.palette import encode_mask
from vitx.runtime.experiment import check_options, run_stages
from vitx.runtime.files import safe_name, write_json

ROOT = Path(__file__).parents[2]
NAMES = ("background", "ring", "star", "kite")


@pytest.fixture
def made(tmp_path: Path) -> Made:
    (tmp_path / "classes.txt").write_text("\n".join(NAMES), "utf-8")
    return make_voc(tmp_path / "own", train=3, val=8, size=(40, 52), classes=NAMES)


def _score(folder: Path, masks: Path | str = "", **changes: object) -> dict:
    config = score.get_config()
    config.data.root, config.data.classes = str(folder / "own"), str(folder / "classes.txt")
    config.masks = str(masks or folder / "masks")
    config.update_from_flattened_dict(changes)
    check_options(config, KNOWN)
    run_stages(begun(config, folder / "run"), [KNOWN["score"]])
    return json.loads((folder / "run/results.json").read_text())


def _shifted(mask: np.ndarray, by: int = 3) -> np.ndarray:
    """The mask moved to the right, its outlines as background: what another program might make."""
    return np.roll(np.where(mask == 255, 0, mask), by, 1).astype(np.uint8)


def _grey(mask: np.ndarray, path: Path) -> None:
    Image.fromarray(mask).save(path)


def _palette(mask: np.ndarray, path: Path) -> None:
    path.write_bytes(encode_mask(mask))


def _four_bits(mask: np.ndarray, path: Path) -> None:
    image = Image.fromarray(mask)
    image.putpalette(list(range(48)))
    image.save(path, bits=4)


def _write(made: Made, folder: Path, save: Callable = _palette, split: str = "val") -> None:
    folder.mkdir(exist_ok=True)
    for name in made.splits[split]:
        save(_shifted(made.masks[name]), folder / f"{name}.png")


def _expected(made: Made, split: str = "val") -> dict[str, float]:
    """IoU by class, from all pixels of the split in one row."""
    truth = np.concatenate([made.masks[name].ravel() for name in made.splits[split]])
    found = np.concatenate([_shifted(made.masks[name]).ravel() for name in made.splits[split]])
    counts = truth != 255
    return {
        name: ((truth == k) & (found == k) & counts).sum()
        / (((truth == k) | (found == k)) & counts).sum()
        for k, name in enumerate(NAMES)
        if (truth == k).any()
    }


@pytest.mark.parametrize("save", [_palette, _grey, _four_bits])
def test_any_kind_of_png_has_its_scores(
    made: Made, tmp_path: Path, save: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(made, tmp_path / "masks", save)
    results = _score(tmp_path)
    expected = _expected(made)
    assert results["masks"]["iou"] == pytest.approx({**dict.fromkeys(NAMES), **expected})
    miou = np.mean(list(expected.values()))
    assert results["masks"]["miou"] == pytest.approx(miou) and miou < 0.95
    low, high = results["masks"]["interval"]
    assert low < miou < high
    assert results["images"] == 8 and results["dataset"]["split"] == "val"
    assert results["best"] == results["worst"][::-1] and len(results["best"]) == 8
    name, best = results["best"][0]
    truth, own = made.masks[name], _shifted(made.masks[name])
    shown = [
        ((truth == k) & (own == k)).sum() / (((truth == k) | (own == k)) & (truth != 255)).sum()
        for k in np.unique(truth)
        if k != 255
    ]
    assert best == pytest.approx(np.mean(shown))
    printed, page = capsys.readouterr().out, (tmp_path / "run/report.html").read_text()
    for text in (printed, page):
        assert f"{100 * miou:.1f}" in text and f"{100 * low:.1f} to {100 * high:.1f}" in text
        assert "made elsewhere" in text
    assert page.count("data:image/webp") == (3 + 1) * (
        8 + 4 + 4
    )  # an image, and it below its masks
    assert results["folder"]["path"] == str(tmp_path / "masks")


def test_the_true_masks_have_full_marks(made: Made, tmp_path: Path) -> None:
    """Whose outlines are 255, which is where the truth does not count."""
    results = _score(tmp_path, made.folder / "SegmentationClass", others="skip")
    assert results["masks"]["miou"] == 1 and results["masks"]["interval"] == [1, 1]
    assert {iou for iou in results["masks"]["iou"].values() if iou is not None} == {1}


def test_each_start_scores_what_is_there(made: Made, tmp_path: Path) -> None:
    _write(made, tmp_path / "masks")
    first, again = _score(tmp_path), _score(tmp_path)
    assert first == again
    name = made.splits["val"][0]
    _palette(np.zeros_like(made.masks[name]), tmp_path / f"masks/{name}.png")
    second = _score(tmp_path)
    assert second["folder"]["digest"] != first["folder"]["digest"]
    assert second["masks"]["miou"] != first["masks"]["miou"]
    assert second["options"] == first["options"]


def test_all_that_is_wrong_is_named_at_once(made: Made, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    _write(made, masks)
    missing, wide, strange, unsure, colours, broken, *_ = made.splits["val"]
    (masks / f"{missing}.png").unlink()
    (masks / f"{missing}.txt").write_text("no mask")
    _palette(made.masks[wide][:-1], masks / f"{wide}.png")
    _palette(np.full_like(made.masks[strange], 4), masks / f"{strange}.png")
    _palette(np.full_like(made.masks[unsure], 255), masks / f"{unsure}.png")
    Image.fromarray(np.zeros((*made.masks[colours].shape, 3), np.uint8)).save(
        masks / f"{colours}.png"
    )
    (masks / f"{broken}.png").write_bytes(b"\x89PNG")
    _palette(np.zeros((4, 4), np.uint8), masks / "another.png")
    with pytest.raises(ValueError, match=r"^config\.masks=.*/masks: ") as caught:
        _score(tmp_path)
    message = str(caught.value)
    assert f"1 of 8 images have no <id>.png: {missing}" in message
    height, width = made.masks[wide].shape
    assert f"{wide}.png is {width} pixels wide and {height - 1} high, but its image" in message
    assert f"{strange}.png has the label 4, wanted 0 to 3" in message
    assert f"{unsure}.png has the label 255 where the truth has a class" in message
    assert f"{colours}.png: its mode is RGB" in message
    assert f"cannot read the label mask {broken}.png" in message
    assert "1 of 8 masks are of no image of voc_segmentation val: another.png" in message
    assert "\n" not in message
    assert not (tmp_path / "run/results.json").exists()


def test_at_most_ten_are_named(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("\n".join(NAMES), "utf-8")
    made = make_voc(tmp_path / "own", train=14, val=12, size=(12, 16), classes=NAMES)
    _write(made, tmp_path / "masks", split="train")
    with pytest.raises(ValueError) as caught:
        _score(tmp_path)
    message = str(caught.value)
    assert (
        "12 of 12 images have no <id>.png: " in message
        and "14 of 14 masks are of no image" in message
    )
    named = [sum(name in message for name in made.splits[split]) for split in ("train", "val")]
    assert named == [10, 10] and "and 4 more" in message and "and 2 more" in message
    for name in made.splits["val"]:
        _palette(np.full((3, 3), 9, np.uint8), tmp_path / f"masks/{name}.png")
    with pytest.raises(ValueError, match="and 2 more that cannot be compared") as caught:
        _score(tmp_path, others="skip")
    assert str(caught.value).count("3 pixels wide") == 10


def test_other_splits_and_masks_of_other_images(made: Made, tmp_path: Path) -> None:
    for split in ("train", "val"):
        _write(made, tmp_path / "masks", split=split)
    with pytest.raises(ValueError, match=r"3 of 11 masks are of no image .*others=skip"):
        _score(tmp_path)
    skipped = _score(tmp_path, others="skip")
    assert skipped["masks"]["miou"] == pytest.approx(np.mean(list(_expected(made).values())))
    changes = {"data.val_split": "train", "others": "skip"}
    expected = np.mean(list(_expected(made, "train").values()))
    assert _score(tmp_path, **changes)["masks"]["miou"] == pytest.approx(expected)


def test_images_without_a_true_mask_need_none(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("\n".join(NAMES), "utf-8")
    options = {"size": (20, 26), "classes": NAMES, "seed": 3, "prefix": "a b%c_"}
    made = make_voc(tmp_path / "own", train=1, val=9, masked=0.5, **options)
    masked = {path.stem for path in (tmp_path / "own/SegmentationClass").iterdir()}
    made.splits["val"] = [name for name in made.splits["val"] if name in masked]
    assert 0 < len(made.splits["val"]) < 9
    (tmp_path / "masks").mkdir()
    for name in made.splits["val"]:  # as vitx names its own
        _palette(_shifted(made.masks[name]), tmp_path / f"masks/{safe_name(name)}.png")
    results = _score(tmp_path)
    assert results["images"] == len(made.splits["val"])
    assert results["masks"]["miou"] == pytest.approx(np.mean(list(_expected(made).values())))

    for path in (tmp_path / "own/SegmentationClass").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="val has no mask to compare with"):
        _score(tmp_path)


def test_shapes_and_voc_itself(tmp_path: Path) -> None:
    shapes = {"data.name": "shapes/tiny", "data.classes": "", "data.root": str(tmp_path / "data")}
    config = score.get_config()
    config.update_from_flattened_dict(shapes)
    (tmp_path / "masks").mkdir()
    for example in begun(config, tmp_path / "run").source("val"):
        _grey(example.truth, tmp_path / f"masks/{example.id}.png")
    assert _score(tmp_path, **shapes)["masks"]["miou"] == 1
    made = make_voc(tmp_path / "data/VOCdevkit/VOC2012", train=1, val=4, size=(24, 30))
    _write(made, tmp_path / "voc")
    voc = {"data.classes": "", "data.root": str(tmp_path / "data")}
    results = _score(tmp_path, tmp_path / "voc", **voc)
    assert len(results["masks"]["iou"]) == 21 and results["masks"]["iou"]["background"] < 1


def test_the_workdir_of_a_run_keeps_its_results(made: Made, tmp_path: Path) -> None:
    _write(made, tmp_path / "masks")
    record = {"options": {}, "seconds": 1.0, "done": True, "begun": 1.0}
    write_json(tmp_path / "run/masks/stage.json", record)
    with pytest.raises(ValueError, match=r"is the workdir of a run, .*give another --workdir"):
        _score(tmp_path)
    assert not (tmp_path / "run/report.html").exists()


def test_the_option_names_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.masks is empty"):
        _score(tmp_path, " ")
    config = score.get_config()
    config.others = "stay"
    with pytest.raises(ValueError, match=r"config\.others must be one of stop, skip"):
        check_options(config, KNOWN)
    make_voc(tmp_path / "own", train=1, val=1, size=(12, 16), classes=NAMES)
    (tmp_path / "classes.txt").write_text("\n".join(NAMES), "utf-8")
    with pytest.raises(FileNotFoundError, match="absent: there is no such folder"):
        _score(tmp_path, tmp_path / "absent")


@pytest.mark.slow
def test_the_command_line(made: Made, tmp_path: Path) -> None:
    _write(made, tmp_path / "masks")
    words = [sys.executable, "evaluate.py", "--config", "configs/score.py"]
    words += [f"--config.data.root={made.folder}", f"--workdir={tmp_path / 'run'}"]
    words += [
        f"--config.data.classes={tmp_path / 'classes.txt'}",
        f"--config.masks={tmp_path / 'masks'}",
    ]

    def ended() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False
        )

    first = ended()
    assert first.returncode == 0, first.stderr
    assert "report: " in first.stdout and (tmp_path / "run/report.html").exists()
    (tmp_path / f"masks/{made.splits['val'][0]}.png").unlink()
    second = ended()
    assert second.returncode == 2 and "Traceback" not in second.stderr
    assert f"1 of 8 images have no <id>.png: {made.splits['val'][0]}" in second.stderr
