"""Models: parameter counts, transformer and stems against NumPy, sizes and errors."""

import inspect
import itertools
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vitx
from tests.models.test_ops import windows
from tests.small_models import filled, images_for, small_hybrid, small_vit
from vitx.models.affinitynet import AffinityNet
from vitx.models.design import VIT, Preprocess
from vitx.models.families import MODELS
from vitx.models.registry import STEMS
from vitx.models.resnet import Bottleneck, ConvStem, ResNetV2, StdConv

pytestmark = pytest.mark.usefixtures("float64")


def count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def transformer_parameters(sizes, inputs, tokens, classes):
    """By arithmetic: layers (in + 1) * out, norms 2 * width."""
    w, h = sizes.width, sizes.hidden
    block = 2 * 2 * w + (w + 1) * 3 * w + (w + 1) * w + (w + 1) * h + (h + 1) * w
    ends = (inputs + 1) * w + w + tokens * w + 2 * w + (w + 1) * classes
    return sizes.depth * block + ends


def stem_parameters(stem):
    if stem is None:
        return 0
    if isinstance(stem, ResNetV2):  # timm's hybrid less a ViT-Base over 1024 channels
        return 11_894_848
    channels = [3, *(conv.kernel.shape[-1] for conv in stem.convs)]
    pairs = itertools.pairwise(channels)
    return sum(9 * inputs * outputs + 2 * outputs for inputs, outputs in pairs)


