"""VGG-16 and ResNet for class activation maps, against NumPy, and the maps themselves."""

from functools import cache, partial
from itertools import product
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import vitx
from tests.models.test_models import elu, group_norm_by_hand
from tests.small_models import FAMILIES, filled, small_family
from vitx.models.affinitynet import MultiLevelAffinityNet, vgg16_affinity_net
from vitx.models.convnet import ConvNet, drop_channels
from vitx.models.design import Preprocess
from vitx.models.families import IMAGENET
from vitx.models.levels import features_at, part_below
from vitx.models.resnet_v1 import ResNetV1
from vitx.models.variants import at_size, cell
from vitx.models.vgg import VGG16
from vitx.pseudomasks.seeds import class_seed_maps, seed_maps_of
from vitx.relevance.registry import ATTENTION, REGISTRY, methods_of

pytestmark = pytest.mark.usefixtures("x64")
SIZE, WIDTHS, HIDDEN = (19, 26), (3, 4, 5, 6, 7), 8


@cache
def small_vgg(seed: int = 1, **options) -> VGG16:
    sizes = {"widths": WIDTHS, "hidden": HIDDEN} | options
    with jax.enable_x64(True):
        return filled(lambda: VGG16(3, Preprocess(size=SIZE), **sizes, rngs=nnx.Rngs(0)), seed)


@cache
def small_resnet(seed: int = 1) -> ResNetV1:
    sizes = {"depths": (2, 1, 1, 2), "width": 4, "head_bias": True}
    with jax.enable_x64(True):
        return filled(lambda: ResNetV1(3, Preprocess(size=SIZE), **sizes, rngs=nnx.Rngs(0)), seed)


NETS = {"vgg": small_vgg, "resnet": small_resnet}
each_net = pytest.mark.parametrize("make", NETS.values(), ids=NETS)


def images(count: int, size: tuple[int, int] = SIZE, seed: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal((count, *size, 3)))


@partial(jax.jit, static_argnames="method")
def run(model: ConvNet, method: str, **options) -> jax.Array:
    """What a method of a model returns of two images."""
    return getattr(model, method)(images(2), **options)


# By hand: channels last, kernels as PyTorch has them, (out, in, h, w).


def conv_by_hand(x, kernel, bias=0.0, stride=1, dilation=1):
    reach = dilation * (kernel.shape[-1] // 2)
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    height, width = x.shape[1:3]
    y = np.zeros((*x.shape[:3], len(kernel)))
    for i, j in product(range(kernel.shape[2]), range(kernel.shape[3])):
        rows, columns = slice(i * dilation, None), slice(j * dilation, None)
        y += padded[:, rows, columns][:, :height, :width] @ kernel[:, :, i, j].T
    return y[:, ::stride, ::stride] + bias


def pool_by_hand(x, stride):
    height, width = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    shifted = [padded[:, i : i + height, j : j + width] for i, j in product(range(3), range(3))]
    return np.max(shifted, 0)[:, ::stride, ::stride]


def vgg_by_hand(tensors, x, dilation=1):
    """Levels by name, of the tensors of psa's names and their own input."""
    levels = {}
    for stage, depth in enumerate((2, 2, 3, 3, 3), 1):
        for number in range(1, depth + 1):
            name = f"conv{stage}_{number}"
            kernel, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
            x = conv_by_hand(x, kernel, bias, dilation=2 if stage == 5 else 1).clip(0)
        levels[f"conv{stage}"] = x
        if stage < 5:
            x = pool_by_hand(x, 1 if stage == 4 else 2)
    for name, apart in (("fc6", dilation), ("fc7", 1)):
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        x = levels[name] = conv_by_hand(x, weight, bias, dilation=apart).clip(0)
    return levels


def psa_tensors(seed=0, affinity=False):
    generator, inputs, shapes = np.random.default_rng(seed), 3, {}
    for stage, (depth, width) in enumerate(zip((2, 2, 3, 3, 3), WIDTHS, strict=True), 1):
        for number in range(1, depth + 1):
            shapes[f"conv{stage}_{number}"] = (width, inputs, 3, 3)
            inputs = width
    shapes |= {"fc6": (HIDDEN, inputs, 3, 3), "fc7": (HIDDEN, HIDDEN, 1, 1)}
    tensors = {}
    for name, shape in shapes.items():
        tensors[f"{name}.weight"] = generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        tensors[f"{name}.bias"] = 0.3 * generator.standard_normal(shape[0])
    if not affinity:
        return tensors | {"fc8.weight": generator.standard_normal((3, HIDDEN, 1, 1))}
    for level, inputs, outputs in ((3, WIDTHS[3], 64), (4, WIDTHS[4], 128), (5, HIDDEN, 256)):
        tensors[f"f8_{level}.weight"] = generator.standard_normal((outputs, inputs, 1, 1))
        tensors[f"gn8_{level}.weight"] = 1 + 0.1 * generator.standard_normal(outputs)
        tensors[f"gn8_{level}.bias"] = generator.standard_normal(outputs)
    return tensors | {"f9.weight": generator.standard_normal((448, 448, 1, 1)) / 20}


def loaded(tensors, tmp_path, **options):
    path = tmp_path / "w.safetensors"
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path)
    return vitx.load(path, dtype="float64", **options)


