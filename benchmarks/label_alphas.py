"""How good the dense CRF's labels are at each alpha, on training images that went through the pipeline.

python -m benchmarks.label_alphas --workdir runs/shapes
"""

import jax.numpy as jnp
import numpy as np

from benchmarks.command import parse_options
from benchmarks.tables import print_table
from configs import shapes
from tests.runs import begun
from vitx.data.transforms import resize_maps
from vitx.evaluation.metrics import confusion_matrix, mean_iou
from vitx.pipeline.artifacts import read_seed_maps, seeded
from vitx.pseudomasks.crf import background_channel, dense_crf

ALPHAS = (4, 8, 16, 32, 64, 128)


def main(workdir: str = "runs/shapes", images: int = 80) -> None:
    """Prints a table in Markdown, of a finished run of configs/shapes.py and so many of its training images."""
    run = begun(shapes.get_config(), workdir)
    source, seeds = seeded(run, "train"), run.finished("seeds")
    confusions = {alpha: np.zeros((len(source.classes),) * 2, np.int64) for alpha in ALPHAS}
    for index in range(images):
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
        values = np.concatenate([[0], np.maximum(classes, 0) + 1])
        for alpha, posterior in zip(ALPHAS, np.asarray(posteriors), strict=True):
            mask = values[posterior.argmax(0)]
            confusions[alpha] += confusion_matrix(mask, example.truth, len(source.classes))
    rows = []
    for alpha, confusion in confusions.items():
        right = np.trace(confusion[1:, 1:])
        figures = [
            mean_iou(confusion),
            right / max(confusion[:, 1:].sum(), 1),
            right / confusion[1:].sum(),
            confusion[0, 0] / confusion[:, 0].sum(),
        ]
        rows.append([str(alpha), *(f"{100 * figure:.1f}" for figure in figures)])
    print_table(
        ("alpha", "mIoU", "object precision", "object recall", "background precision"), rows
    )


if __name__ == "__main__":
    main(**parse_options(main))
