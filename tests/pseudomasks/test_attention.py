"""Affinities from attention, each equation again in NumPy and float64, over random shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given
from hypothesis import strategies as st

from tests.small_models import images_for, small_vit
from vitx.pseudomasks.attention import (
    box_mask,
    patch_affinity,
    patch_attention,
    sinkhorn,
    spread,
    unit_diagonal,
)

pytestmark = pytest.mark.usefixtures("float64")

SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def model():
    """Ten blocks, more than CLIP-ES reads."""
    vit = small_vit(depth=10)
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), vit)


@pytest.fixture(scope="module")
def attentions(model):
    images = images_for(model, 3)
    return images, [np.asarray(a) for a in jax.jit(patch_attention)(model, images)]


def _softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def test_attention_of_patches_by_hand(model, attentions):
    """Of every block's queries, the last block's too, which a prediction computes for the class token alone."""
    images, found = attentions
    tokens = model.embed(model.features(images))
    for block, attention in zip(model.blocks, found, strict=True):
        x = np.asarray(tokens)
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        x = x * np.asarray(block.norm1.scale) + np.asarray(block.norm1.bias)
        qkv = x @ np.asarray(block.attn.qkv.kernel) + np.asarray(block.attn.qkv.bias)
        query, key, _ = qkv.reshape(3, 7, 3, 2, 6).transpose(2, 0, 3, 1, 4)
        heads = _softmax(query @ key.swapaxes(-1, -2) / np.sqrt(6))  # (B, heads, N, N)
        np.testing.assert_allclose(attention, heads.mean(1)[:, 1:, 1:], atol=1e-10)
        tokens, _ = block(tokens)


def test_a_model_of_few_blocks_gives_all_of_them():
    model = small_vit()
    assert [a.shape for a in patch_attention(model, images_for(model, 1))] == [(1, 6, 6)] * 2
    assert patch_affinity(model, images_for(model, 1)).shape == (1, 6, 6)
    assert model.queries == 1


def test_affinity_of_mctformer(model, attentions):
    images, found = attentions
    expected = np.sum(found, axis=0)
    np.testing.assert_allclose(patch_affinity(model, images, "mctformer"), expected, atol=1e-10)


def test_affinity_of_clip_es(model, attentions):
    images, found = attentions
    for image, affinity in enumerate(np.asarray(patch_affinity(model, images, "clip_es"))):
        expected = np.mean([a[image] for a in found[2:]], axis=0)
        for _ in range(3):
            expected = expected @ np.diag(1 / expected.sum(0))
            expected = np.diag(1 / expected.sum(1)) @ expected
        expected = (expected + expected.T) / 2
        np.testing.assert_allclose(affinity, expected @ expected, atol=1e-10)
        np.testing.assert_allclose(affinity, affinity.T, atol=1e-15)
        assert affinity.min() > 0 and affinity.max() < 1
        np.testing.assert_allclose(affinity.sum(1), 1, atol=0.05)


def test_an_unknown_kind_is_named(model):
    with pytest.raises(ValueError, match="kind must be one of mctformer, clip_es, not 'afa'"):
        patch_affinity(model, images_for(model, 1), "afa")


@given(st.integers(1, 3), st.integers(1, 7), SEEDS)
def test_sinkhorn_balances_rows_and_columns(batch, side, seed):
    attention = _softmax(np.random.default_rng(seed).normal(size=(batch, side, side)))
    found = np.asarray(sinkhorn(jnp.asarray(attention)))
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-12)
    np.testing.assert_allclose(found.sum(-2), 1, atol=0.3)
    longer = np.asarray(sinkhorn(jnp.asarray(attention), iterations=200))
    np.testing.assert_allclose(longer.sum(-2), 1, atol=1e-3)
    # It changes the scale of rows and columns, and so no ratio of four entries at crossings.
    for matrix, other in zip(attention, longer, strict=True):
        ratios = [
            np.log(m) - np.log(m[:1]) - np.log(m[:, :1]) + np.log(m[0, 0]) for m in (matrix, other)
        ]
        np.testing.assert_allclose(*ratios, atol=1e-9)


def test_sinkhorn_leaves_empty_columns():
    found = sinkhorn(jnp.asarray([[0.0, 2.0], [0.0, 1.0]]))
    np.testing.assert_array_equal(found, [[0, 1], [0, 1]])


@given(st.integers(1, 3), st.integers(1, 6), SEEDS)
def test_a_walks_affinity_is_a_cosine(batch, side, seed):
    root = np.random.default_rng(seed).uniform(0.01, 1, size=(batch, side, side))
    root = root + root.swapaxes(-1, -2)
    found = np.asarray(unit_diagonal(jnp.asarray(root @ root)))
    for matrix, affinity in zip(root, found, strict=True):
        for i in range(side):
            for j in range(side):
                norms = np.linalg.norm(matrix[i]) * np.linalg.norm(matrix[j])
                np.testing.assert_allclose(
                    affinity[i, j], matrix[i] @ matrix[j] / norms, atol=1e-12
                )
    np.testing.assert_array_equal(found, found.swapaxes(-1, -2))
    np.testing.assert_array_equal(np.diagonal(found, axis1=-2, axis2=-1), 1)
    assert found.min() >= 0 and found.max() == 1


def test_a_walks_affinity_of_any_matrix_is_in_range():
    found = unit_diagonal(jnp.asarray([[0.0, 2.0, 0.0], [0.0, 1.0, 5.0], [0.0, 1.0, 1.0]]))
    np.testing.assert_array_equal(found, [[1, 0, 0], [0, 1, 1], [0, 1, 1]])


@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), SEEDS)
def test_spread_is_a_weighted_sum(batch, count, height, width, seed):
    generator = np.random.default_rng(seed)
    affinity = generator.uniform(size=(batch, height * width, height * width))
    maps = generator.uniform(size=(batch, count, height, width))
    found = np.asarray(spread(jnp.asarray(affinity), jnp.asarray(maps)))
    assert found.shape == maps.shape
    for b in range(batch):
        for k in range(count):
            np.testing.assert_allclose(found[b, k].ravel(), affinity[b] @ maps[b, k].ravel())


@given(st.sampled_from([(1, 1), (1, 9), (7, 2), (12, 12)]), st.floats(0.1, 0.95), SEEDS)
def test_boxes_of_regions_equal_scipys(size, threshold, seed):
    """Some rows are thinned, so that regions are many, or long and winding."""
    generator = np.random.default_rng(seed)
    maps = generator.uniform(size=(2, 2, *size))
    maps[..., ::2, :] *= generator.random() < 0.5
    found = np.asarray(box_mask(jnp.asarray(maps), threshold))
    for index in np.ndindex(2, 2):
        above = maps[index] > threshold * maps[index].max()
        labels, _ = scipy.ndimage.label(above, structure=np.ones((3, 3)))
        expected = np.zeros(size, bool)
        for box in scipy.ndimage.find_objects(labels):
            expected[box] = True
        np.testing.assert_array_equal(found[index], expected)


def test_boxes_of_a_spiral_and_of_nothing():
    spiral = np.ones((9, 9))
    for inset in (1, 3):
        spiral[inset, : 9 - inset] = spiral[inset : 9 - inset, 8 - inset] = 0
    assert np.asarray(box_mask(jnp.asarray(spiral))).all()
    assert not np.asarray(box_mask(jnp.zeros((2, 3, 3)))).any()
