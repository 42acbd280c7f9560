"""What float32 costs a relevance map, and which rule loses the digits: ViT-Base on random weights.

Each row is transformer attribution with the published rules, but for those named. A row's float32 maps are held against
its own float64 maps, image by image: correlation, and the largest error over the largest value.

python -m benchmarks.precision [--images 10] [--model vit_base_patch16_224]
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx

import vitx
from vitx.ops import Ops
from vitx.relevance.methods import attribution
from vitx.relevance.rulesets import CHEFER_PAIRS, STABLE_PAIRS, STABLE_RULES, attribution_rule_set

_MODEL = flags.DEFINE_string("model", "vit_base_patch16_224", "A name of vitx's registry.")
_IMAGES = flags.DEFINE_integer("images", 10, "Images, one a call.")

_ADD = {"add": STABLE_RULES["add"]}
_PRODUCTS = {name: STABLE_RULES[name] for name in ("attention_scores", "apply_attention")}
_CLONE = {"clone": STABLE_RULES["clone"]}
RULE_SETS = {
    "published": CHEFER_PAIRS,
    "stabilised: adds": attribution_rule_set(**_ADD),
    "stabilised: products": attribution_rule_set(**_PRODUCTS),
    "fan-out by plain addition": attribution_rule_set(**_CLONE),
    "stabilised: adds and products": attribution_rule_set(**_ADD, **_PRODUCTS),
    "stable (all three)": STABLE_PAIRS,
}


def main(argv: list[str]) -> None:
    """Prints a table in Markdown."""
    jax.config.update("jax_enable_x64", True)
    single = random_weights(vitx.create(_MODEL.value), np.float32)
    double = random_weights(vitx.create(_MODEL.value), np.float64)
    print(f"{_MODEL.value}, {_IMAGES.value} images, {jax.devices()[0].device_kind}\n")
    print("| rules | correlation: least | median | largest error: worst | median |")
    print("|---|---|---|---|---|")
    for name, ops in RULE_SETS.items():
        pairs = [
            (one_map(single, image.astype(np.float32), ops), one_map(double, image, ops))
            for image in random_images(single.preprocess.size, _IMAGES.value)
        ]
        alike = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs]
        errors = [np.abs(a - b).max() / np.abs(b).max() for a, b in pairs]
        print(
            f"| {name} | {min(alike):.6f} | {np.median(alike):.6f} | {max(errors):.1e} | "
            f"{np.median(errors):.1e} |",
            flush=True,
        )


def random_weights(model: nnx.Module, dtype: type) -> nnx.Module:
    """The model with every weight drawn anew: kernels normal over the root of their inputs."""
    graph, state = nnx.split(model)
    generator = np.random.default_rng(0)

    def draw(path: tuple, leaf: jax.Array) -> jax.Array:
        noise, name = generator.standard_normal(leaf.shape), jax.tree_util.keystr(path)
        if "kernel" in name:
            values = noise / np.sqrt(np.prod(leaf.shape[:-1]))
        else:
            values = 1 + 0.1 * noise if "scale" in name else 0.02 * noise
        return jnp.asarray(values.astype(np.float32).astype(dtype))  # the same numbers in both

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, state))


def random_images(size: tuple[int, int], count: int) -> Iterator[np.ndarray]:
    """Normally distributed images (1, H, W, 3) that float32 represents exactly."""
    generator = np.random.default_rng(1)
    for _ in range(count):
        yield generator.standard_normal((1, *size, 3)).astype(np.float32).astype(np.float64)


def one_map(model: nnx.Module, image: np.ndarray, ops: Ops) -> np.ndarray:
    """The map of class 7, (h, w) in float64."""
    return np.asarray(_one_map(model, image, ops), np.float64)[0]


@jax.jit(static_argnames="ops")
def _one_map(model: nnx.Module, image: jax.Array, ops: Ops) -> jax.Array:
    logits, one_class = attribution(model, image, 0, ops)
    return one_class(jax.nn.one_hot(jnp.array([7]), logits.shape[-1], dtype=logits.dtype))


if __name__ == "__main__":
    app.run(main)
