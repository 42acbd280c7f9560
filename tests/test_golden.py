"""The models, explanations and training against the published PyTorch code's numbers, in float64.

See golden/README.md for where the numbers come from; every tensor follows from its name and a seed.
"""

import json
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import save_file

import vitx
from vitx.models.affinity import AffinityNet
from vitx.models.vit import Preprocess
from vitx.pseudomasks.affinity import affinities
from vitx.training.classifier import multilabel_soft_margin

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-6

pytestmark = pytest.mark.usefixtures("x64")


def weights(shapes, seed):
    tensors = {}
    for name, shape in shapes.items():
        random = np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode()))
        values = random.standard_normal(shape)
        if ("norm" in name or name.startswith("gn.")) and name.endswith("weight"):
            values = 1 + 0.1 * values
        elif name.endswith("bias") or len(shape) < 2 or name in ("pos_embed", "cls_token"):
            values = 0.02 * values
        else:
            values = values / np.sqrt(np.prod(shape[1:]))
        tensors[name] = values
    return tensors


def images(seed, count, size):
    random = np.random.RandomState(1000 + seed)
    values = random.standard_normal((count, 3, size, size))
    return jnp.asarray(values.transpose(0, 2, 3, 1))


def numbers(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def load(name, folder, **options):
    description = json.loads((GOLDEN / f"{name}.json").read_text())
    path = folder / f"{name}.safetensors"
    save_file(weights(description["shapes"], description["seed"]), path)
    model = vitx.load(path, dtype="float64", **options)
    path.unlink()  # hundreds of megabytes, of which pytest would keep three
    return model


def assert_close(found, expected, tolerance=TOLERANCE):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    with jax.enable_x64(True):
        return load("vit_tiny", tmp_path_factory.mktemp("tiny"), num_heads=3, final_norm_eps=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "method", "start_layer"),
    [
        ("transformer_attribution_start0", "transformer_attribution", 0),
        ("transformer_attribution_start1", "transformer_attribution", 1),
        ("rollout_start0", "rollout", 0),
        ("rollout_start1", "rollout", 1),
        ("raw_attention", "raw_attention", 0),
        ("partial_lrp", "partial_lrp", 0),
        ("gradcam", "gradcam", 0),
        ("lrp", "lrp", 0),
    ],
)
def test_tiny_vit_every_method_and_class(tiny, key, method, start_layer):
    expected = numbers("vit_tiny")
    classes = jnp.broadcast_to(jnp.arange(5), (2, 5))
    logits, maps = vitx.explain(tiny, images(0, 2, 32), classes, method, start_layer)
    assert_close(logits, expected["logits"][::5])
    assert_close(maps.reshape(10, -1), expected[key].reshape(10, -1))


@pytest.mark.slow
def test_tiny_vit_attention(tiny):
    expected = numbers("vit_tiny")["attention"][::5]  # (image, block, head, query, key)
    _, attentions = tiny.encode(tiny.embed(images(0, 2, 32)))
    for block, attention in enumerate(attentions):
        queries = attention.shape[2]  # the last block reads the class token only
        assert_close(attention, expected[:, block, :, :queries])


@pytest.mark.slow
def test_training_trajectory(tiny):
    """Five steps of SGD with momentum, and weight decay on every parameter, as PyTorch's."""
    expected = numbers("training")
    graph, params = nnx.split(tiny)
    optimizer = optax.chain(
        optax.add_decayed_weights(float(expected["weight_decay"])),
        optax.sgd(float(expected["learning_rate"]), momentum=float(expected["momentum"])),
    )
    batch = jnp.asarray(expected["images"].transpose(0, 2, 3, 1))
    labels = jnp.asarray(expected["labels"])

    @jax.jit
    def step(params, state):
        def loss(params):
            return multilabel_soft_margin(nnx.merge(graph, params)(batch), labels).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state, losses = optimizer.init(params), []
    for _ in expected["losses"]:
        params, state, value = step(params, state)
        losses.append(value)
    trained = nnx.merge(graph, params)
    assert_close(losses, expected["losses"])
    assert_close(trained.head.kernel[...].T, expected["head_weight"])
    assert_close(trained.head.bias[...], expected["head_bias"])
    assert_close(trained(batch), expected["logits"])


class _NoStem(nnx.Module):
    channels = 1024


def test_affinity_head():
    expected = numbers("affinity_head")
    shapes = {
        "feat_conv.weight": (512, 1024, 1, 1),
        "gn.weight": (512,),
        "gn.bias": (512,),
        "affinity_conv.weight": (512, 512, 1, 1),
    }
    tensors = weights(shapes, seed=0)
    grid = (int(expected["grid"]),) * 2
    net = nnx.eval_shape(
        lambda: AffinityNet(_NoStem(), grid, preprocess=Preprocess(), rngs=nnx.Rngs(0))
    )
    net.feat_conv.set_value(jnp.asarray(tensors["feat_conv.weight"][:, :, 0, 0].T))
    net.affinity_conv.set_value(jnp.asarray(tensors["affinity_conv.weight"][:, :, 0, 0].T))
    net.gn.scale.set_value(jnp.asarray(tensors["gn.weight"]))
    net.gn.bias.set_value(jnp.asarray(tensors["gn.bias"]))
    features = net.head(jnp.asarray(expected["stem_features"].transpose(0, 2, 3, 1)))
    found = affinities(features[0], radius=5)[:, : grid[0] - 4, 4 : grid[1] - 4]
    assert_close(found.reshape(34, -1), expected["affinity"])


@pytest.mark.slow
def test_vit_base(tmp_path):
    expected = numbers("vit_base")
    model = load("vit_base", tmp_path, final_norm_eps=1e-5)
    pixels, classes = images(0, 1, 224), jnp.asarray(expected["class_index"])
    for key, method, start_layer in [
        ("transformer_attribution_start0", "transformer_attribution", 0),
        ("transformer_attribution_start1", "transformer_attribution", 1),
        ("rollout_start0", "rollout", 0),
        ("rollout_start1", "rollout", 1),
        ("raw_attention", "raw_attention", 0),
        ("partial_lrp", "partial_lrp", 0),
        ("gradcam", "gradcam", 0),
        ("lrp", "lrp", 0),
    ]:
        logits, maps = vitx.explain(model, pixels, classes, method, start_layer)
        assert_close(logits, expected["logits"])
        assert_close(maps.reshape(1, -1), expected[key].reshape(1, -1))


@pytest.mark.slow
def test_hybrid_base(tmp_path):
    expected = numbers("hybrid_base")
    model = load("hybrid_base", tmp_path)
    pixels = images(0, 1, 224)
    features = jax.jit(lambda model, x: model.features(x))(model, pixels)[0]  # (14, 14, 1024)
    assert_close(features[..., :16].transpose(2, 0, 1), expected["backbone_features_first16"])
    assert_close(features.mean((0, 1)), expected["backbone_features_mean"])
    logits, maps = vitx.explain(model, pixels, expected["class_index"][None])
    assert_close(logits[0], expected["timm_logits"])
    assert_close(maps.reshape(-1), expected["transformer_attribution_start0"])
