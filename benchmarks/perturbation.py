"""What perturbing an image costs, against one explanation and ten forwards of the same batch.

Transformer attribution of the predicted class, positive direction, nine masked forwards.

python -m benchmarks.perturbation [--model vit_base_patch16_224] [--batch 8] [--runs 5]
"""

from functools import partial

import numpy as np

import vitx
from benchmarks.command import run
from benchmarks.models import forward, random_images, random_model
from benchmarks.timing import alternate, median_ratio
from vitx.evaluation.comparison import Comparison
from vitx.evaluation.perturbation import explain_and_perturb


def figures(model: str = "vit_base_patch16_224", batch: int = 8, runs: int = 5) -> dict[str, float]:
    """One direction of Table 2.

    Returns:
      perturbation_seconds, explanation_seconds and forward_seconds of a batch; explanation_over_forward; and
      perturbation_over_yardstick, its ratio to the time of one explanation and ten forwards.
    """
    network = random_model(model)
    comparison = Comparison(
        ("transformer_attribution",), ("predicted",), ("perturbation",), ("positive",)
    )
    generator = np.random.default_rng(0)
    pixels = generator.random((batch, *network.preprocess.size, 3), np.float32)
    targets = generator.integers(0, network.num_classes, batch).astype(np.int32)
    images = random_images(network, batch)
    perturb = partial(explain_and_perturb, network, comparison, pixels, targets)
    sides = {
        "perturbation": partial(perturb, directions=("positive",)),
        "explanation": partial(vitx.explain, network, images),
        "forward": partial(forward, network, images),
    }
    seconds = alternate(sides, runs)
    yardstick = seconds["explanation"] + 10 * seconds["forward"]
    return {f"{name}_seconds": np.median(times) for name, times in seconds.items()} | {
        "explanation_over_forward": median_ratio(seconds["explanation"], seconds["forward"]),
        "perturbation_over_yardstick": median_ratio(seconds["perturbation"], yardstick),
    }


if __name__ == "__main__":
    run("perturbation", figures)
