"""`python -m benchmarks`: its table, its options, and the smallest run of every row."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data

from benchmarks import __main__ as bench
from benchmarks import (
    cam,
    crf,
    gpu,
    growth,
    loader,
    made_photographs,
    oracles,
    own_data,
    seeds,
    targets,
    training,
)
from benchmarks.command import parse_options
from benchmarks.models import random_model
from benchmarks.pairs import area_under_roc
from benchmarks.tables import judge
from benchmarks.targets import Benchmark, Target
from benchmarks.timing import alternate, median_ratio
from configs import shapes
from vitx.data.loader import open_source
from vitx.data.source import CACHE_BYTES
from vitx.evaluation.metrics import mean_iou
from vitx.models.families import MODELS
from vitx.models.registry import CNNS
from vitx.runtime.options import flat

ROOT = Path(__file__).parents[1]
CONTENT = {
    "command": "python -m benchmarks",
    "date": "2026-01-02",
    "commit": None,
    "device": {"platform": "cpu", "kind": "cpu", "count": 1, "cores": 2},
    "versions": {"jax": "0"},
}


def target(limit=2.0, at_most=True, benchmark="some"):
    return Target(
        "row", "cpu", benchmark, "figure", limit, "s", "text", "yardstick", at_most=at_most
    )


@pytest.mark.exhaustive
def test_quick_mode_measures_every_row(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "benchmarks", "--quick", f"--out={tmp_path}"]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "bench.json").read_text())
    assert [row["name"] for row in found["rows"]] == [target.name for target in targets.TARGETS]
    for row in found["rows"]:
        # A difference of two times ("class") may fall below zero where both are a millisecond.
        assert math.isfinite(row["figure"]) and row["figure"] != 0, row
        assert math.isfinite(row["ratio"]) and row["met"] in (True, False), row
    table = (tmp_path / "bench.md").read_text()
    assert ended.stdout == table
    for target in targets.TARGETS:
        assert f"| {target.text} | {target.yardstick} |" in table
    assert found["versions"]["jax"] in table and found["device"]["platform"] == "cpu"


def test_benchmarks_and_targets_fit_together():
    for name, benchmark in targets.BENCHMARKS.items():
        assert benchmark.quick and benchmark.quick != benchmark.options, name
    for group in (targets.TARGETS, targets.GPU_TARGETS):
        names = [target.name for target in group]
        assert len(set(names)) == len(names)
        assert {target.benchmark for target in group} <= set(targets.BENCHMARKS)


@pytest.mark.parametrize(
    ("figure", "limit", "at_most", "ratio", "met"),
    [
        (1.5, 2.0, True, 0.75, True),
        (2.0, 2.0, True, 1.0, True),
        (3.0, 2.0, True, 1.5, False),
        (3.0, 2.0, False, 1.5, True),
        (1.0, 2.0, False, 0.5, False),
        (3.0, "other", True, 3 / 7, True),
        (3.0, "unknown", True, None, None),
        (None, 2.0, True, None, None),
    ],
)
def test_judges_a_figure(figure, limit, at_most, ratio, met):
    figures = {"other": 7.0} | ({} if figure is None else {"figure": figure})
    row = judge(target(limit, at_most), figures)
    assert (row["figure"], row["ratio"], row["met"]) == (figure, ratio, met)


def test_reports_what_was_not_measured():
    rows = [judge(target(), {"figure": 1.0}), judge(target(), {})]
    figures = {"some": {"figure": 1.0, "other": 12.3456}}
    found = CONTENT | {"rows": rows, "figures": figures, "errors": {"wrong": "no room"}}
    lines = bench.report(found).splitlines()
    assert "| text | yardstick | 1 s | 0.50 | yes |" in lines
    assert "| text | yardstick | not measured | - | - |" in lines
    assert lines[-2:] == ["- some: figure 1, other 12.35", "- wrong failed: no room"]


def test_picks_rows_by_name():
    first, last = targets.TARGETS[0], targets.TARGETS[-1]
    assert bench.choose(targets.TARGETS, f"{last.name}, {first.name}") == [first, last]
    assert bench.choose(targets.TARGETS, "") == list(targets.TARGETS)
    with pytest.raises(ValueError, match=f"no row 'wrong'; rows are {first.name}, "):
        bench.choose(targets.TARGETS, "wrong")


@pytest.mark.slow
def test_refuses_gpu_figures_on_a_cpu(tmp_path, capsys):
    assert bench.main(gpu=True, out=tmp_path) == 2
    assert "error: --gpu wants a GPU or TPU, but JAX found only the CPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_benchmark_that_fails_leaves_the_others(tmp_path, capsys, monkeypatch):
    names = ("wrong", "infinite", "dead", "right")
    benchmarks = {
        "wrong": Benchmark("benchmarks.start:figures", {"model": "no_model"}),
        "infinite": Benchmark("builtins:dict", {"figure": math.inf}),
        "dead": Benchmark("os:_exit", {"status": 1}),
        "right": Benchmark("builtins:dict", {"figure": 1.0}),
    }
    monkeypatch.setattr(bench, "BENCHMARKS", benchmarks)
    monkeypatch.setattr(bench, "TARGETS", [target(benchmark=name) for name in names])
    assert bench.main(out=tmp_path) == 1
    found = json.loads((tmp_path / "bench.json").read_text())
    assert [row["met"] for row in found["rows"]] == [None, None, None, True]
    assert "unknown model 'no_model'" in found["errors"]["wrong"]
    assert "no finite figure" in found["errors"]["infinite"] and "dead" in found["errors"]
    assert "wrong failed: ValueError: unknown model" in capsys.readouterr().out


def test_arguments_become_options(capsys):
    def figures(model="small", sizes=(1, 2), step_batch=1, all=False):
        """What is measured."""

    assert parse_options(figures, []) == {
        "model": "small",
        "sizes": (1, 2),
        "step_batch": 1,
        "all": False,
    }
    given = ["--model=large", "--sizes=3,4", "--step-batch=2", "--all"]
    assert list(parse_options(figures, given).values()) == ["large", (3, 4), 2, True]
    with pytest.raises(SystemExit):
        parse_options(figures, ["--help"])
    printed = capsys.readouterr().out
    assert "What is measured." in printed and "default: 'small'" in printed


# Timing


def test_sides_take_turns_after_one_call_each():
    order = []
    seconds = alternate({name: lambda name=name: order.append(name) for name in "ab"}, 3)
    assert order == ["a", "b"] * 4
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def test_fast_sides_are_repeated():
    calls = []
    seconds = alternate({"side": lambda: (calls.append(0), time.sleep(0.002))}, 2, at_least=0.01)
    assert 2 + 2 * 2 <= len(calls) <= 2 + 2 * 5  # two to find out how often
    assert all(0.002 <= second < 0.02 for second in seconds["side"])


def test_ratios_are_of_runs_in_one_turn():
    assert median_ratio([1.0, 20.0, 3.0], [2.0, 10.0, 3.0]) == 1.0


# The loader's photographs


def test_photographs_are_like_vocs(tmp_path):
    kilobytes = loader.make_photographs(tmp_path)
    assert 80 <= kilobytes <= 140
    source = open_source("folder", "all", tmp_path)
    assert len(source) == loader.FILES
    shapes = {source[index].image.shape[:2] for index in range(len(loader.SHAPES))}
    assert shapes == set(loader.SHAPES)
    assert len(source) * source[0].image.nbytes > CACHE_BYTES  # so each is decoded every time
    first, second = (source[index].image for index in (0, 3))
    assert np.abs(first.astype(int) - second).mean() > 20
    assert 30 <= first.std() <= 80


def test_counts_the_flops_of_a_forward():
    """ViT-Tiny's products are known in closed form; the rest is little."""
    tokens, width, depth, classes = 197, 192, 12, training.CLASSES
    block = tokens * 12 * width**2 + 2 * tokens**2 * width
    last = 2 * tokens * width**2 + 10 * width**2 + 2 * tokens * width  # of the class token only
    products = 2 * ((depth - 1) * block + last + (tokens - 1) * 768 * width + width * classes)
    counted = training.forward_flops("vit_tiny_patch16_224", 224)
    assert products <= counted <= 1.1 * products


