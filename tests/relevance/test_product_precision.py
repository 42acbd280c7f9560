"""`precision` of `explain`: which products take it, on which device, and what is refused or warned of."""

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import vitx
from tests.programs import operations
from tests.small_models import filled
from vitx.relevance.precision import of_product, products

_THREE = lax.DotAlgorithmPreset.BF16_BF16_F32_X3


@pytest.fixture(scope="module")
def model() -> Any:
    return filled(lambda: vitx.create("vit_test_conv_s4_48", num_classes=5))


@pytest.fixture
def images() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal((1, 48, 48, 3)), jnp.float32)


def _precisions(model: Any, images: jax.Array, **options: Any) -> Counter[Any]:
    """How many matrix products have which precision, those that cost more than a row's."""
    traced = jax.make_jaxpr(lambda x: vitx.explain(model, x, jnp.array([1]), **options)[1])(images)
    found: Counter[Any] = Counter()
    for equation in operations(traced.jaxpr):
        if (
            equation.primitive is lax.dot_general_p
            and min(variable.aval.size for variable in equation.invars) > 1000
        ):
            precision = equation.params["precision"]
            found[precision[0] if isinstance(precision, tuple) else precision] += 1
    return found


@pytest.mark.parametrize("method", ["transformer_attribution", "lrp", "attn_lrp_gamma", "rollout"])
def test_all_products_have_the_precision(
    method: str, model: Any, images: jax.Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"method": method, "rules": "stable"}
    full = _precisions(model, images, **options)
    assert set(full) == {lax.Precision.HIGHEST}
    assert _precisions(model, images, **options, precision="high") == full  # a CPU's is float32
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert set(_precisions(model, images, **options)) == {lax.Precision.HIGHEST}
    counted = full[lax.Precision.HIGHEST]
    assert _precisions(model, images, **options, precision="high") == {_THREE: counted}
    tf32 = {lax.DotAlgorithmPreset.TF32_TF32_F32: counted}
    assert _precisions(model, images, **options, precision="tf32") == tf32
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert _precisions(model, images, **options, precision="high") == {lax.Precision.HIGH: counted}


def test_other_types_and_other_code_stay_at_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    single = jnp.ones(1, jnp.float32)
    with products("high"):
        assert of_product(single) == _THREE
        assert of_product(single.astype(jnp.bfloat16)) == lax.Precision.HIGHEST
        with jax.enable_x64(True):
            assert of_product(jnp.ones(1, jnp.float64)) == lax.Precision.HIGHEST
    with jax.default_matmul_precision("bfloat16"):  # a user's default decides nothing
        assert of_product(single) == lax.Precision.HIGHEST


def test_what_is_refused_and_warned_of(
    model: Any, images: jax.Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="one of highest, high, tf32, not 'low'"):
        vitx.explain(model, images, precision="low")
    with pytest.warns(UserWarning, match="published rules of transformer_attribution .* digits"):
        vitx.explain(model, images, precision="high")
    vitx.explain(model, images, method="attn_lrp_gamma", precision="high")  # nothing cancels
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with pytest.raises(ValueError, match='no TF32: give precision="high"'):
        vitx.explain(model, images, rules="stable", precision="tf32")


def test_explain_many_passes_it_on(
    model: Any, images: jax.Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    traced = jax.make_jaxpr(
        lambda x: vitx.explain_many(model, x, methods=("rollout", "gradcam"), precision="high")[1]
    )(images)
    found = {
        str(each.params["precision"])
        for each in operations(traced.jaxpr)
        if each.primitive is lax.dot_general_p
    }
    assert any("BF16_BF16_F32_X3" in precision for precision in found)
