"""Stage `segmenter`: its loss, that it learns, that it resumes, and what it refuses."""

import itertools
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from configs import testing
from tests.runs import KNOWN, begun
from tests.small_models import small_hybrid
from vitx import parallel, weights
from vitx.data.palette import decode_mask
from vitx.data.transforms import normalise
from vitx.evaluation.metrics import confusion_matrix, mean_iou
from vitx.models.segmenter import Segmenter, segment
from vitx.pipeline import segmenter, segmenter_masks
from vitx.pipeline.artifacts import crf_folder, read_mask, seeded
from vitx.pipeline.masks_section import masks_section, note, summary
from vitx.pipeline.segmenter import TrainingMasks, initial_segmenter, mask_loss, pixel_losses
from vitx.pseudomasks.crf import CRFParameters, dense_crf
from vitx.report.parts import DASH, Table
from vitx.runtime.experiment import Run, check_options, check_stages, run_stages
from vitx.runtime.signals import Stopped
from vitx.training.loop import TrainState
from vitx.training.optimizer import gradient_step

BEFORE = ("classifier", "seeds", "labels", "affinity", "masks")


def _random(seed: int, ignored: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits (3, 4, 5, 6), and a mask of which a share is 255."""
    generator = np.random.default_rng(seed)
    mask = generator.integers(0, 6, (3, 4, 5)).astype(np.uint8)
    mask[generator.random(mask.shape) < ignored] = 255
    return generator.standard_normal((3, 4, 5, 6)), mask


@settings(max_examples=20)
@given(
    seed=st.integers(0, 999),
    ignored=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    q=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_the_loss_is_of_what_is_not_ignored(seed, ignored, q) -> None:
    """Cross-entropy, the generalised one; their gradient is the softmax less the label, times p^q."""
    logits, mask = _random(seed, ignored)
    counted = mask != 255
    with jax.enable_x64(True):
        loss = lambda x: mask_loss(q)(lambda _: x, {"image": mask, "mask": mask}, None)  # noqa: E731
        found, gradient = jax.value_and_grad(loss)(jnp.asarray(logits))
        sums, counts = map(np.asarray, pixel_losses(jnp.asarray(logits), mask, q))
    chosen, labels = logits[counted], mask[counted]
    probability = np.exp(chosen) / np.exp(chosen).sum(-1, keepdims=True)
    own = probability[np.arange(len(labels)), labels]
    each = (1 - own**q) / q if q else -np.log(own)
    np.testing.assert_allclose(found, each.mean() if len(each) else 0, rtol=1e-12)
    np.testing.assert_allclose([sums.sum(), counts.sum()], [each.sum(), len(each)], rtol=1e-12)
    expected = np.zeros_like(logits)
    expected[counted] = own[:, None] ** q * (probability - np.eye(6)[labels]) / max(len(each), 1)
    np.testing.assert_allclose(gradient, expected, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("mode, compute", [("jit", "float32"), ("pmap", "bfloat16")])
def test_it_overfits_two_images(mode: str, compute: str) -> None:
    """On noise whose left half is of another class than the right; 255 in between teaches nothing."""
    generator = np.random.default_rng(0)
    images = generator.standard_normal((2, 16, 24, 3)).astype(np.float32)
    truth = np.zeros((2, 16, 24), np.uint8)
    truth[0, :, :12], truth[1, :8] = 1, 2
    mask = truth.copy()
    mask[:, 6:10] = 255
    devices = parallel.mesh().size
    batch = {"image": images.repeat(devices, 0), "mask": mask.repeat(devices, 0)}
    net = Segmenter(small_hybrid(), ("stem.1", "block.2"), 3, hidden=32, rngs=nnx.Rngs(0))
    graph, params = nnx.split(net)

    def loss(params, batch, axis):
        return mask_loss()(nnx.merge(graph, params), batch, axis)

    optimizer = optax.adam(5e-3)
    step = gradient_step(loss, optimizer, mode, compute=compute)
    state = parallel.replicate(TrainState.create(params, optimizer))
    for _ in range(60):
        state, scalars = step(state, batch)
    trained = nnx.merge(graph, jax.tree.map(np.asarray, state.params))
    assert scalars["loss"] < 0.1
    found = np.asarray(segment(trained, images).argmax(-1))
    assert (found == truth)[mask != 255].mean() > 0.98


def _run(folder: Path, data: Path, **options: object) -> Run:
    config: ConfigDict = testing.get_config()
    config.data.root = str(data)
    config.update_from_flattened_dict({f"segmenter.{key}": value for key, value in options.items()})
    check_options(config, KNOWN)
    return begun(config, folder)


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """The data, and a workdir whose stages up to the masks are done."""
    data = tmp_path_factory.mktemp("data")
    folder = tmp_path_factory.mktemp("runs") / "masked"
    run_stages(_run(folder, data), [KNOWN[stage] for stage in BEFORE])
    yield data, folder


def _copied(masked: tuple[Path, Path], folder: Path, **options: object) -> Run:
    data, done = masked
    shutil.copytree(done, folder)
    return _run(folder, data, **options)


@pytest.mark.slow
def test_it_writes_and_scores_masks_of_val(masked, tmp_path) -> None:
    run = _copied(masked, tmp_path / "run")
    run_stages(run, [KNOWN["segmenter"]])
    stage, source = run.finished("segmenter"), seeded(run, "val")
    net = weights.load(stage.folder)
    assert isinstance(net, Segmenter) and net.levels == run.config.segmenter.levels
    table = np.zeros((6, 6), np.int64)
    for example in source:
        mask = decode_mask((stage.folder / f"val/{example.id}.png").read_bytes())
        assert mask.shape == example.size and mask.max() < 6
        table += confusion_matrix(mask, example.mask, 6)
    scores = KNOWN["segmenter"].scores(run)["segmenter"]
    assert scores["miou"] == mean_iou(table) and scores["images"] == len(source)
    assert scores["interval"][0] <= scores["miou"] <= scores["interval"][1]
    assert not (stage.folder / "train").exists()


@pytest.mark.slow
def test_seeds_masks_and_network_are_in_one_table(masked, tmp_path) -> None:
    run = _copied(masked, tmp_path / "run")
    results = KNOWN["masks"].scores(run)
    headers, rows = summary(results)
    assert headers == ["masks", "image labels used", "val", "train"]
    assert [row[1] for row in rows] == ["yes"] * 4
    assert "not a segmentation network" in note(results)
    network = {"miou": 0.5, "iou": dict.fromkeys(results["masks"]["iou"], 0.25)}
    results |= {"segmenter": network, "options": run.config.to_dict()}
    tables = [part for part in masks_section(results).body if isinstance(part, Table)]
    assert all(len(table.headers) == len(row) for table in tables for row in table.rows)
    assert tables[1].headers[-1] == "val: network" and tables[1].rows[1][-1] == "25.0"
    assert summary(results)[1] == [*rows, ["network", "no", "50.0", DASH]]
    assert "sees nothing but the image" in note(results)


def _stopped(run: Run, patch: pytest.MonkeyPatch, name: str, after: int, module=segmenter) -> None:
    """Runs the stage until a signal at the call number `after` of a function of `module` ends it."""
    function, calls = getattr(module, name), itertools.count(1)

    def signalling(*arguments: object) -> object:
        if next(calls) == after:
            run.stop.signal = signal.SIGTERM
        return function(*arguments)

    with patch.context() as inner:
        inner.setattr(module, name, signalling)
        with pytest.raises(Stopped):
            run_stages(run, [KNOWN["segmenter"]])


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_bytes(masked, tmp_path, monkeypatch) -> None:
    """Stopped in training, then between two masks of val; also when such a mask is lost after that."""
    whole, run = _copied(masked, tmp_path / "whole"), _copied(masked, tmp_path / "stopped")
    run_stages(whole, [KNOWN["segmenter"]])
    steps = {int(path.name) for path in (tmp_path / "whole/segmenter/checkpoints").glob("[0-9]*")}
    _stopped(run, monkeypatch, "read_mask", after=9)  # within the first of two epochs
    halfway = {
        int(path.name) for path in (run.workdir.folder / "segmenter/checkpoints").glob("[0-9]*")
    }
    assert halfway and 0 < max(halfway) < max(steps)
    run = _run(tmp_path / "stopped", masked[0])
    _stopped(run, monkeypatch, "write_mask", after=1, module=segmenter_masks)
    assert len([*(run.workdir.folder / "segmenter/val").glob("*.png")]) < len(seeded(run, "val"))
    run = _run(tmp_path / "stopped", masked[0])
    run_stages(run, [KNOWN["segmenter"]])
    one, two = (folder / "segmenter" for folder in (tmp_path / "whole", tmp_path / "stopped"))
    names = ["model.safetensors", "scores.json", *(f"val/{p.name}" for p in one.glob("val/*.png"))]
    assert len(names) > 2
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    lost = next(two.glob("val/*.png"))
    lost.unlink()
    record = json.loads((two / "stage.json").read_text())
    (two / "stage.json").write_text(json.dumps(record | {"done": False}))
    run_stages(_run(tmp_path / "stopped", masked[0]), [KNOWN["segmenter"]])
    assert lost.read_bytes() == (one / "val" / lost.name).read_bytes()


@pytest.mark.slow
def test_a_frozen_backbone_keeps_its_bits(masked, tmp_path) -> None:
    """And masks of val are those of the views and the CRF at test time."""
    scales = (1.0, 1.5)
    options = {"test.scales": scales, "test.flip": True, "crf.iterations": 2}
    run = _copied(masked, tmp_path / "run", backbone_rate=0.0, **options)
    first = nnx.to_flat_state(nnx.state(initial_segmenter(run)))
    before = {path: np.asarray(leaf[...]) for path, leaf in first}
    run_stages(run, [KNOWN["segmenter"]])
    after = nnx.to_flat_state(nnx.state(weights.load(run.finished("segmenter").folder)))
    for path, leaf in after:
        same = np.array_equal(before[path], leaf[...])
        assert same == (path[0] == "backbone"), path
    net, example = weights.load(run.finished("segmenter").folder), seeded(run, "val")[0]
    image = normalise(example.image[None], net.preprocess)
    found = np.asarray(jnp.exp(segment(net, image, scales, flip=True))).transpose(0, 3, 1, 2)
    crf = CRFParameters(**run.config.segmenter.crf)
    expected = dense_crf(example.image[None], found, parameters=crf, backend="exact")[0].argmax(0)
    mask = read_mask(run.finished("segmenter"), "val", example.id)
    assert (mask == expected).mean() > 0.999
    assert (mask != found[0].argmax(0)).any()


@pytest.mark.slow
def test_pixels_that_are_not_trusted_are_255(masked, tmp_path) -> None:
    run = _copied(masked, tmp_path / "run", trusted="agreed")
    every, agreed = TrainingMasks(_run(tmp_path / "run", masked[0])), TrainingMasks(run)
    stages, some = (run.finished("masks"), run.finished("labels")), 0
    for example in seeded(run, "train"):
        mask = read_mask(stages[0], "train", example.id)
        np.testing.assert_array_equal(every(example.id), mask)
        low, high = (
            read_mask(stages[1], crf_folder(alpha, "train"), example.id)
            for alpha in ("low", "high")
        )
        for trusted, own, *others in np.nditer([agreed(example.id), mask, low, high]):
            assert trusted == (own if own in others else 255)
            some += trusted == 255
    assert some > 0


WRONG = {
    "hidden": (48, "a multiple of 32, not 48"),
    "backbone_rate": (1.5, r"a number in \[0, 1\], not 1.5"),
    "schedule": ("step", "one of linear, poly, cosine, not 'step'"),
    "scale": ((2.0, 0.5), r"two numbers in \[0.1, 4\], the lower one first, not \(2.0, 0.5\)"),
    "robustness": (1.5, r"a number in \[0, 1\], not 1.5"),
    "trusted": ("some", "one of all, agreed, not 'some'"),
    "test.scales": ((), r"a tuple, of which each is a number in \(0, 4\], not \(\)"),
    "crf.iterations": (-1, "a whole number from 0 up, not -1"),
    "warmup_epochs": (2, "less than segmenter.epochs, 2, not 2"),
}


@pytest.mark.parametrize("key", WRONG)
def test_wrong_options_are_named(key: str, tmp_path: Path) -> None:
    value, message = WRONG[key]
    with pytest.raises(ValueError, match=rf"^config.segmenter.{key} must be {message}"):
        _run(tmp_path, tmp_path, **{key: value})


@pytest.mark.slow
@pytest.mark.parametrize("levels", [(), ("stem.9",)])
def test_levels_that_the_model_lacks_end_before_its_training(levels, masked, tmp_path) -> None:
    run = _run(tmp_path, masked[0], levels=levels)
    with pytest.raises(ValueError, match=r"^config\.segmenter\.levels: "):
        run_stages(run, [KNOWN["classifier"]])


@pytest.mark.slow
@pytest.mark.parametrize(
    "key, split",
    [("train_split", "train[8:24]"), ("val_split", "val"), ("val_split", "train[20:]")],
)
def test_images_without_a_mask_to_learn_from_are_named(key, split, masked, tmp_path) -> None:
    """Those of val have masks, but these know the image labels."""
    run = _copied(masked, tmp_path / "run", **{key: split})
    with pytest.raises(ValueError, match=rf"^image .* of config\.segmenter\.{key}=.* is not in"):
        check_stages(run, [KNOWN["segmenter"]])
