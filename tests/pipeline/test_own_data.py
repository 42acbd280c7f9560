"""Own data in VOC's layout through every stage: no masks at all, masks later, and what is refused before training."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from configs import voc, voc_small
from tests.made_voc import Made, make_voc
from tests.runs import STAGES, begun
from tests.small_models import small_vit
from vitx.data import loader
from vitx.data.palette import encode_mask
from vitx.pipeline import labels
from vitx.pipeline.classifier import validate
from vitx.pipeline.labels import CRFOptions, Seeded, crf_labels
from vitx.pipeline.seeds import width_of
from vitx.pseudomasks.crf import BACKENDS, CRFParameters
from vitx.runtime.experiment import Run, check_stages, run_stages

NAMES = ("background", "ring", "star's <b>", "kite")
SMALL = {
    "model.name": "vit_test_conv_s4_48",
    "classifier.epochs": 2,
    "classifier.batch_size": 8,
    "classifier.warmup_epochs": 0,
    "seeds.batch_size": 8,
    "affinity.epochs": 1,
    "affinity.batch_size": 8,
    "affinity.grid": 12,
    "affinity.features": 32,
    "affinity.levels": ("stem.1", "block.1"),
    "walk.log2_steps": (2, 1),
    "segmenter.batch_size": 8,
    "segmenter.levels": ("stem.1", "block.1"),
    "controls.arms": ("no_walk", "uniform"),
    "report.images": 2,
}


def own_run(folder: Path, **options: object) -> Run:
    config = voc_small.get_config()
    config.data.root = str(folder / "own")
    config.data.classes = str(folder / "classes.txt")
    config.update_from_flattened_dict(SMALL | options)
    return begun(config, folder / "run")


def _check(run: Run) -> None:
    check_stages(run, [stage for stage in STAGES if stage.part_of(run.config)])


@pytest.fixture
def bare(tmp_path: Path) -> Made:
    (tmp_path / "classes.txt").write_text("\n".join(NAMES), "utf-8")
    made = make_voc(tmp_path / "own", train=16, val=8, size=(40, 52), classes=NAMES, masked=0)
    shutil.rmtree(tmp_path / "own/SegmentationClass")
    return made


@pytest.mark.exhaustive
def test_without_masks_there_are_masks_and_no_scores(
    bare: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = own_run(tmp_path)
    run_stages(run, STAGES)
    printed = capsys.readouterr().err
    assert "learns from random weights" in printed
    assert "train[:15%] has no masks to choose by: options are chosen without masks" in printed
    for split in ("train", "val"):
        for identifier in bare.splits[split]:
            path = tmp_path / f"run/masks/{split}/{identifier}.png"
            shown = {0, *(label + 1 for label in bare.labels[identifier])}
            with Image.open(path) as mask:
                assert mask.size == bare.pictures[identifier].shape[1::-1]
                assert set(np.unique(np.asarray(mask))) <= shown
    results = json.loads((tmp_path / "run/results.json").read_text())
    chosen = results["chosen"]
    assert "masks" not in results and chosen["how"] == "auto" and chosen["split"] == "train[:15%]"
    assert not results["controls"]["figures"]
    page = (tmp_path / "run/report.html").read_text()
    assert "nothing is scored" in page and f"beta {chosen['beta']:g}, 2^" in page
    assert "star&#39;s &lt;b&gt;" in page and "<b>" not in page

    # Masks that are drawn later leave what was trained.
    (tmp_path / "own/SegmentationClass").mkdir()
    for identifier, mask in bare.masks.items():
        (tmp_path / f"own/SegmentationClass/{identifier}.png").write_bytes(encode_mask(mask))
    run = own_run(tmp_path)
    assert all(run.stage(name).done for name in ("classifier", "seeds", "labels", "affinity"))
    with pytest.raises(ValueError, match=r"stage 'masks'.*mask_fingerprints.*delete"):
        run.stage("masks")
    shutil.rmtree(tmp_path / "run/masks")
    shutil.rmtree(tmp_path / "run/controls")
    shutil.rmtree(tmp_path / "run/report")
    run = own_run(tmp_path)
    run_stages(run, STAGES)
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert 0 <= results["masks"]["miou"] <= 1 and results["chosen"]["split"] == "train[:15%]"


def test_what_would_end_a_later_stage_is_found_first(bare: Made, tmp_path: Path) -> None:
    del bare
    for options, error, message in [
        ({"walk.split": "traen"}, ValueError, r"config.walk.split=traen: .*no split 'traen'"),
        ({"affinity.val_split": "val[90:]"}, ValueError, r"config.affinity.val_split=val\[90:\]"),
    ]:
        with pytest.raises(error, match=message):
            _check(own_run(tmp_path, **options))
    _check(own_run(tmp_path, **{"data.train_split": "all[:80%]"}))  # and 15 % of these walk
    large = tmp_path / "own/JPEGImages/large.png"
    Image.new("RGB", (300, 200)).save(large)
    shutil.copy(
        next((tmp_path / "own/Annotations").iterdir()), tmp_path / "own/Annotations/large.xml"
    )
    with pytest.raises(ValueError, match="image large: images of 200 x 300 are too large"):
        _check(own_run(tmp_path, **{"data.train_split": "all", "labels.backend": "exact"}))
    few = {"labels.backend": "jax", "labels.crf.srgb": 0.1}
    with pytest.raises(ValueError, match=r"images of 40 x 52 have more than .* use larger widths"):
        _check(own_run(tmp_path, **few))
    _check(own_run(tmp_path, **{"data.train_split": "all"}))


def test_splits_follow_the_datas_until_they_are_set() -> None:
    for module in (voc, voc_small):
        config = module.get_config()
        config.data.train_split, config.data.val_split = "aaa", "bbb"
        assert config.classifier.train_split == config.seeds.train_split == "aaa"
        assert config.affinity.val_split == config.classifier.val_split == "bbb"
        config.classifier.val_split = "ccc"
        config.affinity.train_split = "ddd"
        assert (config.data.train_split, config.data.val_split) == ("aaa", "bbb")
        assert config.seeds.train_split == "aaa" and config.affinity.val_split == "bbb"
        assert config.walk.split in ("aaa", "aaa[:15%]")
        config.data.val_split = "eee"
        assert config.classifier.val_split == "ccc" and config.affinity.val_split == "eee"


def test_a_split_without_a_class_has_a_loss(tmp_path: Path) -> None:
    source = loader.open_source("shapes/tiny", "val", tmp_path)
    bare = SimpleNamespace(labels=np.zeros(len(source.classes) - 1, np.float32))

    class Nothing(loader.Source):
        def _one_hot(self, classes: object) -> np.ndarray:
            return bare.labels

    nothing = Nothing(source._records)
    model = small_vit(num_classes=len(bare.labels), size=(48, 48), patch=8)
    scores = validate(model, nothing, batch_size=8)
    assert np.isfinite(scores["loss"]) and scores["map"] is None
    assert set(scores["average_precision"].values()) == {None}


def test_few_widths_are_compiled() -> None:
    labels = np.zeros((4, 6), np.float32)
    widths = []
    for count in range(7):
        labels[1, :count] = 1
        widths.append(width_of(labels))
    assert widths == [1, 1, 2, 4, 4, 6, 6]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_crf_labels_an_image_that_shows_no_class(backend: str) -> None:
    options = CRFOptions(CRFParameters(), (4.0, 32.0), backend, grid=4, pool=4)
    image = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    item = Seeded("bare", image, np.zeros((0, 16, 16), np.float32), np.zeros(0, np.int32))
    found = crf_labels(options, item)
    assert found.masks.shape == (2, 12, 20) and not found.masks.any()
    assert found.labels.shape == (4, 4) and not found.labels.any()


def test_a_crf_that_does_not_fit_names_its_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(labels, "dense_crf", full)
    options = CRFOptions(CRFParameters(), (4.0, 32.0), "jax", grid=4, pool=4)
    seed_maps, classes = np.ones((2, 16, 16), np.float32), np.arange(2)
    item = Seeded("large", np.zeros((12, 20, 3), np.uint8), seed_maps, classes)
    with pytest.raises(MemoryError, match=r"image large \(12 x 20, 3 labels\) .*pydensecrf"):
        crf_labels(options, item)
    with pytest.raises(FloatingPointError, match="seed maps of image large"):
        crf_labels(options, item._replace(seed_maps=seed_maps * np.nan))
