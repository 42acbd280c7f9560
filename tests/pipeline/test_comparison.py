"""The comparison of methods through the whole path: explanation, ranking, forwards, files, figures."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from benchmarks import golden
from configs import imagenet_perturbation, imagenet_segmentation, shapes
from tests.small_models import small_hybrid, small_vit
from vitx import parallel
from vitx.data.records import Records
from vitx.data.source import Example, Source
from vitx.evaluation.comparison import Comparison, measure, program
from vitx.evaluation.metrics import segmentation_counts, segmentation_scores
from vitx.evaluation.summary import summary
from vitx.pipeline.compared_model import chosen_images, pixel_batches, require_classes, targets
from vitx.pipeline.gallery import _cells
from vitx.pipeline.methods_section import (
    accuracies_table,
    beside_published,
    departures,
    methods_section,
    methods_table,
)
from vitx.relevance import methods, registry
from vitx.relevance.explain import explain
from vitx.report.page import write_report
from vitx.report.parts import DASH

COLUMNS = ("rollout", "gradcam", "transformer_attribution", "transformer_attribution/stable")


def inputs(model, count=5, seed=0):
    generator = np.random.default_rng(seed)
    pixels = generator.random((count, *model.preprocess.size, 3)).astype(model.head.bias.dtype)
    targets = generator.integers(0, model.num_classes, count).astype(np.int32)
    masks = generator.choice([0, 1, -1], pixels.shape[:3], p=[0.6, 0.3, 0.1]).astype(np.int16)
    return jnp.asarray(pixels), jnp.asarray(targets), masks


@pytest.mark.exhaustive
def test_maps_are_those_of_explain_column_by_column():
    model = small_hybrid()
    comparison = Comparison(COLUMNS, start_layers=(("rollout", 1),))
    pixels, targets, _ = inputs(model)
    images = (pixels - 0.5) / 0.5
    logits, maps = comparison(model, images, targets)
    best = logits.argmax(-1)
    assert comparison.columns == (
        *((name, "predicted") for name in COLUMNS),
        *((name, "target") for name in COLUMNS[1:]),
    )
    for index, (method, explained) in enumerate(comparison.columns):
        name, _, rules = method.partition("/")
        _, expected = explain(
            model,
            images,
            best if explained == "predicted" else targets,
            name,
            1 if name == "rollout" else 0,
            rules or "published",
        )
        np.testing.assert_allclose(maps[:, index], expected, rtol=2e-4, atol=1e-7)


@pytest.mark.slow
def test_pixel_maps_bring_all_to_pixels():
    model = small_vit()
    comparison = Comparison(("rollout", "lrp"), ("predicted",))
    pixels, targets, _ = inputs(model)
    _, maps = comparison(model, 2 * pixels - 1, targets)
    assert maps.shape == (5, 2, *model.preprocess.size)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_golden_areas_through_the_whole_path():
    """Explained, ranked, perturbed and summed up: the published accuracies, from the images alone."""
    stored = golden.numbers("perturbation")
    model = golden.load("vit_tiny", num_heads=3, final_norm_eps=1e-5)
    comparison = Comparison(
        ("transformer_attribution",),
        measures=("perturbation",),
        start_layers=(("transformer_attribution", 1),),
    )
    pixels = stored["pixels"].transpose(0, 2, 3, 1)
    batches = [
        measure(
            comparison,
            program(comparison)(model, pixels[part], stored["target"][part].astype(np.int32)),
        )
        for part in (slice(0, 8), slice(8, 12))
    ]
    figures = summary(comparison, batches)["perturbation"]["transformer_attribution"]
    assert len(figures) == 4
    for name, figure in figures.items():
        np.testing.assert_allclose(figure["accuracy"], stored[f"accuracy_{name}"], atol=1e-9)
        np.testing.assert_allclose(figure["auc"], stored[f"auc_{name}"], atol=1e-9)
        assert figure["interval"][0] <= figure["auc"] <= figure["interval"][1]


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_golden_segmentation_scores_from_maps_through_batches_to_figures():
    stored = golden.numbers("segmentation_metrics")
    comparison = Comparison(("rollout",), ("predicted",), ("segmentation",))
    batches = [
        measure(comparison, {"maps": stored["maps"][part, None]}, stored["masks"][part])
        for part in (slice(0, 4), slice(4, 6))
    ]
    figures = summary(comparison, batches)["segmentation"]["rollout"]
    for name in ("pixel_accuracy", "miou", "map"):
        np.testing.assert_allclose(figures[name]["value"], stored[name], atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["jit", pytest.param("pmap", marks=pytest.mark.exhaustive)])
@pytest.mark.usefixtures("x64")  # in float32 the last bit decides between near pixels
def test_eight_devices_count_as_one_does(mode):
    model = small_vit()
    comparison = Comparison(("rollout", "transformer_attribution", "lrp"))
    pixels, targets, masks = inputs(model, 13)  # which 8 does not divide
    one = parallel.mesh((jax.devices()[0],))
    found = program(comparison, over=one)(model, pixels, targets)
    spread = program(comparison, mode)(model, pixels, targets)
    np.testing.assert_allclose(spread["maps"], found["maps"], atol=1e-9 * found["maps"].max())
    alone, together = (measure(comparison, each, masks) for each in (found, spread))
    assert alone.keys() == together.keys()
    for name, values in alone.items():
        if name.startswith(("ap_", "histogram_")):
            # Upsampling makes pixels equal up to rounding, which decides their order and bins.
            np.testing.assert_allclose(values, together[name], atol=2e-3 if "ap" in name else 2)
        else:
            np.testing.assert_array_equal(values, together[name], err_msg=name)


def test_broken_maps_are_named():
    comparison = Comparison(("gradcam",), ("target",), ("segmentation",))
    with pytest.raises(FloatingPointError, match=r"gradcam \(target\), rows 0, 1 of"):
        measure(
            comparison,
            {"maps": np.full((2, 1, 3, 3), np.nan)},
            np.zeros((2, 8, 12), np.int16),
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ("lpr",)}, "methods.compared has 'lpr'; there are rollout"),
        ({"methods": ("rollout/stable",)}, "methods.compared has 'rollout/stable'"),
        ({"methods": ("lrp", "lrp")}, "methods.compared is lrp, lrp: name each once"),
        ({"explained": ()}, "methods.explained is empty"),
        ({"directions": ("up",)}, "methods.directions has 'up'"),
        ({"start_layers": (("lrp", 1),)}, "methods.start_layer has 'lrp'; only rollout and"),
        ({"fractions": (0.5, 0.1)}, "methods.fractions .* must increase"),
        ({"fractions": ()}, "methods.fractions .* must increase"),
        ({"fill": 128.0}, "methods.fill is 128"),
        ({"threshold": -0.5}, "methods.threshold is -0.5"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Comparison(**options)


@pytest.mark.parametrize("config", [shapes, imagenet_perturbation, imagenet_segmentation])
def test_every_config_describes_a_comparison(config):
    comparison = Comparison.from_config(config.get_config().methods)
    assert dict(comparison.start_layers) == {"rollout": 1, "transformer_attribution": 0}
    assert comparison.threshold is None


def test_a_threshold_is_mean_or_a_number():
    config = imagenet_segmentation.get_config().methods
    config.threshold = "median"
    with pytest.raises(ValueError, match=r"methods\.threshold is 'median'"):
        Comparison.from_config(config)


def test_departures_from_the_published_protocol_are_named():
    config = imagenet_perturbation.get_config()
    assert departures(config) == ["epsilon of the final norm as in the file"]
    config.model.final_norm_eps = 1e-5
    assert departures(config) == []
    config = imagenet_segmentation.get_config()
    config.model.final_norm_eps = 1e-6
    assert departures(config) == ["epsilon of the final norm 1e-06"]
    config = imagenet_perturbation.get_config()
    config.model.final_norm_eps = 1e-5
    config.methods.fill = 0.5
    config.methods.start_layer.rollout = 0
    config.limit = 64
    assert departures(config) == ["fill 0.5", "start layer of rollout 0", "64 images"]


def test_limit_is_the_number_of_images():
    config: ConfigDict = imagenet_perturbation.get_config()
    config.limit = 64
    assert config.methods.images == 64


class FiveRecords(Records):
    """Five grey images, the second of which shows two classes."""

    def read(self, index):
        raise AssertionError("labels are enough to choose")

    def content(self, places):
        return ""

    def labels(self, index):
        return [0, 1] if index == 1 else [index % 2]


def test_images_of_one_class_are_chosen_by_their_labels():
    source = Source(FiveRecords("made", "val", ("background", "a", "b"), list("01234")))
    assert chosen_images(source, 0, one_class=True) == [0, 2, 3, 4]
    assert chosen_images(source, 3, one_class=True) == [0, 2, 4], "evenly over the split"
    assert chosen_images(source, 3, one_class=False) == [0, 2, 4]
    assert chosen_images(source, 0, one_class=False) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="limit of images is -1"):
        chosen_images(source, -1, one_class=False)


def test_last_batch_repeats_its_last_image():
    model = small_vit(size=(4, 4))
    examples = [
        SimpleNamespace(
            id=str(i), image=np.full((4, 4, 3), 51 * i, np.uint8), labels=np.eye(2)[i % 2]
        )
        for i in range(5)
    ]
    batches = pixel_batches(examples, [0, 2, 3], model, 2)
    assert [list(batches.places(i)) for i in range(len(batches))] == [[0, 2], [3]]
    np.testing.assert_allclose(batches[1]["image"][:, 0, 0, 0], [0.6, 0.6])
    np.testing.assert_array_equal(targets(batches[1]), [1, 1])
    np.testing.assert_array_equal(batches[1]["valid"], [True, False])
    assert batches[1]["id"] == ["3", "3"]
    with pytest.raises(IndexError):
        batches[2]


def test_a_model_of_other_classes_is_refused():
    source = Source(FiveRecords("made", "val", ("background", "a", "b"), list("01234")))
    require_classes(small_vit(num_classes=2), source)
    with pytest.raises(ValueError, match="the model has 3 outputs, but made 2 classes"):
        require_classes(small_vit(num_classes=3), source)


@pytest.fixture
def figures():
    comparison = Comparison(("rollout", "lrp", "lrp/stable"))
    generator = np.random.default_rng(0)
    count, columns = 20, len(comparison.columns)
    maps = generator.random((count, 6, 6))
    masks = generator.integers(0, 2, (count, 6, 6))
    counts = segmentation_counts(maps, masks)
    batch = {
        "positive": generator.random((count, columns, 10)) > 0.5,
        "negative": generator.random((count, columns, 10)) > 0.2,
        "clean": np.arange(count) % 4 > 0,
        "constant": np.zeros((count, columns), bool),
    }
    batch["constant"][3, 1] = True
    for index in range(3):
        batch |= {f"{name}_{index}": values for name, values in counts.arrays().items()}
    return maps, masks, summary(comparison, [batch])


def test_tables_show_every_figure_and_the_papers(figures):
    maps, masks, methods = figures
    headers, rows = methods_table(methods)
    assert headers[0] == "method" and len(headers) == 1 + 4 + 4
    assert [row[0] for row in rows] == ["rollout", "LRP", "LRP, stable"]
    assert rows[0][headers.index("negative, target")] == DASH
    scores = segmentation_scores(maps, masks)
    assert rows[1][headers.index("mIoU")] == f"{100 * scores['miou']:.1f}"
    assert methods["constant_maps"] == {"lrp, predicted": 1}
    assert methods["accuracy"] == 0.75
    many = methods | {"constant_maps": {"lrp, predicted": methods["images"] // 10 + 1}}
    assert [row[0] for row in methods_table(many)[1]] == [
        "rollout",
        "LRP (constant)",
        "LRP, stable",
    ]

    headers, rows = beside_published(methods)
    assert len(rows) == 2 + 4 + 2 * 3, "LRP's stable rules were never printed"
    (row,) = [row for row in rows if row[:2] == ["LRP", "positive, target"]]
    ours = 100 * methods["perturbation"]["lrp"]["positive_target"]["auc"]
    assert row[2] == f"{ours:.2f}" and row[4] == "41.93"
    assert float(row[5]) == pytest.approx(ours - 41.93, abs=0.011)

    headers, rows = accuracies_table(methods)
    assert headers[2:] == [f"{10 * i} %" for i in range(10)]
    assert len(rows) == 2 * (3 + 2)


@pytest.mark.slow
def test_a_method_is_one_function(monkeypatch, tmp_path):
    """No table but a method's own definition knows it: it is explained, compared, and shown by its title."""
    monkeypatch.setitem(
        registry._REGISTERED, "toy", None
    )  # what the decorator puts there is taken out again

    @registry.method("toy: <the last attention>", by_class=False)
    def _toy(model, images, ops, start_layer, lean):
        logits, attention, _ = methods.last_block(model, images, ops)
        return logits, lambda hot: methods.on_grid(model, attention.mean(1))

    model = small_vit()
    pixels, targets, masks = inputs(model)
    comparison = Comparison(("rollout", "toy"))
    found = program(comparison)(model, pixels, targets)
    _, expected = explain(model, (pixels - 0.5) / 0.5, method="raw_attention")
    np.testing.assert_allclose(found["maps"][:, 1], expected, rtol=1e-5)
    results = summary(comparison, [measure(comparison, found, masks)])
    section = methods_section(results, differing=[])
    assert "guessed" not in section.body[0]
    about = {"model": {"num_heads": 2, "assumed": ["num_heads"]}}
    assert (
        "number of heads of the explained model, 2, was guessed"
        in (methods_section(results | about, differing=[]).body[0])
    )
    write_report(tmp_path / "page.html", title="toy", results={}, sections=[section])
    assert "toy: &lt;the last attention&gt;" in (tmp_path / "page.html").read_text()


def test_the_gallery_says_below_a_map_that_it_is_constant():
    example = Example("cat", np.zeros((8, 8, 3), np.uint8), None, np.ones(1, np.float32))
    comparison = Comparison(
        methods=("rollout", "gradcam", "lrp"), explained=("predicted", "target")
    )
    maps = [np.eye(4), np.ones((4, 4)), np.full((4, 4), np.nan), np.eye(4), np.eye(4)]
    image, *shown = _cells(example, comparison, "predicted", np.stack(maps), "predicted: ring")
    assert image.alt == "image cat" and image.note == ""
    assert [cell.note for cell in shown] == [
        "",
        "constant: shows nothing",
        "not finite: shows nothing",
    ]
    assert shown[1].alt == "GradCAM of image cat, predicted: ring: constant: shows nothing"
    assert _cells(example, comparison, "target", np.stack(maps), "x")[1] is None  # of no class
