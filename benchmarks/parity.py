"""Differences between vitx and the published PyTorch code, in float64, through the public interface.

Each tensor is computed from its name and a seed. tests/golden holds the published code's numbers and describes them.
Prints docs/parity.md; exit code 1 if a figure exceeds the limit.

python -m benchmarks.parity > docs/parity.md
"""

import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import vitx
from benchmarks.golden import Numbers, Row, compare, images, load, numbers, weights
from benchmarks.parity_vgg import vgg16
from benchmarks.tables import print_table
from vitx.evaluation.metrics import confusion_matrix, mean_iou, segmentation_scores
from vitx.evaluation.perturbation import perturbation_curve
from vitx.models.affinitynet import AffinityNet
from vitx.models.design import Preprocess
from vitx.models.vit import VisionTransformer
from vitx.pipeline.classifier import multilabel_soft_margin
from vitx.pseudomasks.affinity import affinities, affinity_loss, pair_labels
from vitx.pseudomasks.walk import random_walk

LIMIT = 1e-6
MAPS = (
    "transformer_attribution_start0",
    "transformer_attribution_start1",
    "rollout_start0",
    "rollout_start1",
    "raw_attention",
    "partial_lrp",
    "gradcam",
    "lrp",
)
_LEVELS = ("pixels", "tokens")
NEWER_MAPS = (
    "generic_attention",
    "attention_gradient",
    *(f"beyond_intuition_{kind}_start{n}" for kind in ("head", "token") for n in (0, 1)),
    *(f"attn_lrp_{level}" for level in _LEVELS),
    *(f"attn_lrp_gamma_{level}" for level in _LEVELS),
    *(f"cp_lrp_{level}" for level in _LEVELS),
    "libragrad",
    "legrad_start0",
    "legrad_start1",
    "attcat",
    *(f"input_x_gradient_{level}" for level in _LEVELS),
    *(f"integrated_gradients_{level}" for level in _LEVELS),
)


def vit_tiny() -> Iterator[Row]:
    """Three blocks, two images, five classes in one call."""
    golden = numbers("vit_tiny")
    model, pixels = load("vit_tiny", num_heads=3, final_norm_eps=1e-5), images(2, 32)
    yield from _explained(
        model, pixels, np.tile(np.arange(5), (2, 1)), golden, ", 2 images x 5 classes"
    )
    attentions = jax.jit(lambda m, x: m.encode(m.embed(x))[1])(model, pixels)
    stored = golden["attention"][::5]  # (image, block, head, query, key)
    for block, attention in enumerate(attentions):
        queries = attention.shape[2]  # of the last block only the class token is computed
        yield compare(f"attention, block {block}", attention, stored[:, block, :, :queries])


def methods_tiny() -> Iterator[Row]:
    """The methods since 2021 on the tiny ViT, two images, five classes in one call."""
    golden = numbers("methods_tiny")
    model, pixels = load("vit_tiny", num_heads=3, final_norm_eps=1e-5), images(2, 32)
    classes = jnp.tile(jnp.arange(5), (2, 1))
    for key in NEWER_MAPS:
        name, _, start_layer = key.partition("_start")
        method = name.removesuffix("_pixels").removesuffix("_tokens")
        options = {"level": name.removeprefix(f"{method}_")} if method != name else {}
        _, maps = vitx.explain(
            model, pixels, classes, method, int(start_layer or 0), options=options
        )
        stored = golden[key]
        yield compare(key, maps.reshape(stored.shape), stored)


def vit_base() -> Iterator[Row]:
    """ViT-Base/16, one image."""
    golden = numbers("vit_base")
    model = load("vit_base", final_norm_eps=1e-5)
    yield from _explained(model, images(1, 224), golden["class_index"][:, None], golden)


