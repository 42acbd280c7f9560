"""Scores of maps by name against the functions they stand for; their summary with paired differences."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vitx
from configs import shapes
from tests.small_models import images_for, small_vit
from vitx.data.transforms import resize_maps
from vitx.evaluation import faithfulness, localisation
from vitx.evaluation.comparison import Comparison, measure, program, score_program
from vitx.evaluation.perturbation import area_under_curve
from vitx.evaluation.randomisation import randomisation_curve
from vitx.evaluation.scores import SCORES, Judged, scores_of
from vitx.evaluation.summary import summary

pytestmark = pytest.mark.usefixtures("float64")

METHODS = ("input_x_gradient", "generic_attention", "centre")
CLASSES = np.array([[2, 2, 0], [0, 1, 1]])  # (B, M)


def explained(model, images):
    return jnp.stack(
        [
            resize_maps(vitx.explain(model, images, CLASSES[:, m], method)[1], (8, 12))
            for m, method in enumerate(METHODS)
        ],
        1,
    )


@cache
def judged():
    model = small_vit()
    images = images_for(model, 2)
    raw = explained(model, images)
    masks = jnp.asarray(np.random.default_rng(3).random((2, 8, 12)) > 0.6)
    return Judged(model, images, raw, jnp.asarray(CLASSES), explained, masks)


@cache
def found():
    names = tuple(name for name in SCORES if name != "road")
    run = jax.jit(
        lambda model, images, raw, masks: scores_of(
            names, Judged(model, images, raw, jnp.asarray(CLASSES), explained, masks)
        )
    )
    case = judged()
    return run(case.model, case.images, case.maps, case.masks)


def curves(m, fill, **options):
    case = judged()
    curve = faithfulness.score_curve(
        case.model, case.images, case.maps[:, m], case.classes[:, m], fill, **options
    )
    return area_under_curve(curve, faithfulness.FRACTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("m", range(len(METHODS)))
def test_scores_are_their_functions(m):
    case, blank = judged(), faithfulness.with_value((0.0, 0.0, 0.0))
    maps, classes = case.maps[:, m], case.classes[:, m]
    lerf, morf = (curves(m, blank, highest_first=order, patch=4) for order in (False, True))
    expected = {
        "deletion": curves(m, blank),
        "insertion": curves(m, faithfulness.with_blur(5 / 224 * 8), insert=True),
        "patches": lerf - morf,
        "saco": faithfulness.saco(
            case.model, case.images, maps, classes, fill=faithfulness.with_mean
        ),
        "pointing": localisation.pointing_game(maps, case.masks, 1).astype(float),
        "energy": localisation.energy_inside(maps, case.masks),
        "randomisation": randomisation_curve(
            case.model, lambda model, x: explained(model, x)[:, m], case.images
        ).mean(0),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found()[name][:, m], values, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.slow
def test_infidelity_is_nothing_for_what_a_linear_model_loses():
    """The output is a sum over pixels, and the map is each pixel's part of it, at any scale."""
    case = judged()
    weights = jnp.asarray(np.random.default_rng(0).standard_normal((8, 12, 3, 3)))

    def linear(images):
        return jnp.einsum("bijc,ijck->bk", images, weights)

    def maps_of(factor):
        parts = jnp.einsum("bijc,ijck->bkij", case.images, weights)
        return factor * jnp.take_along_axis(parts, jnp.asarray(CLASSES)[:, :, None, None], 1)

    for factor, left in ((0.01, 0.0), (-3.0, 1.0)):  # a map's negative explains nothing
        one = Judged(linear, case.images, maps_of(factor), case.classes, explained, case.masks)
        values = np.asarray(scores_of(("infidelity",), one)["infidelity"])
        np.testing.assert_allclose(values, left, atol=1e-12)
    values = np.asarray(found()["infidelity"])
    assert (values > 1e-6).all() and (values <= 1).all()


@pytest.mark.slow
def test_sensitivity_is_the_largest_relative_change():
    values, case = np.asarray(found()["sensitivity"]), judged()
    assert (values[:, 2] == 0).all(), "the centre sees no image"
    largest = np.zeros((2, 3))
    for key in jax.random.split(jax.random.key(0), 5):
        noise = jax.random.uniform(key, (8, 12, 3), jnp.float32, -0.02, 0.02)
        change = (
            explained(case.model, case.images + np.asarray(noise, np.float64)[None]) - case.maps
        )
        largest = np.maximum(largest, np.linalg.norm(change, axis=(2, 3)))
    expected = largest / np.linalg.norm(case.maps, axis=(2, 3))
    np.testing.assert_allclose(values, expected, rtol=1e-9)


@pytest.mark.slow
def test_a_map_without_contrast_has_no_score():
    case = judged()
    maps = case.maps.at[0, 1].set(0.5)
    names = ("deletion", "saco", "pointing", "energy", "infidelity")
    one = Judged(case.model, case.images, maps, case.classes, explained, case.masks)
    for name, values in scores_of(names, one).items():
        unknown = np.isnan(np.asarray(values))
        assert unknown[0, 1] and unknown.sum() == 1, name


