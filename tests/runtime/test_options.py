"""Every option of every config has a range, or is known to need none; wrong ones are named."""

import contextlib
import fnmatch
import importlib
import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import shapes, voc
from tests.runs import KNOWN, begun
from vitx.runtime.experiment import check_options, ranges_of
from vitx.runtime.options import MOST_WORKERS, flat, range_of, settled

CONFIGS = sorted(path.stem for path in (Path(__file__).parents[2] / "configs").glob("[a-z]*.py"))
FREE = [  # names of files, splits, datasets and classes, texts, and what is true or false
    "stages",
    "*.name",
    "*.root",
    "*_split",
    "walk.split",
    "methods.split",
    "*checkpoint",
    "*classes",
    "class_names",
    "images",
    "font",
    "overlays",
    "architecture",
    "*.flip",
    "*.decay_norms_and_biases",
    "*.contrast",
    "*.dropout",
    "seeds.own_size",
    "affinity.train_backbone",
    "walk.over_maximum",
    "report.title",
    "report.summary",
    "report.note",
    "report.published",
]
# `Comparison`, `Explainer` and `score` look at these.
ELSEWHERE = [
    "masks",
    "methods",
    "methods.compared",
    "methods.explained",
    "methods.measures",
    "methods.directions",
    "methods.fractions",
    "methods.fill",
    "methods.compute",
    "methods.threshold",
    "methods.scores",
    "methods.reference",
    "image_size",
]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_option_is_looked_at(name: str) -> None:
    config = importlib.import_module(f"configs.{name}").get_config()
    check_options(config, KNOWN)
    free = re.compile("|".join(map(fnmatch.translate, FREE + ELSEWHERE)))
    unwatched = [key for key in flat(config) if range_of(key, ranges_of(KNOWN)) is None]
    assert not [key for key in unwatched if not free.match(key)]


