"""Fine-tuning of a part: rates by layer, what a frozen part costs, and logits from some of the patches."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.test_vgg import small_resnet, small_vgg
from tests.programs import operations
from tests.small_models import filled, images_for, small_hybrid
from vitx.models.design import Design, Preprocess
from vitx.models.tuning import (
    first_trained,
    group_factor,
    kept_count,
    layer_of,
    logits_from_patches,
    rate_factor,
)
from vitx.models.vit import VisionTransformer
from vitx.pipeline.classifier import image_loss

pytestmark = pytest.mark.usefixtures("float64")

DESIGNS = {
    "plain": Design(),
    "registers": Design(registers=2, layer_scale=True, head="pooled+best", best_patches=2),
    "dinov3": Design(registers=1, positions="none", rotary="dinov3", qkv_bias="no key"),
    "eva": Design(rotary="eva", mlp="gated", activation="silu", final_norm=False, pooling="mean"),
    "attention": Design(class_token=False, pooling="attention"),
}
PATCHES = 6


def small(name: str, depth: int = 2) -> VisionTransformer:
    sizes = {"width": 16, "depth": depth, "heads": 2, "hidden": 20, "patch": 4, "num_classes": 3}
    preprocess = Preprocess(size=(8, 12))
    design = DESIGNS[name]
    return filled(
        lambda: VisionTransformer(**sizes, preprocess=preprocess, design=design, rngs=nnx.Rngs(0))
    )


@pytest.fixture(scope="module", params=DESIGNS)
def model(request, float64) -> VisionTransformer:
    return small(request.param)


def _paths(model: VisionTransformer) -> list[tuple]:
    return [path for path, _ in nnx.to_flat_state(nnx.state(model))]


def test_rates_of_a_hybrid_by_hand() -> None:
    found = {}
    for path in _paths(small_hybrid()):  # of two blocks
        name = f"blocks.{path[1]}" if path[0] == "blocks" else path[0]
        found.setdefault(name, set()).add(rate_factor(path, 2, 0, 0.5))
    assert found == {
        "stem": {0.125},
        "patch_embed": {0.125},
        "cls_token": {0.125},
        "pos_embed": {0.125},
        "blocks.0": {0.25},
        "blocks.1": {0.5},
        "norm": {1.0},
        "head": {1.0},
    }


def test_layers_of_every_design(model) -> None:
    """Each parameter is below the blocks, in one, or above; no rate but 1 without decay."""
    above = {"norm", "attn_pool", "fc_norm", "head", "head_patches"}
    below = {"patch_embed", "cls_token", "reg_token", "pos_embed"}
    for path in _paths(model):
        layer = layer_of(path, 2)
        assert layer == (3 if path[0] in above else 0 if path[0] in below else path[1] + 1)
        assert rate_factor(path, 2, 0, 1.0) == 1.0
        assert (rate_factor(path, 2, 2, 0.5) == 0) == (layer < 2)


def test_names_of_what_is_trained() -> None:
    wanted = {"all": 0, "block.1": 1, "block.12": 12, "head": 13}
    assert {name: first_trained(name, depth=12) for name in wanted} == wanted


def test_gradients_of_a_part_are_those_of_the_whole(model) -> None:
    generator = np.random.default_rng(0)
    kept = np.sort(generator.permuted(np.tile(np.arange(PATCHES), (4, 1)), axis=1)[:, :4])
    labels = generator.integers(0, 2, (4, 3)).astype(float)
    batch = {"image": images_for(model, 4), "labels": labels, "patches": jnp.asarray(kept)}
    whole = _gradient(model, "all", batch)
    assert whole.keys() == set(_paths(model))
    for trainable in ("block.2", "head"):
        found = _gradient(model, trainable, batch)
        assert ("head", "kernel") in found
        assert any(path[0] == "blocks" for path in found) == (trainable == "block.2")
        for path, array in found.items():
            scale = np.abs(whole[path]).max()
            np.testing.assert_allclose(array, whole[path], rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("name", DESIGNS)
def test_frozen_blocks_have_no_backward(name) -> None:
    model = small(name, depth=3)
    batch = {"image": images_for(model, 2), "labels": np.ones((2, 3))}
    forward = _products(jax.make_jaxpr(model)(batch["image"]).jaxpr)
    block = _products(jax.make_jaxpr(model.blocks[0])(model.embed(batch["image"])).jaxpr)
    products = {}
    for trainable in ("head", "block.3", "block.2", "block.1", "all"):
        run, params = _of_part(model, trainable, batch)
        products[trainable] = _products(jax.make_jaxpr(run)(params).jaxpr) - forward
    # Each product that is trained through costs two more: by its input, and by its weight or other factor.
    assert products["block.1"] - products["block.2"] == 2 * block
    assert products["block.2"] - products["block.3"] == 2 * block
    assert products["all"] - products["block.1"] > 0
    heads = 1 if model.head_patches is None else 2
    if name != "attention":  # whose pooling is trained with the head
        assert products["head"] == heads * (1 if model.norm is None else 2)


def _of_part(model, trainable, batch) -> tuple[Callable, nnx.State]:
    """The loss and its gradient as a function of what is trained, and that."""
    depth = len(model.blocks)
    first = first_trained(trainable, depth)
    graph, frozen, params = nnx.split(model, lambda path, _: layer_of(path, depth) < first, ...)

    @jax.value_and_grad
    def run(params):
        return image_loss(nnx.merge(graph, params, frozen), batch, None)

    return run, params


def _gradient(model, trainable, batch) -> dict:
    run, params = _of_part(model, trainable, batch)
    _, gradient = jax.jit(run)(params)
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(gradient)}


def _equations(jaxpr, name: str) -> list:
    """The equations of a primitive in a program and in those within it."""
    return [each for each in operations(jaxpr) if each.primitive.name == name]


def _products(jaxpr) -> int:
    return len(_equations(jaxpr, "dot_general"))


def test_all_patches_in_any_order_are_the_image(model) -> None:
    images = images_for(model, 2)
    expected = jax.jit(lambda model, images: model(images))(model, images)
    seen = jax.jit(logits_from_patches)

    @settings(max_examples=5)
    @given(st.permutations(range(PATCHES)), st.permutations(range(PATCHES)))
    def check(first, second):
        patches = jnp.asarray([first, second], jnp.int32)
        found = seen(model, images, patches)
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)

    check()


def test_some_patches_image_by_image(model) -> None:
    """The model's own layers on the tokens of one image that are kept, which are picked with NumPy."""
    images, prefix = images_for(model, 3), model.prefix_tokens
    patches = np.array([[0, 2, 3], [1, 2, 5], [3, 4, 5]], np.int32)
    found = logits_from_patches(model, images, jnp.asarray(patches))
    for row, kept in enumerate(patches):
        places = np.concatenate([np.arange(prefix), kept + prefix])
        x = model.embed(images[row : row + 1])[:, places]
        assert x.shape == (1, prefix + 3, 16)
        table = model.rotation()
        rotate = table and table._replace(cosine=table.cosine[places], sine=table.sine[places])
        for block in model.blocks:
            x, _ = block(x, rotate=rotate)
        np.testing.assert_allclose(found[row], model.classify(x)[0], rtol=1e-10, atol=1e-12)