@pytest.mark.slow
def test_compares_backends_of_the_crf():
    found = crf.one_call(**targets.BENCHMARKS["crf"].quick)
    assert set(found) == {"jax_seconds", "pydensecrf_seconds", "jax_over_pydensecrf"}


# Own data


def test_photographs_have_exact_masks_and_every_class(tmp_path):
    classes = made_photographs.make_photographs(tmp_path / "images", train=12, val=4)
    (tmp_path / "classes.txt").write_text("\n".join(classes))
    listed = {"classes": tmp_path / "classes.txt"}
    train, val = (
        open_source("voc_segmentation", split, tmp_path / "images", **listed)
        for split in ("train", "val")
    )
    assert (len(train), len(val)) == (12, 4)
    shown = np.zeros(len(classes) - 1, bool)
    for example in train:
        assert example.image.shape == (*example.mask.shape, 3) == (72, 96, 3)
        indices = np.unique(example.mask)
        np.testing.assert_array_equal(np.flatnonzero(example.labels) + 1, indices[indices > 0])
        shown |= example.labels > 0
    assert shown.all()


def test_photographs_of_train_and_val_show_no_common_pixels():
    for name, train, val in zip(
        made_photographs.GROUNDS,
        made_photographs.photographs("train"),
        made_photographs.photographs("val"),
        strict=True,
    ):
        whole = getattr(skimage.data, name)()
        whole = whole[0] if isinstance(whole, tuple) else whole
        np.testing.assert_array_equal(np.hstack([train, val]), whole)


