"""A model family of two prefix tokens and mean pooling, added here alone: its own class and one row of `MODELS`."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vitx
from tests.small_models import filled, images_for
from vitx.models.families import MODELS, Sizes
from vitx.models.scan import scan_blocks
from vitx.models.vit import VisionTransformer
from vitx.ops import PLAIN
from vitx.relevance.rulesets import CHEFER, EXACT, LRP, UNIFORM

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("float64")]
GRID, TOKENS = (3, 3), 2 + 9


class MeanPooled(VisionTransformer):
    """A class token and a register before the patches, whose mean the head reads."""

    def __init__(self, *, width, rngs, **options):
        super().__init__(width=width, rngs=rngs, **options)
        self.prefix_tokens, self.queries = 2, None
        entries = self.pos_embed.shape[1] + 1
        self.pos_embed = nnx.Param(0.02 * jax.random.normal(rngs(), (1, entries, width)))
        self.register = nnx.Param(0.02 * jax.random.normal(rngs(), (1, 1, width)))

    def prefix(self):
        return jnp.concatenate([self.cls_token[...], self.register[...]], axis=1)

    def positions(self):
        return self.pos_embed[...]

    def pooling_weights(self, tokens):
        batch, count, _ = tokens.shape
        weights = jnp.zeros((batch, count), tokens.dtype)
        return weights.at[:, self.prefix_tokens :].set(1 / (count - self.prefix_tokens))

    def classify(self, tokens, ops=PLAIN):
        patches = self.norm(tokens, ops)[:, self.prefix_tokens :]  # (B, N, D)
        average = jnp.full((patches.shape[1], 1), 1 / patches.shape[1], self.register.dtype)
        pooled = ops.linear(patches.transpose(0, 2, 1), average)[:, :, 0]  # (B, D)
        return self.head(pooled, ops)


@pytest.fixture(scope="module")
def model() -> Iterator[MeanPooled]:
    sizes = Sizes(12, 2, 2, 20, patch=4, image_size=12, family=MeanPooled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "mean_pooled", sizes)
        yield filled(lambda: vitx.create("mean_pooled", num_classes=3))


def test_tokens(model):
    images = images_for(model, 2)
    tokens = model.embed(model.features(images))
    assert tokens.shape == (2, TOKENS, 12) and model.grid == GRID
    encoded, attentions = model.encode(tokens)
    assert [a.shape[1:] for a in attentions] == model.attention_shapes()
    assert encoded.shape == tokens.shape
    patches = np.asarray(model.norm(encoded))[:, 2:].mean(1)
    expected = patches @ np.asarray(model.head.kernel) + np.asarray(model.head.bias)
    np.testing.assert_allclose(model(images), expected, rtol=1e-12)


def test_a_saved_family_is_refused_by_name(model, tmp_path):
    vitx.save(model, tmp_path / "own.safetensors")
    with pytest.raises(
        ValueError, match=r'own\.safetensors: it holds a "MeanPooled".*load builds only'
    ):
        vitx.load(tmp_path / "own.safetensors")


def test_lean_blocks_take_probes_of_the_last_blocks_only(model):
    tokens = model.embed(model.features(images_for(model, 1)))
    probe = jnp.zeros((1, 2, TOKENS, TOKENS))
    scan_blocks(model.blocks, tokens, EXACT, [None, probe])
    with pytest.raises(ValueError, match="put entries of None first"):
        scan_blocks(model.blocks, tokens, EXACT, [probe, None])


def passes(model, images, ops, hot):
    """Attention and its cotangent (B, H, N, N) in every block."""
    tokens = model.embed(model.features(images))
    probes = [jnp.zeros((len(images), *shape)) for shape in model.attention_shapes()]

    def forward(probes):
        encoded, attentions = model.encode(tokens, ops, probes)
        return model.classify(encoded, ops), attentions

    _, pullback, attentions = jax.jit(lambda p: jax.vjp(forward, p, has_aux=True))(probes)
    return [np.asarray(a) for a in attentions], [np.asarray(c) for c in pullback(hot)[0]]


def row_of_product(matrices, normalised=False):
    """The patches' mean row of the product of (I + A), on the patches, by whole matrices; less I, unless normalised."""
    product = np.eye(TOKENS)
    for matrix in matrices:
        layer = np.eye(TOKENS) + matrix
        product = (layer / layer.sum(-1, keepdims=True) if normalised else layer) @ product
    product = product if normalised else product - np.eye(TOKENS)
    return product[:, 2:, 2:].mean(1)


def expected_maps(model, images, hot):
    attentions, gradients = passes(model, images, EXACT, hot)
    _, chefer = passes(model, images, CHEFER, hot)
    _, lrp = passes(model, images, LRP, hot)
    attention, gradient, relevance = (
        x[-1][:, :, 2:, 2:].mean(2) for x in (attentions, gradients, lrp)
    )
    pairs = zip(gradients, chefer, strict=True)
    return {
        "rollout": row_of_product([a.mean(1) for a in attentions], normalised=True),
        "raw_attention": attention.mean(1),
        "gradcam": np.maximum((attention * gradient.mean(-1, keepdims=True)).mean(1), 0),
        "partial_lrp": np.maximum(relevance, 0).mean(1),
        "transformer_attribution": row_of_product([np.maximum(g * r, 0).mean(1) for g, r in pairs]),
    }


def test_maps_follow_the_pooled_output(model):
    images, classes = images_for(model, 2), np.array([0, 2])
    for method, expected in expected_maps(model, images, jnp.eye(3)[classes]).items():
        logits, maps = vitx.explain(model, images, classes, method)
        np.testing.assert_allclose(logits, model(images), rtol=1e-12)
        tolerance = 1e-9 * np.abs(expected).max()
        np.testing.assert_allclose(maps.reshape(2, -1), expected, atol=tolerance, err_msg=method)


@pytest.mark.parametrize("method", ["lrp", "transformer_attribution"])
def test_lean_maps_are_the_fast_ones(model, method):
    images = images_for(model, 2)
    fast, lean = (vitx.explain(model, images, None, method, memory=m)[1] for m in ("fast", "lean"))
    assert fast.shape == (2, *((12, 12) if method == "lrp" else GRID))
    np.testing.assert_allclose(lean, fast, rtol=0, atol=1e-9 * np.abs(fast).max())


def test_no_operation_is_without_a_rule(model):
    images = images_for(model, 2)
    tokens = model.embed(model.features(images))

    def forward(tokens):
        return model.classify(model.encode(tokens, UNIFORM)[0], UNIFORM)

    logits, pullback = jax.vjp(forward, tokens)
    (relevance,) = pullback(jnp.zeros_like(logits).at[:, 1].set(1.0))
    np.testing.assert_allclose(relevance.sum((1, 2)), 1, rtol=0, atol=1e-12)
