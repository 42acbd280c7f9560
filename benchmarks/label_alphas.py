"""How good the dense CRF's labels are at each alpha, on training images that went through the pipeline.

python -m benchmarks.label_alphas --workdir runs/shapes
"""

import jax.numpy as jnp
import numpy as np
from absl import app, flags

from configs import shapes
from tests.runs import begun
from vitx.data.transforms import resize_maps
from vitx.evaluation.metrics import confusion_matrix, mean_iou
from vitx.pipeline.artifacts import read_seed_maps, seeded
from vitx.pseudomasks.crf import background_channel, dense_crf

_WORKDIR = flags.DEFINE_string("workdir", "runs/shapes", "A finished run of configs/shapes.py.")
_IMAGES = flags.DEFINE_integer("images", 80, "Training images to look at.")
ALPHAS = (4, 8, 16, 32, 64, 128)


def main(argv: list[str]) -> None:
    """Prints a table in Markdown."""
    run = begun(shapes.get_config(), _WORKDIR.value)
    source, seeds = seeded(run, "train"), run.finished("seeds")
    tables = {alpha: np.zeros((len(source.classes),) * 2, np.int64) for alpha in ALPHAS}
    for index in range(_IMAGES.value):
        example = source[index]
        stored, classes = read_seed_maps(seeds, "train", example.id, source.most_classes)
        seed_maps = resize_maps(jnp.asarray(stored), example.image.shape[:2])
        backgrounds = jnp.stack([background_channel(seed_maps, alpha) for alpha in ALPHAS])
        seed_maps = jnp.broadcast_to(seed_maps, (len(ALPHAS), *seed_maps.shape))
        posteriors = dense_crf(
            example.image[None],
            jnp.concatenate([backgrounds[:, None], seed_maps], 1)[None],
            present=np.concatenate([[True], classes >= 0])[None],
        )[0]
        names = np.concatenate([[0], np.maximum(classes, 0) + 1])
        for alpha, posterior in zip(ALPHAS, np.asarray(posteriors), strict=True):
            mask = names[posterior.argmax(0)]
            tables[alpha] += confusion_matrix(mask, example.truth, len(source.classes))
    print("| alpha | mIoU | object precision | object recall | background precision |")
    print("|---|---|---|---|---|")
    for alpha, table in tables.items():
        right = np.trace(table[1:, 1:])
        figures = [
            mean_iou(table),
            right / max(table[:, 1:].sum(), 1),
            right / table[1:].sum(),
            table[0, 0] / table[:, 0].sum(),
        ]
        print(f"| {alpha} | {' | '.join(f'{100 * figure:.1f}' for figure in figures)} |")


if __name__ == "__main__":
    app.run(main)