@pytest.mark.parametrize("kind", range(1, len(made_photographs.CLASSES)))
def test_outlines_fit_the_unit_circle(kind):
    y, x = np.mgrid[-1.5:1.5:201j, -1.5:1.5:201j]
    inside = made_photographs.signed_distance(kind, x, y) < 0
    assert np.hypot(x, y)[inside].max() <= 1
    assert 0.25 < inside.mean() * 9 / np.pi < 0.9  # of the circle's area


def test_rows_are_percent_and_signed():
    figures = {
        "seeds": {"miou": 0.5, "interval": [0.4, 0.6], "ahead": 0.25, "ahead_interval": [-0.1, 0.3]}
    }
    assert list(own_data.rows(figures)) == [
        ("seeds", "50.0", "40.0 to 60.0", "+25.0 [-10.0, +30.0]")
    ]


@pytest.mark.exhaustive
def test_runs_both_datasets_and_resumes(tmp_path, capfd):
    small = {
        "model.name": "vit_test_conv_s4_48",
        "classifier.epochs": 1,
        "classifier.warmup_epochs": 0,
        "classifier.batch_size": 8,
        "seeds.batch_size": 8,
        "affinity.epochs": 1,
        "affinity.batch_size": 8,
        "affinity.grid": 12,
        "affinity.levels": (),
    }
    options = ",".join(f"{key}={value}" for key, value in small.items())
    given = {"options": options, "out": str(tmp_path), "train": 24, "val": 6}
    for _ in range(2):
        own_data.main(**given)
        printed = capfd.readouterr().out
        for dataset in own_data.DATASETS:
            assert f"{dataset}, 24 training and 6 validation images, one run" in printed
        assert printed.count("| refined masks |") == len(own_data.DATASETS)
        assert printed.count("The classifier's mAP is ") == len(own_data.DATASETS)


# Growth


def test_figure_of_growth():
    points = {"x": [1, 2, 8], "seconds": [0.01, 0.03, 0.09], "exponent": 1.0}
    axes = growth.draw(dict.fromkeys(growth.GRID, points)).axes
    assert [panel.get_xlabel() for panel in axes] == list(growth.GRID)
    for panel in axes:
        dots, proportional = panel.get_lines()
        np.testing.assert_allclose(dots.get_xydata().T, [points["x"], points["seconds"]])
        np.testing.assert_allclose(proportional.get_ydata(), [0.01, 0.02, 0.08])
        assert panel.get_xscale() == panel.get_yscale() == "log"


@pytest.mark.slow
def test_measures_growth(monkeypatch):
    fixed = {"batch": 1, "classes": 1, "patches": 2, "depth": 1}
    monkeypatch.setattr(growth, "FIXED", fixed)
    panels = growth.measure({"tokens": (1, 2), "depth": (1, 2)}, runs=1)
    assert panels["tokens"]["x"] == [2, 5] and panels["depth"]["x"] == [1, 2]
    for points in panels.values():
        assert all(second > 0 for second in points["seconds"])
        assert math.isfinite(points["exponent"])


# Accelerators