@pytest.mark.slow
def test_scores_through_batches_to_figures_with_paired_differences():
    model = small_vit()
    generator = np.random.default_rng(1)
    pixels = generator.random((7, 8, 12, 3))
    best = np.asarray(model(jnp.asarray((pixels - 0.5) / 0.5))).argmax(-1)
    targets = ((best + np.array([0, 0, 1, 0, 2, 0, 1])) % 3).astype(
        np.int32
    )  # four of seven are right
    masks = generator.integers(0, 2, (7, 8, 12)).astype(np.int16)
    comparison = Comparison(
        ("generic_attention", "random"),
        measures=("perturbation", "segmentation"),
        scores=("energy", "saco"),
        reference="random",
        fractions=(0.0, 0.5),
    )
    batches = []
    for rows in (slice(0, 4), slice(4, 7)):
        batch = jnp.asarray(pixels[rows]), jnp.asarray(targets[rows])
        out = program(comparison)(model, *batch)
        out |= score_program(comparison)(model, *batch, out["maps"], masks[rows] == 1)
        batches.append(measure(comparison, out, masks[rows]))
    results = summary(comparison, batches)
    energies = np.concatenate([batch["score_energy"] for batch in batches])  # (7, columns)
    assert comparison.columns[0] == ("generic_attention", "predicted")
    figure = results["scores"]["generic_attention"]["energy_predicted"]
    np.testing.assert_allclose(figure["value"], energies[:, 0].mean())
    np.testing.assert_allclose(figure["difference"], (energies[:, 0] - energies[:, 1]).mean())
    low, high = figure["difference_interval"]
    assert low <= figure["difference"] <= high
    assert results["scores"]["random"]["energy_predicted"]["difference_interval"] == [0, 0]
    auc = {m: f["positive_predicted"] for m, f in results["perturbation"].items()}
    np.testing.assert_allclose(
        auc["generic_attention"]["difference"],
        auc["generic_attention"]["auc"] - auc["random"]["auc"],
        atol=1e-12,
    )
    miou = {m: f["miou"] for m, f in results["segmentation"].items()}
    np.testing.assert_allclose(
        miou["generic_attention"]["difference"],
        miou["generic_attention"]["value"] - miou["random"]["value"],
        atol=1e-12,
    )
    right = np.concatenate([batch["clean"] for batch in batches])
    np.testing.assert_array_equal(right, best == targets)
    parts = results["by_outcome"]
    assert [parts[name]["images"] for name in ("right", "wrong")] == [4, 3]
    of_wrong = parts["wrong"]["scores"]["generic_attention"]["energy_predicted"]["value"]
    np.testing.assert_allclose(of_wrong, energies[~right, 0].mean())
    # "random" knows no class, and is scored for both; its perturbation is measured once.
    assert set(results["scores"]["random"]) == set(results["scores"]["generic_attention"])
    assert results["perturbation"]["generic_attention"]["positive_target"]["difference"] is None


def test_differences_are_of_images_that_both_methods_have_a_figure_for():
    """Of two equal methods one has no figure where both are high: that makes no difference."""
    comparison = Comparison(
        ("rollout", "random"),
        ("predicted",),
        ("perturbation",),
        scores=("energy",),
        reference="random",
    )
    values = np.array([0.2, 0.9, 0.3, 0.8])
    other = np.where(values > 0.5, np.nan, values)
    batch = {
        "constant": np.zeros((4, 2), bool),
        "score_energy": np.stack([values, other], 1),
        **dict.fromkeys(("positive", "negative"), np.ones((4, 2, 10), bool)),
    }
    figures = summary(comparison, [batch])["scores"]
    np.testing.assert_allclose(figures["rollout"]["energy_predicted"]["value"], 0.55)
    assert figures["rollout"]["energy_predicted"]["difference"] == 0
    assert figures["rollout"]["energy_predicted"]["difference_interval"] == [0, 0]


def test_figures_without_a_meaning_are_left_out_of_the_mean():
    comparison = Comparison(("random",), ("predicted",), ("segmentation",), scores=("energy",))
    counts = {"constant": np.zeros((3, 1), bool), "score_energy": np.array([[0.5], [np.nan], [1]])}
    ones = dict.fromkeys(("correct", "labelled", "ap"), np.ones(3))
    pairs = {f"{n}_0": np.ones((3, 2)) for n in ("intersection", "union")}
    batch = counts | {f"{n}_0": v for n, v in ones.items()} | pairs
    batch |= {"histogram_0": np.ones((3, 2, 100))}
    figure = summary(comparison, [batch])["scores"]["random"]["energy_predicted"]
    assert figure["value"] == 0.75
    batch["score_energy"] = np.full((3, 1), np.nan)
    assert summary(comparison, [batch])["scores"]["random"]["energy_predicted"]["value"] is None


def test_options_of_methods_come_from_the_config_and_change_the_maps():
    config = shapes.get_config().methods
    config.compared = ("input_x_gradient", "random")
    config.options = {"random": {"seed": 3}}
    comparison = Comparison.from_config(config)
    assert comparison.options == (("random", (("seed", 3),)),)
    assert comparison.reference == "", "transformer_attribution is not compared"
    model = small_vit()
    images, classes = images_for(model, 2), jnp.zeros((2, 1), jnp.int32)
    found = comparison.maps_of("random", model, images, classes)[:, 0]
    _, expected = vitx.explain(model, images, method="random", options={"seed": 3})
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scores": ("sacco",)}, "methods.scores has 'sacco'; there are deletion, insertion"),
        ({"reference": "saliency"}, "methods.reference 'saliency' is not in methods.compared"),
        (
            {"options": (("rise", (("kept", 0.0),)),)},
            r"option kept must be a number in \[0.01, 0.99\]",
        ),
        ({"options": (("rice", ()),)}, "methods.options has 'rice'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Comparison(**options)