def normalised(model, pixels):
    return jnp.asarray((pixels / 255 - model.preprocess.mean) / model.preprocess.std)


PIXELS = np.random.default_rng(3).integers(0, 256, (2, *SIZE, 3))
BGR = PIXELS[..., ::-1] - np.array([104.008, 116.669, 122.675])


@pytest.mark.slow
def test_a_file_of_psa_reads_blue_first(tmp_path):
    tensors = psa_tensors()
    model = loaded(tensors, tmp_path)
    last = vgg_by_hand(tensors, BGR)["fc7"]
    expected = last @ tensors["fc8.weight"][:, :, 0, 0].T
    found, maps = vitx.explain(
        model, normalised(model, PIXELS), np.tile([[2, 0]], (2, 1)), method="cam"
    )
    np.testing.assert_allclose(found, expected.mean((1, 2)), rtol=1e-11)
    assert maps.shape == (2, 2, 3, 4)
    np.testing.assert_allclose(
        maps, expected[..., [2, 0]].clip(0).transpose(0, 3, 1, 2), atol=1e-11
    )


@pytest.mark.slow
def test_affinity_net_of_psa(tmp_path):
    tensors = psa_tensors(affinity=True)
    net = loaded(tensors, tmp_path)
    assert isinstance(net, MultiLevelAffinityNet) and net.levels == ("conv4", "conv5", "fc7")
    levels, parts = vgg_by_hand(tensors, BGR, dilation=4), []
    for number, (name, groups) in enumerate(zip(net.levels, (8, 16, 32), strict=True), 3):
        x = conv_by_hand(levels[name], tensors[f"f8_{number}.weight"])
        scale, shift = tensors[f"gn8_{number}.weight"], tensors[f"gn8_{number}.bias"]
        norm = SimpleNamespace(groups=groups, epsilon=1e-5, scale=scale, bias=shift)
        parts.append(elu(group_norm_by_hand(norm, x)))
    joined = conv_by_hand(np.concatenate(parts, -1), tensors["f9.weight"])
    np.testing.assert_allclose(net(normalised(net, PIXELS)), elu(joined), rtol=1e-9, atol=1e-9)


