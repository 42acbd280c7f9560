"""`explain_many`: the numbers of `explain`, what is shared, and what is refused."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import vitx
from benchmarks.methods import product_flops
from tests.small_models import images_for, small_family, small_vit
from vitx.relevance import explain as module
from vitx.relevance.methods import TABLE_METHODS
from vitx.relevance.registry import STABLE, method_names, method_of, methods_of

pytestmark = pytest.mark.usefixtures("float64")

CLASSES = np.array([[1, 0], [2, 2]])
FEW = {"rise": {"masks": 3}, "smoothgrad": {"samples": 2}, "integrated_gradients": {"steps": 2}}
FEW |= {f"beyond_intuition_{part}": {"steps": 2} for part in ("head", "token")}
NAMES = method_names()
slow = pytest.mark.slow  # compiles many methods


@cache
def the_model():
    """Of a family with the parts that all methods need."""
    return small_family("mean", depth=1)


def one(name, model, images, classes, **given):
    """`explain` by a method whose name may end in "/stable"."""
    plain, rules = method_of(name).name, "stable" if name.endswith(STABLE) else "published"
    options = FEW.get(plain)
    return vitx.explain(model, images, classes, plain, rules=rules, options=options, **given)


def many(names, model, images, classes, **given):
    plain = {method_of(name).name for name in names}
    options = {name: few for name, few in FEW.items() if name in plain}
    return vitx.explain_many(model, images, classes, names, options=options, **given)


def assert_same(found, expected):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())


@slow
@pytest.mark.parametrize("memory", ["fast", pytest.param("lean", marks=pytest.mark.exhaustive)])
def test_all_methods_at_once_are_those_one_by_one(memory):
    model = the_model()
    names = [name for name in NAMES if method_of(name).name in methods_of(model)]
    assert len(names) > 20
    images = images_for(model, 2)
    output, maps = many(names, model, images, CLASSES, memory=memory)
    assert list(maps) == names
    for name in names:
        expected = one(name, model, images, CLASSES, memory=memory)
        assert_same(output, expected[0])
        assert_same(maps[name], expected[1])


@slow
@settings(max_examples=5)
@given(
    st.lists(st.sampled_from(["lrp/stable", "attcat", *TABLE_METHODS]), min_size=1, unique=True),
    st.sampled_from([None, "first", "both"]),
)
def test_any_methods_in_any_order(names, kind):
    model = small_vit(depth=1)
    images = images_for(model, 2)
    classes = {None: None, "first": CLASSES[:, 0], "both": CLASSES}[kind]
    _, maps = many(names, model, images, classes)
    assert list(maps) == names
    for name in names:
        assert_same(maps[name], one(name, model, images, classes)[1])


@slow
def test_start_layers_targets_and_rules_are_passed_on():
    model = small_vit()
    images = images_for(model, 2)
    given = {"target": ("difference", 2, 0), "high_norm": "median"}
    names = ("rollout", "transformer_attribution")
    _, maps = vitx.explain_many(
        model, images, methods=names, start_layers={"rollout": 1}, rules="stable", **given
    )
    for name, layer in (("rollout", 1), ("transformer_attribution", 0)):
        expected = vitx.explain(
            model, images, method=name, start_layer=layer, rules="stable", **given
        )
        assert_same(maps[name], expected[1])
    target = given["target"]
    _, maps = vitx.explain_many(model, images, methods=("lrp/stable", "lrp"), target=target)
    for name, rules in (("lrp/stable", "stable"), ("lrp", "published")):
        expected = vitx.explain(model, images, method="lrp", rules=rules, target=target)
        assert_same(maps[name], expected[1])
    assert np.abs(maps["lrp/stable"] - maps["lrp"]).max() > 1e-6


@slow
def test_forwards_of_all_rule_sets_are_one():
    model = nnx.eval_shape(partial(small_vit, depth=4, width=48, hidden=192))
    images = jax.ShapeDtypeStruct((2, 8, 12, 3), model.dtype)

    def products(*names):
        run = jax.jit(partial(vitx.explain_many, methods=names))
        return product_flops(run.lower(model, images).compile().as_text())

    forward = products("centre")
    assert products("rollout", "raw_attention", "gradcam") <= 1.1 * forward
    for first, second in (
        ("lrp", "transformer_attribution"),
        ("attn_lrp", "transformer_attribution/stable"),
        ("cp_lrp", "generic_attention"),
    ):
        apart = products(first) + products(second)
        assert products(first, second) <= apart - 0.95 * forward, (first, second)


def test_lean_methods_have_programs_of_their_own(monkeypatch):
    groups = []

    def explained(model, images, target, group, *options):
        groups.append([each.method for each in group])
        return jnp.zeros((2, 3)), [jnp.zeros((2, 2, 3))] * len(group)

    monkeypatch.setattr(module, "_explain_many", explained)
    model = small_vit()
    images = images_for(model, 2)
    for memory in ("lean", "fast", "auto"):
        vitx.explain_many(model, images, methods=("rollout", "lrp"), memory=memory)
    assert groups == [["rollout"], ["lrp"], ["rollout", "lrp"], ["rollout", "lrp"]]
    # Several methods keep more than one does.
    kept = 3 * module._kept_bytes(model)
    monkeypatch.setattr(module, "_LEAN_BYTES", kept // 2)
    groups.clear()
    vitx.explain_many(model, images, methods=("rollout", "lrp"))
    vitx.explain_many(model, images, methods=("lrp",))
    assert groups == [["rollout"], ["lrp"], ["lrp"]]
    assert module._fitting_memory(model, 2) == "fast"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"methods": ()}, r"methods must be names of methods, each once, not \(\)"),
        ({"methods": "lrp"}, "methods must be names of methods, each once, not 'lrp'"),
        ({"methods": ("lrp", "lrp")}, "each once"),
        ({"methods": ("lpr",)}, "method must be one of rollout, .*, not 'lpr'"),
        ({"methods": ("rollout/stable",)}, "not 'rollout/stable'"),
        ({"methods": ("cam",)}, "method cam needs a model with a linear head"),
        ({"start_layers": {"legrad": 1}}, "has 'legrad', which is not in methods"),
        ({"options": {"rise": {}}}, "has 'rise', which is not in methods"),
        ({"start_layers": {"rollout": 9}}, r"start_layer must be an int in \[0, 2\), not 9"),
        ({"methods": ("centre",), "options": {"centre": {"width": 0}}}, "centre's option width"),
        ({"rules": "new"}, "rules must be one of"),
        ({"memory": "much"}, "memory must be one of"),
        ({"classes": 7}, "classes"),
        ({"methods": ("libragrad",), "target": ("difference", 0, 1)}, "probability of a class"),
    ],
)
def test_wrong_arguments_are_named(given, message):
    model = small_vit()
    with pytest.raises(ValueError, match=message):
        vitx.explain_many(model, images_for(model, 2), **given)