def _explained(
    model: VisionTransformer,
    pixels: jax.Array,
    classes: np.ndarray,
    golden: Numbers,
    note: str = "",
) -> Iterator[Row]:
    """Every map of `classes` (images, K), and the logits; the published code explains one class per image and call."""
    for key in MAPS:
        method, _, start_layer = key.partition("_start")
        logits, maps = vitx.explain(
            model, pixels, jnp.asarray(classes), method, int(start_layer or 0)
        )
        flat = golden[key].reshape(classes.size, -1)
        yield compare(key + note, maps.reshape(classes.size, -1), flat)
    yield compare("logits", logits, golden["logits"][:: classes.shape[1]])


def hybrid_base() -> Iterator[Row]:
    """R50+ViT-Base/16, one image."""
    golden = numbers("hybrid_base")
    model, pixels = load("hybrid_base"), images(1, 224)
    features = jax.jit(lambda m, x: m.features(x))(model, pixels)[0]  # (14, 14, 1024)
    first = features[..., :16].transpose(2, 0, 1)
    yield compare("stem, 16 channels", first, golden["backbone_features_first16"])
    yield compare("stem, channel means", features.mean((0, 1)), golden["backbone_features_mean"])
    logits, maps = vitx.explain(model, pixels, golden["class_index"][None])
    yield compare("logits", logits[0], golden["timm_logits"])
    yield compare(
        "transformer_attribution", maps.reshape(-1), golden["transformer_attribution_start0"]
    )


def affinity() -> Iterator[Row]:
    """Affinities, pair labels, losses, the random walk."""
    golden = numbers("affinity")
    side = len(golden["label"])
    found = affinities(jnp.asarray(golden["features"][0].transpose(1, 2, 0)))
    yield compare("affinities", _window(found), golden["affinity"])
    labels = pair_labels(jnp.asarray(golden["label"].astype(np.int32)))
    kinds = {"background": "bg_pos", "foreground": "fg_pos", "negative": "neg"}
    for (name, key), label in zip(kinds.items(), labels, strict=True):
        yield compare(f"{name} pairs", _window(label), golden[key])
    losses = affinity_loss(
        *(_on_grid(golden[key], side) for key in ("pred_affinity", *kinds.values()))
    )
    stored = {"loss": "loss", "background": "loss_bg", "foreground": "loss_fg"}
    for name, key in (stored | {"negative": "loss_neg"}).items():
        yield compare(f"loss: {name}", losses[name], golden[key])
    cam, beta = jnp.asarray(golden["cam"]), int(golden["beta"])
    for log2_steps, walked in zip(golden["walk_log2"], golden["walk"], strict=True):
        yield compare(
            f"walk, 2^{log2_steps} steps", random_walk(found, cam, beta, int(log2_steps)), walked
        )
    near = random_walk(found, cam, beta, int(log2_steps), "chebyshev", tolerance=1e-9)
    yield compare(f"walk, 2^{log2_steps} steps, Chebyshev to 1e-9", near, walked)


class _NoStem(nnx.Module):
    channels = 1024


def affinity_head() -> Iterator[Row]:
    """AffinityNet's head: stem features to affinities."""
    golden = numbers("affinity_head")
    grid = (int(golden["grid"]),) * 2
    net = nnx.eval_shape(
        lambda: AffinityNet(_NoStem(), grid, preprocess=Preprocess(), rngs=nnx.Rngs(0))
    )
    for name, variable in (
        ("feat_conv.weight", net.feat_conv),
        ("affinity_conv.weight", net.affinity_conv),
        ("gn.weight", net.gn.scale),
        ("gn.bias", net.gn.bias),
    ):
        tensor = weights({name: variable.shape[::-1]}, seed=0)[name]
        variable.set_value(jnp.asarray(tensor.T))
    features = net.head(jnp.asarray(golden["stem_features"].transpose(0, 2, 3, 1)))
    yield compare("affinities", _window(affinities(features[0])), golden["affinity"])