def test_model_weights_are_drawn():
    model = random_model(targets.TINY, num_classes=3)
    assert model.num_classes == 3
    assert float(jnp.std(model.blocks[0].mlp.fc1.kernel[...])) == pytest.approx(32**-0.5, rel=0.1)


@pytest.mark.slow
def test_measures_explanations_of_a_device_with_a_known_peak(monkeypatch):
    kind = jax.devices()[0].device_kind
    monkeypatch.setitem(gpu.PEAKS, kind, {"float32": 1e12, "tf32": 2e12})
    found = gpu.explanations(targets.TINY, batches=(2,), runs=1, seconds=0.0)
    assert found["explanation_gigaflops"] > 2 * found["forward_gigaflops"] > 0
    assert found["float32_peak_2"] == pytest.approx(2 * found["tf32_peak_2"])
    done = found["explanations_2"] * found["explanation_gigaflops"] * 1e9
    assert found["float32_peak_2"] == pytest.approx(done / 1e12)
    assert found["half_peak"] == pytest.approx(0.5e12 / (found["explanation_gigaflops"] * 1e9))
    assert found["lean_2"] == 0
    assert 0 < found["forwards_an_explanation_2"] < 100


def test_pairs_are_ranked() -> None:
    generator = np.random.default_rng(0)
    positive, negative = generator.integers(0, 9, 60) / 8, generator.integers(0, 6, 50) / 8
    wins = (positive[:, None] > negative).mean() + (positive[:, None] == negative).mean() / 2
    assert area_under_roc(positive, negative) == pytest.approx(wins)


def test_seeds_are_summed_up_by_kind() -> None:
    """Three seeds of four images; the second kind of mask, the refined one, is right everywhere."""
    generator = np.random.default_rng(0)
    counts = generator.integers(5, 9, (3, 4, 2, 2, 2))
    counts[:, :, 1] = 20 * np.eye(2, dtype=int)
    first, last = seeds.rows(["no_walk", "masks"], counts)
    found = [100 * float(mean_iou(table)) for table in counts[:, :, 0].sum(1)]
    assert first[1:3] == [f"{np.mean(found):.1f}", f"{np.std(found, ddof=1):.1f}"]
    assert first[3] == f"{min(found):.1f} to {max(found):.1f}"
    assert first[4].startswith(f"{100 - np.mean(found):+.1f} [")
    assert first[5] == f"{100 - max(found):+.1f}"
    assert last[1:] == ["100.0", "0.0", "100.0 to 100.0", "+0.0 [+0.0, +0.0]", "+0.0"]
    by_image = 100 * seeds.bootstrap(counts)[:, 0]
    half = seeds.half_width(np.array(found), by_image)
    error = np.sqrt(np.var(found, ddof=1) / 3 + by_image.var(ddof=1))
    assert half == pytest.approx(
        4.302653 * error, rel=1e-6
    )  # Student's t at two degrees of freedom


def test_systems_are_compared_by_seed() -> None:
    """Three seeds, whose differences are 1, 2 and 3 points at every kind."""
    reference = np.random.default_rng(0).uniform(40, 60, (3, 5))
    other = reference + np.array([[1.0], [2.0], [3.0]])
    found = {cam.REFERENCE: reference, "vgg_cam": other}
    first, second = cam.rows(found)
    assert first[0] == cam.SYSTEMS[cam.REFERENCE].title
    assert second[2] == f"{other[:, 1].mean():.1f} ± {other[:, 1].std(ddof=1):.1f}"
    (row,) = cam.differences(found, cam.REFERENCE)
    half = 4.302653 / np.sqrt(3)  # Student's t at two degrees of freedom, a standard deviation of 1
    assert row[1:] == [f"+2.0 [{2 - half:+.1f}, {2 + half:+.1f}]"] * 5


def test_systems_have_options_of_the_demo() -> None:
    for system in cam.SYSTEMS.values():
        known = flat(shapes.get_config())
        assert set(system.options) <= set(known)
        assert system.options.get("model.name", known["model.name"]) in (*MODELS, *CNNS)
        assert system.classifier in ("", *cam.SYSTEMS)


def test_perfect_seeds_of_the_embedded_dataset_score_best_with_the_truth() -> None:
    rows = dict(oracles.rows(4))
    assert len(rows) == 6
    figures = {name: float(value) for name, value in rows.items()}
    assert figures["perfect seeds on the token grid"] > 80
    assert figures["a walk from them, affinity of the true masks"] > 80
