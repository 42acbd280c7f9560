"""What float32 costs a relevance map, and which rule loses the digits: ViT-Base on random weights.

Each row is transformer attribution with the published rules, except for those it names. Its float32 maps are compared
with its own float64 maps, image by image: correlation, and the largest error over the largest value.

python -m benchmarks.precision [--images 10] [--model vit_base_patch16_224] [--ends]

--ends leaves out what lies between the published and the stable rules.
"""

from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.command import parse_options
from benchmarks.models import in_both_precisions
from benchmarks.tables import print_table
from vitx.models.vit import VisionTransformer
from vitx.ops import Ops
from vitx.relevance.methods import attribution
from vitx.relevance.rulesets import CHEFER_PAIRS, STABLE_PAIRS, STABLE_RULES, attribution_rule_set

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
ENDS = {name: RULE_SETS[name] for name in ("published", "stable (all three)")}


def main(images: int = 10, model: str = "vit_base_patch16_224", ends: bool = False) -> None:
    """Prints a table in Markdown; `images` is how many are explained, one per call."""
    jax.config.update("jax_enable_x64", True)
    print(f"{model}, {images} images, {jax.devices()[0].device_kind}\n")
    print_table(
        ("rules", "correlation: least", "median", "largest error: worst", "median"),
        rows(model, images, ENDS if ends else RULE_SETS),
    )


def rows(
    name: str, images: int, rule_sets: Mapping[str, Ops] = RULE_SETS
) -> Iterator[tuple[str, ...]]:
    """The rows of the table, one per rule set."""
    single, double, inputs = in_both_precisions(name, images)
    for rules, ops in rule_sets.items():
        alike, errors = [], []
        for image in inputs:
            low = np.asarray(class_map(single, image, ops), np.float64)
            high = np.asarray(class_map(double, image.astype(np.float64), ops))
            alike.append(np.corrcoef(low.ravel(), high.ravel())[0, 1])
            errors.append(np.abs(low - high).max() / np.abs(high).max())
        yield (
            rules,
            f"{min(alike):.6f}",
            f"{np.median(alike):.6f}",
            f"{max(errors):.1e}",
            f"{np.median(errors):.1e}",
        )


@jax.jit(static_argnames="ops")
def class_map(model: VisionTransformer, image: jax.Array, ops: Ops) -> jax.Array:
    """The map (1, h, w) of class 7."""
    logits, one_class = attribution(model, image, 0, ops)
    return one_class(jax.nn.one_hot(jnp.array([7]), logits.shape[-1], dtype=logits.dtype))


if __name__ == "__main__":
    main(**parse_options(main))
