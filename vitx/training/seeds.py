"""Stage `seeds`: for every image-level label of an image, a cue of where it is."""

import jax
import numpy as np

from vitx import checkpoints
from vitx.cues import SPLITS, cue_file, padded_classes, seeded, write_cues
from vitx.data import pipeline
from vitx.pseudomasks.seeds import class_cues
from vitx.run import progress
from vitx.stages import Run
from vitx.workdir import Stage


def make_seeds(run: Run, stage: Stage) -> None:
    """Writes `<split>/<id>.npz` for each image: classes (K,), and cues (K, H, W) at the input size.

    Which classes an image shows is taken from its labels, on val too.
    """
    config = run.config.seeds
    model = checkpoints.load(run.finished("classifier").folder)

    @jax.jit
    def cue(images: jax.Array, classes: jax.Array) -> jax.Array:
        return class_cues(
            model,
            images,
            classes,
            size=model.preprocess.size,
            start_layer=config.start_layer,
            root=config.root,
            rules=config.rules,
        )

    for split in SPLITS:
        source = seeded(run, split)
        done = stage.items_done(".npz", split)
        batches = pipeline.evaluation_batches(
            source, preprocess=model.preprocess, batch_size=config.batch_size
        )
        with progress(len(source), f"seeds {split}", start=len(done)) as bar:
            for batch in batches:
                if done.issuperset(batch["id"]):
                    continue
                classes = padded_classes(batch["labels"], source.most_classes)
                cues = np.asarray(cue(batch["image"], classes))
                for row in np.flatnonzero(batch["valid"]):
                    path = cue_file(stage, split, batch["id"][row])
                    write_cues(path, cues[row], classes[row])
                bar.advance(int(batch["valid"].sum()))
                run.stop.check()