def test_affinity_net_on_a_classifier_has_psas_sizes():
    model = small_vgg()
    net = vgg16_affinity_net(model, rngs=nnx.Rngs(0))
    assert [branch.gn.groups for branch in net.branches] == [8, 16, 32]
    assert jax.eval_shape(net, images(2)).shape == (2, 3, 4, 448) and net.backbone.head is None
    assert (model.fc6.dilation, net.backbone.fc6.dilation) == (1, 4)
    on_grid = vgg16_affinity_net(model, (5, 6), rngs=nnx.Rngs(0))
    assert jax.eval_shape(on_grid, images(1, (40, 40))).shape == (1, 5, 6, 448)


# torchvision's names.

FEATURES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


def torchvision_vgg(tensors):
    convs = [name.removesuffix(".weight") for name in tensors if name.startswith("conv")]
    convs = [name for name in convs if not name.endswith(".bias")]
    return {
        f"features.{number}.{part}": tensors[f"{name}.{part}"]
        for number, name in zip(FEATURES, convs, strict=True)
        for part in ("weight", "bias")
    }


@pytest.mark.slow
def test_torchvision_vgg_with_its_fully_connected_layers(tmp_path):
    tensors, generator = psa_tensors(), np.random.default_rng(5)
    wide = 4 * HIDDEN
    file = torchvision_vgg(tensors) | {
        "classifier.0.weight": generator.standard_normal((wide, 49 * WIDTHS[-1])) / 9,
        "classifier.0.bias": generator.standard_normal(wide),
        "classifier.3.weight": generator.standard_normal((wide, wide)) / 3,
        "classifier.3.bias": generator.standard_normal(wide),
        "classifier.6.weight": generator.standard_normal((10, wide)),
        "classifier.6.bias": generator.standard_normal(10),
    }
    model = loaded(file, tmp_path, num_classes=3)
    assert (model.preprocess.mean, model.preprocess.std) == IMAGENET
    for o, c, i, j in product(range(HIDDEN), range(WIDTHS[-1]), range(3), range(3)):
        place = 49 * c + 7 * (3 * i) + 3 * j
        assert model.fc6.kernel[i, j, c, o] == file["classifier.0.weight"][4 * o, place]
    np.testing.assert_array_equal(model.fc7.kernel[0, 0].T, file["classifier.3.weight"][::4, ::4])
    by_hand = {
        "fc6.weight": np.asarray(model.fc6.kernel[...]).transpose(3, 2, 0, 1),
        "fc6.bias": file["classifier.0.bias"][::4],
        "fc7.weight": np.asarray(model.fc7.kernel[...]).transpose(3, 2, 0, 1),
        "fc7.bias": file["classifier.3.bias"][::4],
    }
    expected = vgg_by_hand(tensors | by_hand, np.asarray(images(2)))["fc7"].mean((1, 2))
    np.testing.assert_allclose(
        run(model, "__call__"), expected @ np.asarray(model.head.kernel[...]), rtol=1e-10
    )


def test_torchvision_features_alone_get_new_layers_above(tmp_path):
    file = torchvision_vgg(psa_tensors())
    model = loaded(file, tmp_path, num_classes=5, image_size=(40, 48))
    assert jax.eval_shape(model, images(1)).shape == (1, 5) and model.fc6.kernel.shape == (
        3,
        3,
        WIDTHS[-1],
        1024,
    )
    assert model.preprocess.size == (40, 48) and model.grid == (5, 6)
    with pytest.raises(ValueError, match=r"head.weight is missing: give num_classes"):
        loaded(file, tmp_path)


