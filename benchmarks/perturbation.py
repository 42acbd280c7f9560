"""What perturbing an image costs, against one explanation and ten forwards of the same batch.

Transformer attribution of the predicted class, positive direction, nine masked forwards; both sides alternate in
one process, the figure is the median ratio. Target: at most 1.15.

python -m benchmarks.perturbation [--model vit_base_patch16_224] [--batch 8] [--runs 5]
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vitx
from benchmarks.models import random_model
from benchmarks.targets import limit_of
from benchmarks.timing import alternate, median_ratio
from vitx.evaluation.comparison import Comparison
from vitx.evaluation.perturbation import explain_and_perturb


def figures(model: str = "vit_base_patch16_224", batch: int = 8, runs: int = 5) -> dict[str, float]:
    """One direction of Table 2.

    Args:
      model: a name of vitx's registry.
      batch: images at once.
      runs: of each side.

    Returns:
      perturbation_seconds, explanation_seconds and forward_seconds of a batch; explanation_over_forward; and
      perturbation_over_yardstick, its time over that of one explanation and ten forwards.
    """
    network = random_model(model)
    comparison = Comparison(
        ("transformer_attribution",), ("predicted",), ("perturbation",), ("positive",)
    )
    generator = np.random.default_rng(0)
    pixels = generator.random((batch, *network.preprocess.size, 3), np.float32)
    targets = generator.integers(0, network.num_classes, batch).astype(np.int32)
    images = jnp.asarray((pixels - 0.5) / 0.5)

    @jax.jit
    def forward(network: Any, images: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return network(images)

    sides = {
        "perturbation": lambda: explain_and_perturb(
            network, comparison, pixels, targets, directions=("positive",)
        ),
        "explanation": lambda: vitx.explain(network, images),
        "forward": lambda: forward(network, images),
    }
    seconds = {name: np.array(times) for name, times in alternate(sides, runs).items()}
    yardstick = seconds["explanation"] + 10 * seconds["forward"]
    medians = {f"{name}_seconds": float(np.median(times)) for name, times in seconds.items()}
    return medians | {
        "explanation_over_forward": median_ratio(seconds["explanation"], seconds["forward"]),
        "perturbation_over_yardstick": median_ratio(seconds["perturbation"], yardstick),
    }


def main() -> None:
    """Prints seconds a batch, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_base_patch16_224", help="of vitx's registry")
    parser.add_argument("--batch", type=int, default=8, help="images at once")
    parser.add_argument("--runs", type=int, default=5, help="of each side")
    options = parser.parse_args()
    found = figures(**vars(options))
    device = jax.devices()[0].device_kind
    print(f"{options.model}, batch {options.batch}, {device}, {options.runs} runs each")
    for name in ("perturbation", "explanation", "forward"):
        print(f"{name}: {found[f'{name}_seconds']:.3f} s a batch")
    print(f"explanation / forward: {found['explanation_over_forward']:.2f}")
    ratio = found["perturbation_over_yardstick"]
    print(
        f"perturbation / (explanation + 10 forwards): {ratio:.3f} (target {limit_of('perturbation')})"
    )


if __name__ == "__main__":
    main()