# Published: timm 1.0.31's counts of the models of these names (MAE's: those of the ViT's); of CLIP's vision towers,
# with the projection and without the bias that timm adds, transformers'.
KNOWN = {
    "vit_tiny_patch16_224": 5_717_416,
    "vit_tiny_patch16_384": 5_790_376,
    "vit_small_patch16_224": 22_050_664,
    "vit_small_patch16_384": 22_196_584,
    "vit_base_patch16_224": 86_567_656,
    "vit_base_patch16_384": 86_859_496,
    "vit_base_patch8_224": 86_576_872,
    "vit_large_patch16_224": 304_326_632,
    "vit_large_patch16_384": 304_715_752,
    "vit_base_patch16_gap_224": 86_566_120,
    "vit_medium_patch16_reg4_gap_256": 38_881_768,
    "vit_base_patch16_reg4_gap_256": 86_615_272,
    "vit_base_patch16_mae_224": 86_567_656,
    "vit_large_patch16_mae_224": 304_326_632,
    "deit_tiny_patch16_224": 5_717_416,
    "deit_tiny_distilled_patch16_224": 5_910_800,
    "deit_small_patch16_224": 22_050_664,
    "deit_small_distilled_patch16_224": 22_436_432,
    "deit_base_patch16_224": 86_567_656,
    "deit_base_distilled_patch16_224": 87_338_192,
    "deit_base_patch16_384": 86_859_496,
    "deit_base_distilled_patch16_384": 87_630_032,
    "deit3_medium_patch16_224": 38_849_512,
    "deit3_small_patch16_224": 22_059_496,
    "deit3_small_patch16_384": 22_205_416,
    "deit3_base_patch16_224": 86_585_320,
    "deit3_base_patch16_384": 86_877_160,
    "deit3_large_patch16_224": 304_374_760,
    "deit3_large_patch16_384": 304_763_880,
    "vit_base_r50_s16_224": 98_659_112,
    "vit_base_r50_s16_384": 98_950_952,
    "vit_small_patch14_dinov2": 22_056_192,
    "vit_small_patch14_reg4_dinov2": 22_057_344,
    "vit_base_patch14_dinov2": 86_579_712,
    "vit_base_patch14_reg4_dinov2": 86_582_016,
    "vit_large_patch14_dinov2": 304_367_616,
    "vit_large_patch14_reg4_dinov2": 304_370_688,
    "vit_giant_patch14_dinov2": 1_136_479_232,
    "vit_giant_patch14_reg4_dinov2": 1_136_483_840,
    "vit_small_patch16_dinov3": 21_586_944,
    "vit_small_patch16_dinov3_qkvb": 21_596_160,
    "vit_small_plus_patch16_dinov3": 28_683_264,
    "vit_small_plus_patch16_dinov3_qkvb": 28_692_480,
    "vit_base_patch16_dinov3": 85_641_216,
    "vit_base_patch16_dinov3_qkvb": 85_659_648,
    "vit_large_patch16_dinov3": 303_079_424,
    "vit_large_patch16_dinov3_qkvb": 303_128_576,
    "vit_base_patch32_clip_224": 87_849_216,
    "vit_base_patch32_clip_quickgelu_224": 87_849_216,
    "vit_base_patch16_clip_224": 86_192_640,
    "vit_base_patch16_clip_quickgelu_224": 86_192_640,
    "vit_large_patch14_clip_224": 303_966_208,
    "vit_large_patch14_clip_quickgelu_224": 303_966_208,
    "vit_base_patch16_siglip_224": 92_884_224,
    "vit_base_patch16_siglip_256": 92_930_304,
    "vit_base_patch16_siglip_384": 93_176_064,
    "vit_base_patch16_siglip_512": 93_520_128,
    "eva02_tiny_patch14_224": 5_502_144,
    "eva02_tiny_patch14_336": 5_756_584,
    "eva02_small_patch14_224": 21_621_120,
    "eva02_small_patch14_336": 22_129_000,
    "eva02_base_patch14_224": 85_758_720,
    "eva02_base_patch14_448": 87_117_544,
    "eva02_large_patch14_224": 303_268_800,
    "eva02_large_patch14_448": 305_080_232,
    # 217,984 of vit_mini_conv_full_s4_48, less a class token and its position.
    "vit_mini_conv_full_gap_s4_48": 217_984 - 2 * 64,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_parameter_counts(name):
    sizes = MODELS[name]
    model = nnx.eval_shape(lambda: vitx.create(name))
    stride, channels = (1, 3) if model.stem is None else (model.stem.stride, model.stem.channels)
    side = sizes.image_size // (sizes.patch * stride)
    if sizes.design == VIT:
        expected = stem_parameters(model.stem) + transformer_parameters(
            sizes, channels * sizes.patch**2, 1 + side**2, 1000
        )
        assert count(model) == expected
        assert count(model) == KNOWN.get(name, expected)
    else:
        assert count(model) == KNOWN[name]
    assert model.grid == (side, side) and model.num_classes == sizes.num_classes
    assert model.preprocess.size == (sizes.image_size, sizes.image_size)
    assert (model.preprocess.mean, model.preprocess.std) == sizes.statistics


def test_every_known_model_is_there():
    assert set(KNOWN) <= set(MODELS)
    assert {sizes.stem for sizes in MODELS.values()} == {None, *STEMS}


def test_names_mean_their_sizes():
    for name, sizes in MODELS.items():
        assert re.search(rf"_{sizes.image_size}$|_dinov[23](_qkvb)?$", name)
        assert f"patch{sizes.patch}" in name or (sizes.patch == 1 and sizes.stem)


# The transformer.


def norm_by_hand(norm, x):
    centred = x - x.mean(-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + norm.epsilon)
    return normal * np.asarray(norm.scale) + np.asarray(norm.bias)


def linear_by_hand(layer, x):
    return x @ np.asarray(layer.kernel) + np.asarray(layer.bias)


def gelu_by_hand(x):
    return np.asarray(jax.scipy.stats.norm.cdf(x)) * x


def vit_by_hand(model, images):
    """One image at a time, one head at a time, every token's query."""
    images, p = np.asarray(images), model.patch
    out = []
    for image in images:
        patches = [
            image[i * p : (i + 1) * p, j * p : (j + 1) * p].ravel()
            for i in range(model.grid[0])
            for j in range(model.grid[1])
        ]
        embedded = linear_by_hand(model.patch_embed, np.array(patches))
        x = (
            np.concatenate([np.asarray(model.cls_token)[0], embedded])
            + np.asarray(model.pos_embed)[0]
        )
        for block in model.blocks:
            qkv = linear_by_hand(block.attn.qkv, norm_by_hand(block.norm1, x))
            query, key, value = np.split(qkv, 3, axis=-1)
            size, mixed = x.shape[1] // block.attn.heads, np.empty_like(x)
            for head in range(block.attn.heads):
                part = slice(head * size, (head + 1) * size)
                weights = np.exp(query[:, part] @ key[:, part].T / np.sqrt(size))
                mixed[:, part] = weights / weights.sum(-1, keepdims=True) @ value[:, part]
            x = x + linear_by_hand(block.attn.proj, mixed)
            hidden = linear_by_hand(block.mlp.fc1, norm_by_hand(block.norm2, x))
            x = x + linear_by_hand(block.mlp.fc2, gelu_by_hand(hidden))
        out.append(linear_by_hand(model.head, norm_by_hand(model.norm, x))[0])
    return np.array(out)


@pytest.mark.slow
def test_the_vision_transformer_by_hand():
    model = small_vit(norm_eps=0.01, final_norm_eps=0.1)
    images = images_for(model, 2)
    np.testing.assert_allclose(
        jax.jit(lambda m, x: m(x))(model, images), vit_by_hand(model, images)
    )


@pytest.mark.slow
def test_the_last_block_computes_the_class_token_alone():
    model = small_vit()
    images = images_for(model, 2)

    @jax.jit
    def trimmed_and_whole(model, images):
        whole = tokens = model.embed(images)
        for block in model.blocks:
            whole, attention = block(whole)
        return model.encode(tokens), (whole, attention), model(images)

    (encoded, attentions), (whole, attention), logits = trimmed_and_whole(model, images)
    assert encoded.shape == (2, 1, 12)
    assert [a.shape for a in attentions] == [(2, 2, 7, 7), (2, 2, 1, 7)]
    np.testing.assert_allclose(encoded, whole[:, :1], rtol=1e-12)
    np.testing.assert_allclose(attentions[-1], attention[:, :, :1], rtol=1e-12)
    np.testing.assert_allclose(model.classify(encoded), model.classify(whole), rtol=1e-12)
    np.testing.assert_allclose(logits, model.classify(whole), rtol=1e-12)


def test_probes_reach_their_blocks():
    model = small_vit()
    images = images_for(model, 2)
    first, last = jnp.zeros((2, 2, 7, 7)), jnp.zeros((2, 2, 1, 7))
    run = jax.jit(lambda first, last: model(images, probes=[first, last]))
    plain = run(first, last)
    assert not np.allclose(run(first + 1, last), plain)
    assert not np.allclose(run(first, last + 1), plain)


@pytest.mark.parametrize("size", [(8, 12), (12, 4), (4, 4)])
def test_sizes_need_not_be_square(size):
    model = small_vit(size=size)
    assert model.grid == (size[0] // 4, size[1] // 4)
    assert jax.eval_shape(lambda m, x: m(x), model, images_for(model, 2)).shape == (2, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, size, grid",
    [
        ("vit_tiny_patch16_224", (32, 48), (2, 3)),
        ("vit_tiny_patch16_224", np.int64(32), (2, 2)),
        ("vit_base_r50_s16_224", (32, 64), (2, 4)),
        ("vit_test_conv_s4_48", (16, 24), (4, 6)),
    ],
)
def test_create_takes_another_size_and_head(name, size, grid):
    model = nnx.eval_shape(lambda: vitx.create(name, num_classes=7, image_size=size))
    assert model.grid == grid and model.num_classes == 7
    height, width = model.preprocess.size
    assert model.preprocess.size == (size if isinstance(size, tuple) else (size, size))
    images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float64)
    assert jax.eval_shape(lambda m, x: m(x), model, images).shape == (2, 7)


@pytest.mark.slow
def test_seeds_make_weights():
    with jax.enable_x64(False):
        first, again, other = (
            jax.tree.leaves(StdConv(3, 3, 8, 1, 1e-8, rngs=nnx.Rngs(seed))) for seed in (0, 0, 1)
        )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert all(leaf.dtype == jnp.float32 for leaf in first)


@pytest.mark.parametrize(
    "message, call",
    {
        "unknown model 'vit_base_patch16'; nearest: vit_base_patch": {"name": "vit_base_patch16"},
        "unknown model '###'; nearest: none": {"name": "###"},
        "num_classes must be a positive whole number, not 0": {"num_classes": 0},
        "num_classes must be a positive whole number, not 3.0": {"num_classes": 3.0},
        "num_classes must be a positive whole number, not True": {"num_classes": True},
        "num_classes must be a positive whole number, not '3'": {"num_classes": "3"},
        r"image size \(30, 30\) is not a multiple of the patch, 16 pixels": {"image_size": 30},
        r"image size \(32, 40\) is not a multiple of the patch": {"image_size": (32, 40)},
        r"image_size must be a side or \(H, W\), .*, not \(32,\)": {"image_size": (32,)},
        r"image_size must be a side or \(H, W\), .*, not 32.0": {"image_size": 32.0},
        r"image_size must be a side or \(H, W\), .*, not \[32.0, 32.0\]": {
            "image_size": [32.0] * 2
        },
        r"image_size must be a side or \(H, W\), .*, not True": {"image_size": True},
        r"image_size must be a side or \(H, W\), .*, not '32'": {"image_size": "32"},
        r"image_size must be a side or \(H, W\), .*, not 0": {"image_size": 0},
        "final_norm_eps must be a positive number, not 0.0": {"final_norm_eps": 0.0},
        "final_norm_eps must be a positive number, not nan": {"final_norm_eps": float("nan")},
        "final_norm_eps must be a positive number, not '1e-5'": {"final_norm_eps": "1e-5"},
        r"image size \(62, 64\) is not a multiple of the patch, 4 pixels": {
            "name": "vit_test_conv_s4_48",
            "image_size": (62, 64),
        },
    }.items(),
)
def test_bad_sizes_and_names(message, call):
    with pytest.raises(ValueError, match=f"^{message}"):
        nnx.eval_shape(lambda: vitx.create(**{"name": "vit_tiny_patch16_224", **call}))


@pytest.mark.parametrize("size", [np.int64(16), np.array(16), jnp.array(16), 16])
@pytest.mark.parametrize("count", [np.int64(3), np.array(3), 3])
def test_create_takes_whole_numbers_of_any_library(size, count):
    for sides in (size, [size, size], np.array([16, 16]), jnp.array([16, 16])):
        model = nnx.eval_shape(lambda s=sides: vitx.create("vit_test_conv_s4_48", count, s))
        assert model.preprocess.size == (16, 16) and model.num_classes == 3
        assert {type(side) for side in model.preprocess.size} == {int}


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match=r"^width 12 is not a multiple of the number of heads, 5"):
        small_vit(heads=5)


