"""Every stage once, in a setting that is tiny: what it leaves, that it resumes, and what it refuses."""

import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import testing
from tests.runs import KNOWN, STAGES, begun
from tests.small_models import small_vit
from vitx.data.palette import decode_mask
from vitx.pipeline.artifacts import read_seed_maps, seeded
from vitx.pipeline.compared_model import chosen_images, pixel_batches
from vitx.pipeline.controls_section import TITLES
from vitx.pipeline.seeds import padded_classes
from vitx.pipeline.stages import TRAIN
from vitx.runtime.experiment import Run, run_stages
from vitx.runtime.signals import Stopped, StopRequest
from vitx.runtime.workdir import StageFolder, Workdir


def _run(folder: Path, data: Path, **changes: object) -> Run:
    config: ConfigDict = testing.get_config()
    config.data.root = str(data)
    config.update_from_flattened_dict(changes)
    return begun(config, folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Iterator[Run]:
    run = _run(tmp_path_factory.mktemp("runs") / "tiny", data)
    run_stages(run, STAGES)
    yield run


@pytest.mark.slow
def test_every_stage_ends_and_leaves_results(finished: Run) -> None:
    results = json.loads((finished.workdir.folder / "results.json").read_text())
    figures = [
        results["classifier"]["map"],
        results["seeds"]["miou"],
        results["masks"]["miou"],
        results["splits"]["train"]["masks"]["miou"],
        *results["masks"]["iou"].values(),
    ]
    assert all(0 <= figure <= 1 for figure in figures)
    assert set(results["stages"]) == {stage.name for stage in STAGES} - {"report"}
    assert "ground-truth label" in results["note"]


@pytest.mark.slow
def test_masks_are_palette_pngs_of_present_classes(finished: Run) -> None:
    for split in ("train", "val"):
        source = seeded(finished, split)
        for example in source:
            file = finished.workdir.folder / "masks" / split / f"{example.id}.png"
            mask = decode_mask(file.read_bytes())
            assert mask.shape == example.image.shape[:2]
            assert set(np.unique(mask)) <= {0, *(np.flatnonzero(example.labels) + 1)}


@pytest.mark.slow
def test_seed_maps_are_in_range_and_of_the_labels(finished: Run) -> None:
    source = seeded(finished, "val")
    for example in source:
        seed_maps, classes = read_seed_maps(finished.finished("seeds"), "val", example.id, 4)
        present = np.flatnonzero(example.labels)
        np.testing.assert_array_equal(classes[: len(present)], present)
        assert (classes[len(present) :] == -1).all()
        assert seed_maps.min() >= 0 and seed_maps.max() <= 1
        assert seed_maps[: len(present)].max() > 0


class Page(HTMLParser):
    """Of a report page: the alt texts of its pictures, its links, number of headings, and texts in `small`."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.alts, self.links, self.headings = list[str](), list[str](), 0
        self.inside, self.notes = False, list[str]()
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "img":
            self.alts.append(found["alt"] or "")
        if tag == "a":
            self.links.append(found["href"] or "")
        self.headings += tag == "h2"
        self.inside |= tag == "small"

    def handle_endtag(self, tag: str) -> None:
        self.inside &= tag != "small"

    def handle_data(self, data: str) -> None:
        if self.inside and data.strip():
            self.notes.append(data.strip())


@pytest.fixture(scope="module")
def page(finished: Run) -> Page:
    return Page(finished.workdir.folder / "report.html")


def _own_miou(mask: np.ndarray, truth: np.ndarray) -> str:
    """The mean over the classes of the truth of pixels in both by pixels in either, in percent."""
    counted = truth != 255
    shares = [
        ((mask == label) & (truth == label)).sum()
        / (counted & ((mask == label) | (truth == label))).sum()
        for label in np.unique(truth[counted])
    ]
    return f"{100 * np.mean(shares):.1f} %"


@pytest.mark.slow
def test_report_names_images_and_scores_each_mask(finished: Run, page: Page) -> None:
    folder, source = finished.workdir.folder, seeded(finished, "val")
    names = {
        "CRF, low alpha": "labels/low/val",
        "CRF, high alpha": "labels/high/val",
        "refined masks": "masks/val",
        "network's mask, without": "segmenter/val",
        **{TITLES[arm]: f"controls/{arm}" for arm in finished.config.controls.arms},
    }
    compared = set()
    for example in source:
        shown = [alt for alt in page.alts if f"of image {example.id}" in alt]
        if not shown:
            continue
        assert example.id in page.notes
        for name, place in names.items():
            masks = {alt for alt in shown if alt.startswith(f"{name} of image {example.id}, ")}
            if not masks and place.startswith(("controls", "segmenter")):
                continue  # of fewer images
            (mask,) = masks
            stored = decode_mask((folder / place / f"{example.id}.png").read_bytes())
            figure = _own_miou(stored, example.mask)
            assert mask.endswith(f"mIoU {figure}") and figure in page.notes
            assert f"{place}/{example.id}.png" in page.links
            compared.add(name)
    assert compared == set(names)


@pytest.mark.slow
def test_links_of_the_report_lead_to_files(finished: Run, page: Page) -> None:
    links = [link for link in page.links if link[0] != "#"]
    assert {"results.json", "masks/scores.json", "masks/val/", "seeds/train/"} <= set(links)
    assert any(link.startswith("seeds/val/") and link.endswith(".npz") for link in links)
    for link in links:
        assert (finished.workdir.folder / unquote(link)).exists(), link


@pytest.mark.slow
def test_report_holds_every_section_and_picture(finished: Run, page: Page) -> None:
    assert page.headings >= 5 and all(page.alts)
    images = finished.config.report.images
    # From image to mask; the methods for the predicted class; those that know classes for another target.
    methods = len(finished.config.methods.compared)  # one of them knows no classes
    possible = {
        (images + 2 * finished.config.report.extremes) * 8
        + images * (2 + 4 + len(finished.config.controls.arms))  # seeds, two CRFs, refined masks
        + images * 4  # image, truth, refined, network
        + images * (1 + methods)
        + others * methods
        for others in range(images + 1)
    }
    assert len(page.alts) in possible


@pytest.mark.slow
def test_second_start_does_nothing(finished: Run, capsys: pytest.CaptureFixture[str]) -> None:
    def forbidden(run: Run, stage: object) -> None:
        raise AssertionError("a finished stage ran again")

    run_stages(finished, [replace(stage, run=forbidden) for stage in STAGES])
    assert capsys.readouterr().err.count("done before") == len(STAGES)


@pytest.mark.slow
def test_lost_masks_are_made_again_to_the_bit(finished: Run) -> None:
    folder = finished.workdir.folder / "masks"
    before = {path: path.read_bytes() for path in sorted((folder / "val").glob("*.png"))}
    scores = (folder / "scores.json").read_text()
    for path in list(before)[1::2]:
        path.unlink()
    record = json.loads((folder / "stage.json").read_text())
    (folder / "stage.json").write_text(json.dumps(record | {"done": False}))

    run_stages(finished, [KNOWN["masks"]])

    assert {path: path.read_bytes() for path in before} == before
    assert (folder / "scores.json").read_text() == scores


@pytest.mark.slow
def test_other_options_are_refused(finished: Run, data: Path) -> None:
    other = _run(finished.workdir.folder, data, **{"classifier.epochs": 3})
    with pytest.raises(ValueError, match=r"classifier\.epochs 2 -> 3"):
        run_stages(other, [KNOWN["classifier"]])


@pytest.mark.slow
def test_stopped_run_goes_on_to_the_same_weights(finished: Run, data: Path, tmp_path: Path) -> None:
    run = _run(tmp_path, data)
    with run.stop:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped) as stopped:
            run_stages(run, [KNOWN["classifier"]])
    assert stopped.value.exit_code == 143

    run = _run(tmp_path, data)
    run_stages(run, [KNOWN["classifier"]])

    weights = Path("classifier") / "model.safetensors"
    assert (tmp_path / weights).read_bytes() == (finished.workdir.folder / weights).read_bytes()


@pytest.mark.slow
def test_a_stage_reads_only_the_options_that_it_declares(
    finished: Run, data: Path, tmp_path: Path
) -> None:
    """Else a changed option could leave a stale stage standing."""
    shutil.copytree(finished.workdir.folder, tmp_path / "copy")
    for stage in STAGES:
        # Which stages run, and how a batch is spread, decides no number.
        free = {key: finished.config[key] for key in ("parallel", "stages")}
        config = ConfigDict(finished.declared(stage.name, ignored=True) | free)
        run = _StageRun(config, Workdir(tmp_path / "copy"), StopRequest(), KNOWN)
        stage.run(run, run.workdir.stage(stage.name, finished.stage(stage.name).options))


class _StageRun(Run):
    """A run that takes the stages before it as they are."""

    def finished(self, name: str) -> StageFolder:
        record = json.loads((self.workdir.folder / name / "stage.json").read_text())
        return self.workdir.stage(name, record["options"])

    stage = finished


@pytest.mark.slow
def test_methods_work_at_another_size_than_the_images(finished: Run, data: Path) -> None:
    source = finished.source("val")
    chosen = chosen_images(source, 2, one_class=True)
    model = small_vit(size=(96, 64))
    (batch,) = pixel_batches(source, chosen, model, 3)
    assert batch["image"].shape == (3, 96, 64, 3) and batch["image"].max() <= 1


def test_stage_of_the_other_script_is_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names no stage of this script, which has classifier"):
        run_stages(_run(tmp_path, data, stages="masks"), TRAIN)


def test_stage_that_needs_another_says_so(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stage 'classifier' is not done"):
        run_stages(_run(tmp_path, data), [KNOWN["seeds"]])


def test_unknown_stage_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no stage 'seed'; there are: classifier, seeds"):
        run_stages(_run(tmp_path, data, stages="classifier,seed"), STAGES)


def test_padded_classes() -> None:
    labels = np.array([[0, 1, 0, 1], [1, 0, 0, 0]], np.float32)
    np.testing.assert_array_equal(padded_classes(labels, 3), [[1, 3, -1], [0, -1, -1]])