WRONG = {
    "seed": (-1, r"a whole number in \[0, 2147483647\], not -1"),
    "parallel": ("both", "one of jit, pmap, not 'both'"),
    "on_bad_image": ("maybe", "one of stop, skip, not 'maybe'"),
    "data.workers": (MOST_WORKERS + 1, rf"a whole number in \[0, {MOST_WORKERS}\], not"),
    "labels.workers": (-1, r"a whole number in \[0, \d+\], not -1"),
    "model.image_size": (-48, "a whole number from 0 up, not -48"),
    "model.final_norm_eps": (-1e-5, "a number from 0 up, not -1e-05"),
    "classifier.epochs": (0, "a whole number from 1 up, not 0"),
    "classifier.batch_size": (-8, "a whole number from 1 up, not -8"),
    "classifier.learning_rate": (float("nan"), "a number above 0, not nan"),
    "affinity.learning_rate": (-0.1, "a number above 0, not -0.1"),
    "classifier.weight_decay": (float("inf"), "a number from 0 up, not inf"),
    "classifier.optimizer": ("adamm", "one of sgd, adamw, not 'adamm'"),
    "affinity.compute": ("float8", "one of auto, float32, bfloat16, not 'float8'"),
    "classifier.momentum": (1.0, r"a number in \[0, 1\), not 1.0"),
    "classifier.schedule": ("step", "one of linear, poly, cosine, not 'step'"),
    "classifier.new_rate": (0.0, "a number above 0, not 0.0"),
    "classifier.long_side": (
        (512, 256),
        r"\(\), or two whole numbers from 1 up, .* not \(512, 256\)",
    ),
    "affinity.bias_rate": (-2.0, "a number above 0, not -2.0"),
    "affinity.trainable": ("head", "all, or of a CNN a level such as conv3, not 'head'"),
    "affinity.epsilon": (0.0, "a number above 0, not 0.0"),
    "seeds.normalise": ("max", "one of min-max, maximum, not 'max'"),
    "classifier.average": (1.0, r"a number in \[0, 1\), not 1.0"),
    "affinity.average": (-0.5, r"a number in \[0, 1\), not -0.5"),
    "classifier.trainable": (
        "block.0",
        "all, head, or a block such as block.10; .* conv3, not 'block.0'",
    ),
    "classifier.token_dropout": (1.0, r"a number in \[0, 1\), not 1.0"),
    "classifier.layer_decay": (0.0, r"a number in \(0, 1\], not 0.0"),
    "classifier.head": ("mean", "empty, or one of pooled, class\\+mean, best, pooled\\+best, not"),
    "classifier.best_patches": (0, "a whole number from 1 up, not 0"),
    "classifier.jitter": ((0.2, 0.2, 0.2, 0.8), r"four numbers .* at most 0.5, not \(0.2, 0.2"),
    "affinity.jitter": ((0.2,), r"four numbers from 0 up.*not \(0.2,\)"),
    "methods.batch_size": (0.5, "a whole number from 1 up, not 0.5"),
    "labels.alpha_low": ((1.0, 2.0), r"a number above 0, not \(1.0, 2.0\)"),
    "classifier.accumulate": (True, "a whole number from 1 up, not True"),
    "seeds.rules": ("pub", "one of published, stable, not 'pub'"),
    "seeds.method": ("grad", "one of rollout, .*, not 'grad'"),
    "seeds.scales": ((1.0, 0.0), r"a tuple, .* a number in \(0, 4\], not \(1.0, 0.0\)"),
    "seeds.refine": ("clip", "empty, or one of mctformer, clip_es, not 'clip'"),
    "seeds.root": (0, "a number above 0, not 0"),
    "seeds.background": ((0.2, 1.5), r"a number in \[0, 1\], or a tuple.*not \(0.2, 1.5\)"),
    "labels.backend": ("exakt", "one of exact, jax, pydensecrf, not 'exakt'"),
    "labels.crf.srgb": (0.0, "a number above 0, not 0.0"),
    "labels.crf.iterations": (-1, "a whole number from 0 up, not -1"),
    "affinity.radius": (1, "a whole number from 2 up, not 1"),
    "affinity.features": (-3, "a whole number from 1 up, not -3"),
    "affinity.levels": (("stem.1", "stem.1"), "a tuple of different levels such as 'stem.2'"),
    "walk.beta": ((4.0, -1.0), r"a number above 0, or a tuple of such candidates, not"),
    "walk.log2_steps": (
        (),
        r"a whole number in \[0, 30\], or a tuple of such candidates, not \(\)",
    ),
    "walk.affinity": (
        "attention2",
        "one of affinitynet, features, attention, colour, uniform, not",
    ),
    "walk.pairs": ("window", "one of published, near, all, not 'window'"),
    "walk.start": ("labels", "one of seeds, crf, not 'labels'"),
    "walk.background": ("none", "one of walked, recomputed, constant, not 'none'"),
    "walk.choose": ("val", "one of masks, auto, not 'val'"),
    "walk.threshold": ((0.5, 1.5), r"a number in \[0, 1\], or a tuple of such candidates, not"),
    "walk.levels": (("head",), "a tuple of different levels such as"),
    "masks.crf.iterations": (-1, "a whole number from 0 up, not -1"),
    "controls.arms": (("none",), "a tuple, of which each is one of no_walk"),
    "walk.method": ("power", "one of exact, chebyshev, not 'power'"),
    "methods.start_layer.rollout": (-1, "a whole number from 0 up, not -1"),
    "report.extremes": (-1, "a whole number from 0 up, not -1"),
}


@pytest.mark.parametrize(
    "levels", ["stem.1", ("stem.0",), ("image",), ("block.1x",), (1,), (("a",),)]
)
def test_levels_have_names_of_stages_or_blocks(levels: object) -> None:
    with pytest.raises(ValueError, match=r"^config\.affinity\.levels must be a tuple of different"):
        check_options(_changed({"affinity.levels": levels}), KNOWN)
    check_options(_changed({"affinity.levels": ("block.12", "stem.1")}), KNOWN)


@pytest.mark.parametrize("key", WRONG)
def test_a_value_out_of_range_is_named(key: str) -> None:
    value, message = WRONG[key]
    with pytest.raises(ValueError, match=f"^config.{key} must be {message}"):
        check_options(_changed({key: value}), KNOWN)