# The stems.


def standardised(conv):
    kernel = np.asarray(conv.kernel)
    out = np.empty_like(kernel)
    for o in range(kernel.shape[-1]):
        part = kernel[..., o]
        out[..., o] = (part - part.mean()) / np.sqrt(part.var() + conv.epsilon)
    return out


def conv_by_hand(conv, x):
    kernel = standardised(conv)
    return np.einsum("bhwyxc,yxco->bhwo", windows(x, kernel.shape[0], conv.stride, 0.0), kernel)


def group_norm_by_hand(norm, x):
    out, size = np.empty_like(x), x.shape[-1] // norm.groups
    for b, g in np.ndindex(len(x), norm.groups):
        part = slice(g * size, (g + 1) * size)
        cells = x[b, :, :, part]
        out[b, :, :, part] = (cells - cells.mean()) / np.sqrt(cells.var() + norm.epsilon)
    return out * np.asarray(norm.scale) + np.asarray(norm.bias)


def normal(*shape):
    return np.random.default_rng(3).standard_normal(shape)


@pytest.mark.parametrize("side, stride, size", [(1, 1, 4), (1, 2, 5), (3, 2, 6), (7, 2, 9)])
@pytest.mark.parametrize("epsilon", [1e-8, 0.5])
def test_standardised_convolution(side, stride, size, epsilon):
    conv = filled(lambda: StdConv(side, 2, 3, stride, epsilon, rngs=nnx.Rngs(0)))
    x = normal(2, size, size + 1, 2)
    np.testing.assert_allclose(conv(jnp.asarray(x)), conv_by_hand(conv, x), atol=1e-12)


