"""What perturbing an image costs, against one explanation and ten forwards of the same batch.

Transformer attribution of the predicted class, positive direction, nine masked forwards; both sides alternate in
one process, the figure is the median ratio. Target: at most 1.15.

python -m benchmarks.perturbation [--model vit_base_patch16_224] [--batch 8] [--runs 5]
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import vitx
from benchmarks.timing import alternate
from vitx.evaluation.comparison import Comparison
from vitx.evaluation.perturbation import explain_and_perturb

_MODEL = flags.DEFINE_string("model", "vit_base_patch16_224", "A name of vitx's registry.")
_BATCH = flags.DEFINE_integer("batch", 8, "Images at once.")
_RUNS = flags.DEFINE_integer("runs", 5, "Runs of each side.")
TARGET = 1.15


def main(argv: list[str]) -> None:
    """Prints seconds a batch, and the ratio."""
    model = vitx.create(_MODEL.value)
    comparison = Comparison(
        ("transformer_attribution",), ("predicted",), ("perturbation",), ("positive",)
    )
    generator = np.random.default_rng(0)
    pixels = generator.random((_BATCH.value, *model.preprocess.size, 3), np.float32)
    targets = generator.integers(0, 1000, _BATCH.value).astype(np.int32)
    images = jnp.asarray((pixels - 0.5) / 0.5)

    @jax.jit
    def forward(model: Any, images: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return model(images)

    sides = {
        "perturbation": lambda: explain_and_perturb(
            model, comparison, pixels, targets, directions=("positive",)
        ),
        "explanation": lambda: vitx.explain(model, images),
        "forward": lambda: forward(model, images),
    }
    seconds = {name: np.array(times) for name, times in alternate(sides, _RUNS.value).items()}
    yardstick = seconds["explanation"] + 10 * seconds["forward"]
    ratio = float(np.median(seconds["perturbation"] / yardstick))
    device = jax.devices()[0].device_kind
    print(f"{_MODEL.value}, batch {_BATCH.value}, {device}, {_RUNS.value} runs each")
    for name, times in seconds.items():
        print(f"{name}: {np.median(times):.3f} s a batch")
    print(f"explanation / forward: {np.median(seconds['explanation'] / seconds['forward']):.2f}")
    print(f"perturbation / (explanation + 10 forwards): {ratio:.3f} (target {TARGET})")


if __name__ == "__main__":
    app.run(main)
