"""Levels of a backbone against the model's own forward, and AffinityNet on several of them against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from tests.models.test_models import elu, group_norm_by_hand
from tests.resizing import bilinear
from tests.small_models import filled, images_for, small_hybrid, small_vit
from vitx.models.affinitynet import MultiLevelAffinityNet
from vitx.models.design import Design, Preprocess
from vitx.models.levels import features_at, level_channels, part_below
from vitx.models.resnet import ConvStem, ResNetV2
from vitx.models.vit import VisionTransformer
from vitx.ops import PLAIN, Ops

pytestmark = pytest.mark.usefixtures("float64")


def resnet_hybrid() -> VisionTransformer:
    return filled(
        lambda: VisionTransformer(
            width=12,
            depth=1,
            heads=2,
            hidden=16,
            patch=1,
            num_classes=3,
            preprocess=Preprocess(size=(32, 48)),
            stem=ResNetV2((1, 2, 1), rngs=nnx.Rngs(0)),
            rngs=nnx.Rngs(0),
        )
    )


class OwnStem(nnx.Module):
    """A stem without stages."""

    stride, channels = 4, 3

    def __call__(self, images: jax.Array, ops: Ops = PLAIN) -> jax.Array:
        return images[:, ::4, 1::4]


def own_hybrid() -> VisionTransformer:
    return small_vit(stem=OwnStem(), patch=1)


def registers() -> VisionTransformer:
    """A plain ViT with two prefix tokens."""

    sizes = {"width": 12, "depth": 2, "heads": 2, "hidden": 20, "patch": 4, "num_classes": 3}
    preprocess = Preprocess(size=(8, 12))
    design = Design(registers=1)
    return filled(
        lambda: VisionTransformer(**sizes, preprocess=preprocess, design=design, rngs=nnx.Rngs(0))
    )


MODELS = {
    "hybrid": small_hybrid,
    "resnet": resnet_hybrid,
    "vit": lambda: small_vit(depth=3),
    "registers": registers,
    "own stem": own_hybrid,
}
CHANNELS = {
    "hybrid": {"stem.1": 16, "stem.2": 32, "block.1": 32, "block.2": 32},
    "resnet": {"stem.1": 256, "stem.2": 512, "stem.3": 1024, "block.1": 12},
    "vit": {"block.1": 12, "block.2": 12, "block.3": 12},
    "registers": {"block.1": 12, "block.2": 12},
    "own stem": {"block.1": 12, "block.2": 12},
}
SIDES = {
    "hybrid": [(8, 12), (4, 6), (4, 6), (4, 6)],
    "resnet": [(8, 12), (4, 6), (2, 3), (2, 3)],
    "vit": [(2, 3)] * 3,
    "registers": [(2, 3)] * 2,
    "own stem": [(2, 3)] * 2,
}


def own_maps(model: VisionTransformer, images: jax.Array) -> dict[str, np.ndarray]:
    """Every level, from the model's parts: the stem's layers, and an encoder that ends with the block."""
    maps, x = {}, images
    if isinstance(model.stem, ResNetV2):
        x = PLAIN.max_pool(PLAIN.relu(model.stem.norm(model.stem.conv(x))))
        for number, stage in enumerate(model.stem.stages, 1):
            for block in stage:
                x = block(x)
            maps[f"stem.{number}"] = x
    elif isinstance(model.stem, ConvStem):
        for number, conv in enumerate(model.stem.convs, 1):
            x = PLAIN.relu(model.stem.norms[number - 1](conv(x)))
            maps[f"stem.{number}"] = x
    if maps:
        np.testing.assert_array_equal(x, model.features(images))
    for number in range(1, len(model.blocks) + 1):
        short = nnx.clone(model)
        short.blocks = nnx.List(list(model.blocks)[:number])
        short.queries = None
        tokens, _ = short.encode(short.embed(short.features(images)))
        cells = np.asarray(tokens)[:, model.prefix_tokens :]
        maps[f"block.{number}"] = cells.reshape(len(images), *model.grid, model.width)
    return {name: np.asarray(value) for name, value in maps.items()}


@pytest.fixture(scope="module", params=MODELS)
def known(request, float64):
    model = MODELS[request.param]()
    images = images_for(model, 2)
    return request.param, model, images, own_maps(model, images)


def test_every_model_has_its_levels(known):
    name, model, _, maps = known
    assert level_channels(model) == CHANNELS[name]
    assert list(maps) == list(CHANNELS[name])
    assert [maps[level].shape[1:3] for level in maps] == SIDES[name]


def test_any_levels_are_those_of_the_forward(known):
    """In any order, from the model or from the part of it that they need."""
    name, model, images, maps = known

    @given(st.lists(st.sampled_from(list(maps)), min_size=1, unique=True))
    def check(levels):
        part = part_below(model, levels)
        for backbone in (model, part):
            found = features_at(backbone, images, levels)
            assert len(found) == len(levels)
            for level, value in zip(levels, found, strict=True):
                assert value.dtype == jnp.float64
                np.testing.assert_allclose(value, maps[level], rtol=1e-11, atol=1e-12)
        order = list(maps)
        assert list(level_channels(part)) == order[: 1 + max(map(order.index, levels))]
        paths = {path for path, _ in nnx.to_flat_state(nnx.state(part))}
        assert not {"head", "norm"} & {path[0] for path in paths}
        if all(level.startswith("stem") for level in levels):
            assert {path[0] for path in paths} == {"stem"}

    before = jax.tree.map(np.asarray, nnx.state(model))
    check()
    assert level_channels(model) == CHANNELS[name]  # the model itself is whole
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), before)


@pytest.mark.parametrize(
    "levels, message",
    [
        (("stem.1", "block.3"), r"no level 'block.3'; it has stem.1, stem.2, block.1, block.2$"),
        (("stem.0",), r"no level 'stem.0'"),
        (("image",), r"no level 'image'"),
        ((), r"at least one level; the model has stem.1"),
    ],
)
def test_unknown_levels_are_named(levels, message):
    model = small_hybrid()
    for function in (
        lambda: features_at(model, images_for(model, 1), levels),
        lambda: part_below(model, levels),
        lambda: MultiLevelAffinityNet(model, levels, (4, 6), rngs=nnx.Rngs(0)),
    ):
        with pytest.raises(ValueError, match=message):
            function()


@pytest.mark.parametrize(
    "name, levels",
    [("hybrid", ("stem.1", "stem.2", "block.1")), ("hybrid", ("stem.1",)), ("vit", ("block.3",))],
)
@pytest.mark.parametrize("grid", [(4, 6), (3, 5)])
def test_multi_level_affinity_net_by_hand(name, levels, grid):
    model = MODELS[name]()
    sizes = {"hidden": 8, "features": 12, "groups": 4}
    net = filled(lambda: MultiLevelAffinityNet(model, levels, grid, **sizes, rngs=nnx.Rngs(1)))
    images = images_for(model, 2)
    maps = features_at(net.backbone, images, levels)
    joined = []
    for branch, x in zip(net.branches, maps, strict=True):
        x = elu(group_norm_by_hand(branch.gn, np.asarray(x) @ np.asarray(branch.feat_conv)))
        resized = [[bilinear(channel, grid) for channel in np.moveaxis(b, -1, 0)] for b in x]
        joined.append(np.moveaxis(np.asarray(resized), 1, -1))
    expected = elu(np.concatenate(joined, -1) @ np.asarray(net.affinity_conv))
    found = jax.jit(lambda net, x: net(x))(net, images)
    assert found.shape == (2, *grid, 12) and net.preprocess == model.preprocess
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_first_weights_have_the_published_spread():
    net = MultiLevelAffinityNet(
        small_hybrid(), ("stem.2", "block.1"), (4, 6), hidden=256, features=256, rngs=nnx.Rngs(0)
    )
    for branch in net.branches:
        assert branch.feat_conv.shape == (32, 256)
        np.testing.assert_allclose(np.std(branch.feat_conv), np.sqrt(2 / 32), rtol=0.05)
    bound = 4 * np.sqrt(6 / (512 + 256))
    values = np.asarray(net.affinity_conv)
    assert values.shape == (512, 256)
    assert 0.99 * bound < np.abs(values).max() <= bound
    np.testing.assert_allclose(np.std(values), bound / np.sqrt(3), rtol=0.02)