def bottleneck_by_hand(block, x):
    def relu(v):
        return np.maximum(v, 0)

    skip = x
    if block.shortcut is not None:
        skip = group_norm_by_hand(block.shortcut_norm, conv_by_hand(block.shortcut, x))
    x = relu(group_norm_by_hand(block.norm1, conv_by_hand(block.conv1, x)))
    x = relu(group_norm_by_hand(block.norm2, conv_by_hand(block.conv2, x)))
    return relu(group_norm_by_hand(block.norm3, conv_by_hand(block.conv3, x)) + skip)


@pytest.mark.parametrize("inputs, stride", [(64, 2), (128, 1), (64, 1)])
def test_bottleneck(inputs, stride):
    block = filled(lambda: Bottleneck(inputs, 128, stride, 1e-8, rngs=nnx.Rngs(0)))
    assert (block.shortcut is None) == (inputs == 128 and stride == 1)
    x = normal(2, 4, 6, inputs)
    found = jax.jit(lambda m, v: m(v))(block, jnp.asarray(x))
    np.testing.assert_allclose(found, bottleneck_by_hand(block, x), atol=1e-10)


@pytest.mark.slow
def test_resnet_stem_by_hand():
    stem = filled(lambda: ResNetV2((1, 1), rngs=nnx.Rngs(0)))
    images = normal(1, 16, 32, 3)
    x = np.maximum(group_norm_by_hand(stem.norm, conv_by_hand(stem.conv, images)), 0)
    x = windows(x, 3, 2, -np.inf).max((3, 4))
    assert x.shape == (1, 4, 8, 64)
    for stage in stem.stages:
        for block in stage:
            x = bottleneck_by_hand(block, x)
    found = jax.jit(lambda m, v: m(v))(stem, jnp.asarray(images))
    assert found.shape == (1, 2, 4, 512) and stem.channels == 512
    np.testing.assert_allclose(found, x, atol=1e-9)


