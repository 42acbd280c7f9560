"""Models at another size or with other attributes: which weights they share, and what they compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vitx
from tests.small_models import images_for, small_hybrid, small_vit
from vitx.models.variants import at_size, cell, resample_positions, variant


@pytest.mark.slow
@pytest.mark.parametrize("make", [small_vit, small_hybrid])
@pytest.mark.parametrize("size", [(16, 12), (4, 28)])
def test_another_size_is_that_of_loading_at_it(make, size, tmp_path):
    model = make()
    vitx.save(model, tmp_path / "model.safetensors")
    loaded = vitx.load(tmp_path / "model.safetensors", image_size=size)
    found = at_size(model, size)
    assert found.preprocess == loaded.preprocess and found.grid == loaded.grid
    assert found.attention_shapes() == loaded.attention_shapes()
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(loaded), strict=True):
        np.testing.assert_array_equal(one, other)
    images = images_for(found, 2)
    np.testing.assert_array_equal(found(images), loaded(images))


def test_weights_are_shared_and_the_model_stays():
    model = small_vit()
    before = np.asarray(model.pos_embed[...])
    found = at_size(model, (16, 12))
    assert found.head.kernel[...] is model.head.kernel[...]
    assert found.cls_token[...] is model.cls_token[...]
    assert model.preprocess.size == (8, 12) and model.grid == (2, 3)
    np.testing.assert_array_equal(model.pos_embed[...], before)
    assert at_size(model, (8, 12)) is model
    assert (cell(model), cell(found), cell(small_hybrid())) == (4, 4, 4)


def test_other_attributes_leave_the_model_as_it_is():
    model = small_vit()
    whole = variant(model, queries=None)
    assert (model.queries, whole.queries) == (1, None)
    assert whole.attention_shapes()[-1] == (2, 7, 7) and model.attention_shapes()[-1] == (2, 1, 7)
    images = images_for(model, 2)
    np.testing.assert_allclose(whole(images), model(images), atol=1e-5)


def test_a_size_between_cells_is_refused():
    with pytest.raises(ValueError, match=r"size \(8, 14\) is not a multiple of the cell, 4 pixels"):
        at_size(small_vit(), (8, 14))
    with pytest.raises(ValueError, match="size must be a side"):
        at_size(small_vit(), (0, 12))


def _cubic(old, new):
    """Weights (new, old) of Keys' cubic with a = -0.5, widened where it shrinks, in loops."""
    weights, width = np.zeros((new, old)), max(old / new, 1)
    for i in range(new):
        for j in range(old):
            x = abs((i + 0.5) * old / new - 0.5 - j) / width
            near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
            weights[i, j] = near if x < 1 else far if x < 2 else 0
    return weights / weights.sum(1, keepdims=True)


_SIDES = st.tuples(st.integers(1, 5), st.integers(1, 5))


@given(_SIDES, _SIDES, st.integers(0, 2), st.integers(0, 2**32 - 1))
def test_positions_are_resampled_by_a_cubic(old, new, prefix, seed):
    table = np.random.default_rng(seed).normal(size=(1, prefix + old[0] * old[1], 2))
    with jax.enable_x64(True):
        found = np.asarray(resample_positions(jnp.asarray(table), prefix, old, new))
    np.testing.assert_array_equal(found[:, :prefix], table[:, :prefix])
    cells = table[0, prefix:].reshape(*old, 2)
    rows, columns = _cubic(old[0], new[0]), _cubic(old[1], new[1])
    expected = np.einsum("ih,jw,hwd->ijd", rows, columns, cells)
    np.testing.assert_allclose(found[0, prefix:], expected.reshape(-1, 2), atol=1e-6)