def test_the_blocks_see_the_kept_tokens_alone(model) -> None:
    patches = jnp.zeros((2, 4), jnp.int32)
    program = jax.make_jaxpr(logits_from_patches, static_argnums=())(
        model, images_for(model, 2), patches
    )
    softmaxes = [e.outvars[0].aval.shape for e in _equations(program.jaxpr, "exp")]
    in_blocks = [shape for shape in softmaxes if len(shape) == 4 and shape[2] > 1]
    assert in_blocks and {shape[-1] for shape in in_blocks} == {model.prefix_tokens + 4}


@given(patches=st.integers(1, 2000), dropout=st.floats(0, 1, exclude_max=True))
def test_how_many_patches_are_kept(patches, dropout) -> None:
    kept = kept_count(patches, dropout)
    assert 1 <= kept <= patches and abs(kept - patches * (1 - dropout)) <= 1
    assert kept_count(patches, 0.0) == patches


def test_layers_of_cnns_are_their_levels() -> None:
    vgg, resnet = small_vgg(), small_resnet()
    names = tuple(vgg.level_channels)
    assert names == ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7")
    first = first_trained("conv3", len(names), names)
    found = {}
    for path in _paths(vgg):
        name = f"stages.{path[1]}" if path[0] == "stages" else path[0]
        found.setdefault(name, set()).add(rate_factor(path, len(names), first, 1.0, names))
    frozen = {name for name, factors in found.items() if factors == {0.0}}
    trained = {name for name, factors in found.items() if factors == {1.0}}
    assert frozen == {"stages.0", "stages.1"}
    assert trained == {"stages.2", "stages.3", "stages.4", "fc6", "fc7", "head"}
    names = tuple(resnet.level_channels)
    for path in _paths(resnet):
        layer = {"conv": 0, "norm": 0, "head": 5}.get(path[0])
        assert layer_of(path, 4, names) == (path[1] + 1 if layer is None else layer)
        assert first_trained("layer4", 4, names) == 4 and first_trained("head", 4, names) == 5


def test_rates_by_group_are_psas() -> None:
    """1 and 2 times the rate for weights and biases, 10 and 20 for new ones."""
    found = {
        (path[0], path[-1]): group_factor(path, ("head",), 10.0, 2.0)
        for path in _paths(small_resnet())
    }
    assert found["head", "kernel"] == 10 and found["head", "bias"] == 20
    assert found["stages", "kernel"] == found["norm", "scale"] == 1
    assert found["stages", "bias"] == found["norm", "bias"] == 2