def test_resnet50_stem_has_stride_16_and_1024_channels():
    stem = nnx.eval_shape(lambda: STEMS["resnet50"](nnx.Rngs(0)))
    assert [len(stage) for stage in stem.stages] == [3, 4, 9]
    images = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float64)
    assert jax.eval_shape(lambda m, x: m(x), stem, images).shape == (1, 4, 6, 1024)
    assert (stem.stride, stem.channels) == (16, 1024)
    assert inspect.signature(ResNetV2.__init__).parameters["epsilon"].default == 1e-8


@pytest.mark.slow
def test_light_stem_by_hand():
    stem = filled(lambda: ConvStem((8, 16, 24), stride=4, rngs=nnx.Rngs(0)))
    assert [conv.stride for conv in stem.convs] == [2, 2, 1]
    x = images = normal(2, 8, 12, 3)
    for conv, norm in zip(stem.convs, stem.norms, strict=True):
        x = np.maximum(group_norm_by_hand(norm, conv_by_hand(conv, x)), 0)
    found = jax.jit(lambda m, v: m(v))(stem, jnp.asarray(images))
    assert found.shape == (2, 2, 3, 24) and (stem.stride, stem.channels) == (4, 24)
    np.testing.assert_allclose(found, x, atol=1e-11)


def test_a_hybrid_embeds_its_stem_s_cells():
    model = small_hybrid()
    images = images_for(model, 2)
    features = jax.jit(lambda m, x: m.features(x))(model, images)
    assert features.shape == (2, *model.grid, model.stem.channels)
    tokens = np.asarray(jax.jit(lambda m, f: m.embed(f))(model, features))
    features = np.asarray(features)
    embedded = linear_by_hand(model.patch_embed, features).reshape(2, -1, 32)
    np.testing.assert_allclose(tokens[:, 1:], embedded + np.asarray(model.pos_embed)[:, 1:])