def torchvision_resnet(seed=0, depths=(2, 1, 1, 2), width=4):
    generator, tensors = np.random.default_rng(seed), {}

    def conv(name, outputs, inputs, side):
        fan = inputs * side**2
        shape = (outputs, inputs, side, side)
        tensors[f"{name}.weight"] = generator.standard_normal(shape) / np.sqrt(fan)

    def norm(name, channels):
        tensors[f"{name}.weight"] = 1 + 0.2 * generator.standard_normal(channels)
        tensors[f"{name}.bias"] = 0.3 * generator.standard_normal(channels)
        tensors[f"{name}.running_mean"] = 0.3 * generator.standard_normal(channels)
        tensors[f"{name}.running_var"] = generator.uniform(0.3, 2, channels)
        tensors[f"{name}.num_batches_tracked"] = np.array(7)

    conv("conv1", width, 3, 7)
    norm("bn1", width)
    inputs = width
    for stage, depth in enumerate(depths, 1):
        middle = width * 2 ** (stage - 1)
        for block in range(depth):
            name = f"layer{stage}.{block}"
            for number, shape in enumerate(
                [(middle, inputs, 1), (middle, middle, 3), (4 * middle, middle, 1)], 1
            ):
                conv(f"{name}.conv{number}", *shape)
                norm(f"{name}.bn{number}", shape[0])
            if block == 0:
                conv(f"{name}.downsample.0", 4 * middle, inputs, 1)
                norm(f"{name}.downsample.1", 4 * middle)
            inputs = 4 * middle
    tensors["fc.weight"] = generator.standard_normal((3, inputs))
    tensors["fc.bias"] = generator.standard_normal(3)
    return tensors