TOGETHER = {
    r"config.classifier.warmup_epochs must be less than classifier.epochs, 2, not 2": {
        "classifier.epochs": 2,
        "classifier.warmup_epochs": 2,
    },
    "config.model.image_size must be above 0 to train at, not 0": {"model.image_size": 0},
    "config.labels.alpha_low must be at most alpha_high, 16, not 17": {"labels.alpha_low": 17.0},
    "config.affinity.grid 13 must divide model.image_size 48": {"affinity.grid": 13},
    "config.affinity.radius or grid: .* no pairs at radius 20": {"affinity.radius": 20},
    "methods.compared has 'x'; there are rollout": {"methods.compared": ("rollout", "x")},
    r"methods.fractions \(0.5, 0.1\) must increase": {"methods.fractions": (0.5, 0.1)},
    "config.stages has no stage 'seed'; there are: classifier": {"stages": "classifier,seed"},
}


@pytest.mark.parametrize("message", TOGETHER)
def test_what_does_not_fit_together_is_named(message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        check_options(_changed(TOGETHER[message]), KNOWN)


def _changed(options: dict) -> ConfigDict:
    config = shapes.get_config()
    with config.ignore_type():
        config.update_from_flattened_dict(options)
    return config


def test_stages_that_do_not_run_are_left_alone() -> None:
    odd = {"affinity.grid": 13, "affinity.radius": 20, "labels.alpha_low": 65.0}
    check_options(_changed(odd | {"stages": "classifier,seeds"}), KNOWN)
    check_options(_changed({"affinity.warmup_epochs": 99, "stages": "classifier"}), KNOWN)


def test_the_limit_on_pixels_is_looked_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITX_MAX_PIXELS", "many")
    with pytest.raises(ValueError, match="VITX_MAX_PIXELS=many is no number of pixels"):
        check_options(shapes.get_config(), KNOWN)


@pytest.mark.parametrize(
    ("backend", "capability", "kind"),
    [
        ("cpu", 0.0, "float32"),
        ("tpu", 0.0, "bfloat16"),
        ("gpu", 0.0, "bfloat16"),  # AMD's
        ("gpu", 7.5, "float32"),
        ("gpu", 8.0, "bfloat16"),
    ],
)
def test_auto_is_what_the_device_suits(
    backend: str, capability: float, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = shapes.get_config()
    assert config.classifier.compute == "auto"
    config.affinity.compute = "float32"
    monkeypatch.setattr("jax.default_backend", lambda: backend)
    monkeypatch.setattr("vitx.parallel.compute_capability", lambda: capability)
    found = settled(config, {})
    assert (found.classifier.compute, found.affinity.compute) == (kind, "float32")
    assert config.classifier.compute == "auto"  # the caller's is left alone
    published = voc.get_config()
    assert published.classifier.compute == published.affinity.compute == "float32"


def test_auto_is_what_the_run_was_begun_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was trained on a GPU is evaluated on a CPU; what has no results yet suits the device."""
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    run = begun(shapes.get_config(), tmp_path)
    failed = begun(shapes.get_config(), tmp_path / "failed")
    with run.stage("classifier").run():
        pass
    with contextlib.suppress(KeyboardInterrupt), failed.stage("classifier").run():
        raise KeyboardInterrupt
    monkeypatch.undo()
    assert begun(shapes.get_config(), tmp_path / "new").config.classifier.compute == "float32"
    assert begun(shapes.get_config(), tmp_path / "failed").config.classifier.compute == "float32"
    again = begun(shapes.get_config(), tmp_path)
    assert again.config.classifier.compute == "bfloat16"
    assert again.stage("classifier").done


def test_a_copy_of_a_stage_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(shapes.get_config(), tmp_path)
    with run.stage("classifier").run():
        pass
    (tmp_path / "classifier").rename(tmp_path / "classifier_float32")
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    assert begun(shapes.get_config(), tmp_path).config.classifier.compute == "bfloat16"