# AffinityNet.


def elu(x):
    return np.where(x > 0, x, np.expm1(x))


def test_affinity_net_by_hand():
    net = filled(
        lambda: AffinityNet(
            ConvStem((8, 16), stride=4, rngs=nnx.Rngs(0)),
            (4, 6),
            preprocess=Preprocess(size=(8, 12)),
            hidden=8,
            features=12,
            groups=4,
            rngs=nnx.Rngs(1),
        )
    )
    images = jnp.asarray(normal(2, 8, 12, 3))
    found, features = jax.jit(lambda m, v: (m(v), m.stem(v)))(net, images)
    features = np.asarray(features)  # (2, 2, 3, 16)
    # Doubling with half-pixel centres mixes neighbours 3 : 1, and repeats the edge.
    for axis in (1, 2):
        size = features.shape[axis]
        before = np.take(features, np.maximum(np.arange(size) - 1, 0), axis)
        after = np.take(features, np.minimum(np.arange(size) + 1, size - 1), axis)
        mixed = np.stack(
            [0.75 * features + 0.25 * before, 0.75 * features + 0.25 * after], axis + 1
        )
        shape = list(features.shape)
        shape[axis] *= 2
        features = mixed.reshape(shape)
    x = elu(group_norm_by_hand(net.gn, features @ np.asarray(net.feat_conv)))
    assert found.shape == (2, 4, 6, 12)
    np.testing.assert_allclose(found, elu(x @ np.asarray(net.affinity_conv)), atol=1e-10)


def test_preprocess_is_a_value():
    assert Preprocess() == Preprocess() and hash(Preprocess()) == hash(Preprocess())
    assert replace(Preprocess(), size=(1, 1)) != Preprocess()


def test_preprocess_keeps_python_numbers():
    plain = Preprocess((0.25, 0.5, 0.75), (0.5, 1.0, 2.0), (8, 12))
    for kind in (np.float32, np.float64, jnp.float32, lambda values: list(values)):
        found = Preprocess(kind(plain.mean), kind(plain.std), np.array(plain.size))
        assert found == plain and hash(found) == hash(plain)
        assert {type(x) for x in (*found.mean, *found.std)} == {float}
        assert {type(x) for x in found.size} == {int}
    whole = Preprocess((0, np.int64(0), 0), (1, 1, 1), 8)
    assert whole == Preprocess((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (8, 8))
    for wrong, message in (
        ({"mean": (0.5, 0.5)}, r"^mean must be three numbers, not \(0.5, 0.5\)"),
        ({"mean": 0.5}, "^mean must be three numbers, not 0.5"),
        ({"mean": (0.5, 0.5, np.nan)}, "^mean must be three numbers"),
        ({"std": (0.5, 0.5, 0.0)}, "^std must be positive"),
        ({"size": (8.0, 12)}, r"^size must be a side or \(H, W\)"),
    ):
        with pytest.raises(ValueError, match=message):
            Preprocess(**wrong)