def resnet_by_hand(tensors, x, depths=(2, 1, 1, 2)):
    """The last feature map, with stride replaced by dilation in the last stage."""

    def norm(name, x):
        weight, bias, mean, variance = (
            tensors[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias

    def step(conv, bn, x, **options):
        return norm(bn, conv_by_hand(x, tensors[f"{conv}.weight"], **options))

    x = pool_by_hand(step("conv1", "bn1", x, stride=2).clip(0), 2)
    for stage, depth in enumerate(depths, 1):
        for block in range(depth):
            name = f"layer{stage}.{block}"
            stride = 2 if stage in (2, 3) and block == 0 else 1
            dilation = 2 if stage == 4 and block > 0 else 1
            y = step(f"{name}.conv1", f"{name}.bn1", x).clip(0)
            y = step(f"{name}.conv2", f"{name}.bn2", y, stride=stride, dilation=dilation).clip(0)
            y = step(f"{name}.conv3", f"{name}.bn3", y)
            if block == 0:
                x = step(f"{name}.downsample.0", f"{name}.downsample.1", x, stride=stride)
            x = (x + y).clip(0)
    return x


def test_torchvision_resnet_with_its_running_statistics(tmp_path):
    tensors = torchvision_resnet()
    model = loaded(tensors, tmp_path)
    assert (model.preprocess.mean, model.preprocess.std) == IMAGENET
    x = images(2, (35, 50))
    last = resnet_by_hand(tensors, np.asarray(x))
    np.testing.assert_allclose(model.features(x), last, rtol=1e-9, atol=1e-10)
    logits = last.mean((1, 2)) @ tensors["fc.weight"].T + tensors["fc.bias"]
    np.testing.assert_allclose(model(x), logits, rtol=1e-10)
    replaced = loaded(tensors, tmp_path, num_classes=7)
    assert replaced.head.bias is None and replaced(x).shape == (2, 7)


def test_a_resnet_without_bottlenecks_is_refused(tmp_path):
    tensors = {n: a for n, a in torchvision_resnet().items() if "conv3" not in n}
    with pytest.raises(ValueError, match="a ResNet without bottlenecks"):
        loaded(tensors, tmp_path)


# Files of vitx.


def same(found, expected):
    one, other = nnx.split(found), nnx.split(expected)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one[1]), jax.tree.leaves(other[1]), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


SAVED = {
    "vgg": small_vgg,
    "vgg with another dilation and a bias": lambda: small_vgg(fc6_dilation=3, head_bias=True),
    "resnet": small_resnet,
    "vgg without a head": lambda: small_vgg().without_head(),
    "psa's AffinityNet": lambda: vgg16_affinity_net(small_vgg(), rngs=nnx.Rngs(2)),
    "AffinityNet on a grid": lambda: MultiLevelAffinityNet(
        small_vgg(), ("conv2", "conv4"), (4, 5), hidden=8, features=6, groups=4, rngs=nnx.Rngs(2)
    ),
    "AffinityNet on a resnet": lambda: MultiLevelAffinityNet(
        small_resnet(), ("layer3", "layer1"), None, hidden=8, features=6, groups=4, rngs=nnx.Rngs(2)
    ),
}


@pytest.mark.parametrize("make", SAVED.values(), ids=SAVED)
def test_a_saved_model_is_the_same(make, tmp_path):
    model = make()
    vitx.save(model, tmp_path / "w.safetensors")
    found = vitx.load(tmp_path / "w.safetensors")
    same(found, model)
    assert found.preprocess == model.preprocess


@pytest.mark.parametrize(
    "option", [{"num_heads": 2}, {"norm_eps": 1e-5}, {"final_norm_eps": 1e-5}, {"head": "pooled"}]
)
def test_options_of_transformers_are_refused(option, tmp_path):
    vitx.save(small_vgg(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=f"a CNN, which has no {next(iter(option))}"):
        vitx.load(tmp_path / "w.safetensors", **option)


# The registry.


@pytest.mark.parametrize(
    ("name", "parameters", "stride"),
    [("vgg16_cam", 20_483_904, 8), ("resnet50_cam", 25_557_032 - 2_049_000, 16)],
)
def test_published_sizes(name, parameters, stride):
    """Without the head: that of psa's shapes in vgg16.json, and torchvision's ResNet-50 less its own head."""
    model = nnx.eval_shape(lambda: vitx.create(name))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert count - model.head.kernel.size == parameters
    assert (
        model.num_classes == 20 and model.head.bias is None and model.preprocess.size == (448, 448)
    )
    assert model.grid == (448 // stride,) * 2 and model.preprocess.mean == IMAGENET[0]


def test_create_refuses_options_of_transformers():
    with pytest.raises(ValueError, match="vgg16_cam has no head"):
        vitx.create("vgg16_cam", 3, head="best")
    with pytest.raises(ValueError, match="unknown model 'vgg16'; nearest: vgg16_cam"):
        vitx.create("vgg16")


# Maps.

sizes = st.tuples(st.integers(1, 30), st.integers(1, 30))


@each_net
@given(size=sizes)
@settings(max_examples=6, deadline=None)
def test_any_size_has_its_grid(make, size):
    model = make()
    grid = tuple(-(-side // model.stride) for side in size)
    x = jax.ShapeDtypeStruct((1, *size, 3), np.float64)
    _, maps = jax.eval_shape(lambda x: vitx.explain(model, x, method="cam"), x)
    assert maps.shape == (1, *grid)
    assert at_size(model, size).grid == grid and cell(model) == model.stride


@pytest.mark.slow
@each_net
def test_shares_add_up_to_the_logits(make):
    model = make()
    features = model.embed(run(model, "features"))
    bias = 0 if model.head.bias is None else np.asarray(model.head.bias[...])
    shares = np.asarray(model.class_map(features))
    np.testing.assert_allclose(shares.mean(1) + bias, run(model, "__call__"), rtol=1e-11)
    np.testing.assert_allclose(
        model.without_head().classify(features), features.mean(1), rtol=1e-11
    )


@pytest.mark.slow
@each_net
def test_gradcam_is_cam_over_the_number_of_cells(make):
    """Selvaraju et al., section 3.1: under a linear head on the mean, the weights are the class's own over N."""
    model, classes = make(), np.array([[0, 1, 2], [2, 1, 0]])
    _, cam = vitx.explain(model, images(2), classes, method="cam")
    _, gradcam = vitx.explain(model, images(2), classes, method="gradcam")
    cells = float(np.prod(model.grid))
    np.testing.assert_allclose(cells * gradcam, cam, rtol=1e-10, atol=1e-14)
    assert (cam > 0).any() and (cam >= 0).all()


@pytest.mark.slow
def test_many_classes_and_targets_are_those_of_one():
    model, x = small_resnet(), images(2)
    _, maps = vitx.explain(model, x, np.array([[0, 2], [1, 1]]), method="cam")
    _, first = vitx.explain(model, x, np.array([0, 1]), method="cam")
    np.testing.assert_allclose(maps[:, 0], first, rtol=1e-12)
    shares = model.class_map(run(model, "features"))
    _, difference = vitx.explain(model, x, target=("difference", 0, 2), method="cam")
    expected = np.asarray(shares[..., 0] - shares[..., 2]).clip(0)
    np.testing.assert_allclose(difference, expected, atol=1e-12)
    _, found = vitx.explain(model, x, target=np.ones(model.width), method="cam")
    assert found.shape == (2, *model.grid)


@pytest.mark.parametrize("family", ["mean", "mae", "vit", "best", "siglip"])
def test_a_transformer_has_cam_where_a_linear_head_reads_the_mean(family):
    model = small_family(family)
    x = images(2, model.preprocess.size)
    if family != "mean":
        assert FAMILIES[family].pooling != "mean" or FAMILIES[family].pooled_norm
        with pytest.raises(ValueError, match="method cam needs a model with a linear head"):
            vitx.explain(model, x, method="cam")
        assert "cam" not in methods_of(model)
        return
    classes = np.tile([[0, 1, 2]], (2, 1))
    logits, maps = vitx.explain(model, x, classes, method="cam")
    tokens, _ = model.encode(model.embed(model.features(x)))
    patches = np.asarray(model.normed(tokens))[:, model.prefix_tokens :]
    shares = patches @ np.asarray(model.head.kernel[...])
    bias = np.asarray(model.head.bias[...])
    np.testing.assert_allclose(logits, shares.mean(1) + bias, rtol=1e-10)
    expected = shares.clip(0).transpose(0, 2, 1).reshape(maps.shape)
    np.testing.assert_allclose(maps, expected, atol=1e-12)


@pytest.mark.slow
def test_methods_of_a_cnn():
    model = small_resnet()
    names = methods_of(model)
    assert "cam" in names and "gradcam" in names
    assert set(names) == {n for n in vitx.METHODS if REGISTRY[n].needs != ATTENTION}
    for name in names:
        options = {"masks": 3} if name == "rise" else {}
        _, maps = vitx.explain(model, images(2), method=name, options=options)
        assert maps.shape == (2, *(SIZE if REGISTRY[name].pixels else model.grid)), name
        assert np.isfinite(maps).all()


@each_net
def test_what_a_cnn_does_not_explain(make):
    model = make()
    with pytest.raises(ValueError, match="method rollout needs a model with blocks with attention"):
        vitx.explain(model, images(2), method="rollout")
    with pytest.raises(ValueError, match=r"images must be \(B, H, W, 3\), B > 0, not \(2, 4, 5\)"):
        vitx.explain(model, np.zeros((2, 4, 5)), method="cam")


@pytest.mark.slow
def test_seed_maps_of_a_cnn():
    """The mean of the image's and its mirror image's."""
    model, size = small_resnet(), (24, 20)
    options = {"size": size, "method": "cam", "root": 2}
    maps = class_seed_maps(model, images(2), jnp.array([[0, 2], [1, -1]]), **options)
    assert maps.shape == (2, 2, *size) and not maps[1, 1].any()
    both = jnp.concatenate([images(1), images(1)[:, :, ::-1]])
    _, raw = vitx.explain(model, both, np.full(2, 2), method="cam")
    plain, mirrored = seed_maps_of(raw, SIZE, size, 2)
    np.testing.assert_allclose(maps[0, 1], (plain + mirrored[:, ::-1]) / 2, atol=1e-12)
    assert maps[0, 1].any()


# Levels and training.


@pytest.mark.slow
@each_net
def test_levels_are_maps_of_the_forward_pass(make):
    model = make()
    every = jax.jit(lambda model: dict(model.maps(images(2))))(model)
    every = {level: every[level] for level in model.level_channels}
    assert {name: x.shape[-1] for name, x in every.items()} == model.level_channels
    np.testing.assert_array_equal(list(every.values())[-1], run(model, "features"))
    for level in every:
        part = part_below(model, [level])
        assert isinstance(part, ConvNet) and list(part.level_channels)[-1] == level
        assert jax.eval_shape(lambda part=part: part(images(1))).shape == (1, part.width)
    names = list(every)[1::2][::-1]
    found = jax.jit(lambda part: features_at(part, images(2), names))(part_below(model, names))
    for name, x in zip(names, found, strict=True):
        np.testing.assert_allclose(x, every[name], rtol=1e-12)
    assert model.head is not None  # parts are copies
    with pytest.raises(ValueError, match=r"the model has no level 'block\.1'; it has"):
        features_at(model, images(2), ["block.1"])


@given(
    seed=st.integers(0, 2**31 - 2), layer=st.integers(0, 9), channels=st.sampled_from([1, 7, 40])
)
@settings(max_examples=20, deadline=None)
def test_dropout_keeps_or_drops_whole_channels(seed, layer, channels):
    x = 1 + jnp.abs(jnp.broadcast_to(images(2, (2, 3), seed=4)[..., :1], (2, 2, 3, channels)))
    found = np.asarray(drop_channels(x, jnp.array([seed, seed + 1]), layer))
    factor = found / np.asarray(x)
    assert np.isin(factor, (0, 2)).all() and (factor == factor[:, :1, :1]).all()
    alone = drop_channels(x[1:], jnp.array([seed + 1]), layer)
    np.testing.assert_array_equal(found[1:], alone)  # an image's own seed decides
    assert drop_channels(x, None, layer) is x


def test_dropout_is_even_and_its_layers_differ():
    x, seeds = jnp.ones((64, 1, 1, 64)), jnp.arange(64)
    one, other = (np.asarray(drop_channels(x, seeds, layer)) for layer in (6, 7))
    assert abs(one.mean() - 1) < 0.06 and 0.45 < (one != other).mean() < 0.55


@pytest.mark.slow
def test_dropout_follows_fc6_and_fc7():
    model, seeds = small_vgg(), jnp.arange(2)
    every, dropped = (
        jax.jit(lambda model, seeds: dict(model.maps(images(2), dropout=seeds)))(model, each)
        for each in (None, seeds)
    )
    np.testing.assert_array_equal(dropped["fc6"], every["fc6"])
    fc7 = jax.nn.relu(model.fc7(drop_channels(every["fc6"], seeds, 6)))
    np.testing.assert_allclose(dropped["fc7"], fc7, rtol=1e-12)
    expected = drop_channels(fc7, seeds, 7).mean((1, 2)) @ model.head.kernel[...]
    np.testing.assert_allclose(run(model, "__call__", dropout=seeds), expected, rtol=1e-11)


def test_other_depths_are_read_back(tmp_path):
    model = small_vgg(depths=(1, 2, 1, 1, 1))
    assert [len(stage) for stage in model.stages] == [1, 2, 1, 1, 1]
    vitx.save(model, tmp_path / "vgg.safetensors")
    found = vitx.load(tmp_path / "vgg.safetensors", dtype=jnp.float64)
    assert nnx.graphdef(found) == nnx.graphdef(model)
    part = MultiLevelAffinityNet(model, ("conv2",), (4, 4), hidden=32, features=8, rngs=nnx.Rngs(0))
    vitx.save(part, tmp_path / "net.safetensors")
    found = vitx.load(tmp_path / "net.safetensors", dtype=jnp.float64)
    assert nnx.graphdef(found) == nnx.graphdef(part)
