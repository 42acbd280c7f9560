"""What faster masked forwards change in Table 2's figures: accuracies and areas, on the demo's model and pictures.

Pictures of `shapes`, split "hard", [Re]'s six methods, target class. "tf32" is emulated (benchmarks/emulated.py).

python -m benchmarks.masked [--model runs/shapes/classifier] [--images 256]
"""

import jax
import jax.numpy as jnp
import numpy as np

import vitx
from benchmarks.command import parse_options
from benchmarks.emulated import emulated
from benchmarks.tables import print_table
from vitx.data.datasets.shapes import draw
from vitx.data.transforms import resize_image, resize_maps
from vitx.evaluation.masked import in_bfloat16
from vitx.evaluation.perturbation import DIRECTIONS, area_under_curve, perturb_batch
from vitx.relevance.methods import TABLE_METHODS


def main(model: str = "runs/shapes/classifier", images: int = 256) -> None:
    """Prints a table in Markdown."""
    network = vitx.load(model)
    drawn = [draw(0, "hard", index) for index in range(images)]
    size = network.preprocess.size
    pixels = np.stack([resize_image(d.image, size) for d in drawn]).astype(np.float32) / 255
    targets = np.array([d.mask.max() - 1 for d in drawn], np.int32)  # one object a picture
    mean, std = network.preprocess.mean, network.preprocess.std
    inputs = (pixels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    _, maps = vitx.explain_many(network, inputs, targets)
    heatmaps = jnp.stack([resize_maps(each, size) for each in maps.values()], 1)
    reduced = in_bfloat16(network)
    forwards = {
        "float32": lambda x: network(x),
        "tf32": emulated(lambda x: network(x), "tf32"),
        "bfloat16": lambda x: reduced(x),
    }
    found = {
        name: perturb_batch(run, pixels, heatmaps, targets, mean=mean, std=std)
        for name, run in forwards.items()
    }
    print(
        f"{images} pictures, accuracy {float(found['float32']['positive'][:, 0, 0].mean()):.3f}\n"
    )
    rows = []
    for name, right in found.items():
        changed, most = 0.0, 0.0
        for direction in DIRECTIONS:
            ours, full = (np.array(each[direction]) for each in (right, found["float32"]))
            ours[..., 0] = full[..., 0]  # the clean forward stays float32 (`explain_and_perturb`)
            changed += float((ours != full)[..., 1:].mean()) / len(DIRECTIONS)
            areas = [area_under_curve(each.mean(0)) for each in (ours, full)]
            most = max(most, float(np.abs(areas[0] - areas[1]).max()))
        rows.append((name, f"{100 * changed:.2f}", f"{100 * most:.2f}"))
    print_table(("type", "outcomes changed, %", "largest change of an AUC, points"), rows)
    print(f"\nmethods: {', '.join(TABLE_METHODS)}; {jax.devices()[0].device_kind}")


if __name__ == "__main__":
    main(**parse_options(main))