def metrics() -> Iterator[Row]:
    """Segmentation scores, mIoU, perturbation curves."""
    golden = numbers("segmentation_metrics")
    scores = segmentation_scores(golden["maps"], golden["masks"])
    for name in ("pixel_accuracy", "iou", "miou", "map"):
        yield compare(f"segmentation: {name}", scores[name], golden[name])
    golden = numbers("voc_miou")
    confusion = confusion_matrix(golden["prediction"], golden["ground_truth"], 21)
    yield compare("VOC: confusion matrix", confusion, golden["confusion"])
    yield compare("VOC: mIoU", mean_iou(confusion), golden["miou"])
    golden = numbers("perturbation")
    model = load("vit_tiny", num_heads=3, final_norm_eps=1e-5)
    pixels, targets = golden["pixels"].transpose(0, 2, 3, 1), golden["target"]
    for direction in ("positive", "negative"):
        for explained in ("predicted", "target"):
            heatmaps, name = golden[f"heat_{explained}"], f"{direction}_{explained}"
            positive = direction == "positive"
            curve = perturbation_curve(model, pixels, heatmaps, targets, positive=positive)
            for key, title in (("accuracy", "accuracies"), ("auc", "AUC")):
                what = f"perturbation: {direction}, {explained}: {title}"
                yield compare(what, curve[key], golden[f"{key}_{name}"])


def training() -> Iterator[Row]:
    """Five steps of SGD with momentum and weight decay on every parameter, as in PyTorch."""
    golden = numbers("training")
    graph, params = nnx.split(load("vit_tiny", num_heads=3, final_norm_eps=1e-5))
    optimizer = optax.chain(
        optax.add_decayed_weights(float(golden["weight_decay"])),
        optax.sgd(float(golden["learning_rate"]), momentum=float(golden["momentum"])),
    )
    batch = jnp.asarray(golden["images"].transpose(0, 2, 3, 1))
    labels = jnp.asarray(golden["labels"])

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any, jax.Array]:
        def loss(params: Any) -> jax.Array:
            return multilabel_soft_margin(nnx.merge(graph, params)(batch), labels).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state, losses = optimizer.init(params), []
    for _ in golden["losses"]:
        params, state, value = step(params, state)
        losses.append(value)
    trained = nnx.merge(graph, params)
    yield compare("losses of 5 steps", losses, golden["losses"])
    yield compare("head's weight", trained.head.kernel[...].T, golden["head_weight"])
    yield compare("head's bias", trained.head.bias[...], golden["head_bias"])
    yield compare("logits", trained(batch), golden["logits"])


_GROUPS = (
    vit_tiny,
    methods_tiny,
    vit_base,
    hybrid_base,
    affinity,
    affinity_head,
    vgg16,
    metrics,
    training,
)
GROUPS = {group.__name__: group for group in _GROUPS}


def _window(pairs: jax.Array) -> np.ndarray:
    """Pairs (34, H, W) -> those of the published code's from-pixels, (34, n)."""
    return np.asarray(pairs)[..., :-4, 4:-4].reshape(34, -1)


def _on_grid(pairs: np.ndarray, side: int) -> jax.Array:
    """And back, with nothing outside of the window."""
    inner = pairs.reshape(34, side - 4, side - 8)
    return jnp.asarray(np.pad(inner, ((0, 0), (0, 4), (4, 4))))


def main() -> None:
    """Prints the table in Markdown."""
    jax.config.update("jax_enable_x64", True)
    print(
        "# Parity with the published code\n\n"
        "Each figure is the largest difference between vitx and the published PyTorch code, divided by the "
        "largest value, in float64 on random weights. ViTs have epsilon 1e-5 in the final norm. The limit is "
        f"{LIMIT:g}. The hybrid is compared with timm, everything else with the code of the method papers. "
        f"`python -m benchmarks.parity` wrote this page with jax {jax.__version__} on "
        f"{jax.devices()[0].device_kind}; the tests check every row.\n"
    )
    differences = []
    for name, group in GROUPS.items():
        print(f"## {name}: {group.__doc__}\n")
        rows = list(group())
        print_table(("quantity", "difference"), ((r.what, f"{r.difference:.1e}") for r in rows))
        print()
        differences += [row.difference for row in rows]
    worst = np.max(differences)  # NaN, where one is
    print(f"Largest difference: {worst:.1e}.")
    sys.exit(not worst <= LIMIT)


if __name__ == "__main__":
    main()
