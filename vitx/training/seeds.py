"""Stage `seeds`: for every image-level label of an image, a cue of where it is."""

from typing import Any

import jax
import numpy as np

from vitx import checkpoints
from vitx.data import pipeline
from vitx.pseudomasks.seeds import class_cues
from vitx.run import progress
from vitx.stages import Run
from vitx.workdir import Stage, read_npz, write_npz

SPLITS = ("train", "val")


def make_seeds(run: Run, stage: Stage) -> None:
    """Writes `<split>/<id>.npz` for each image: classes (K,), and cues (K, H, W) at the model's input size.

    Which classes an image shows is taken from its labels, on val too. Half precision: cues lie in [0, 1].
    """
    config = run.config.seeds
    model = checkpoints.load(run.finished("classifier"))
    cue = jax.jit(
        lambda model, images, classes: class_cues(
            model,
            images,
            classes,
            size=model.preprocess.size,
            start_layer=config.start_layer,
            root=config.root,
            rules=config.rules,
        )
    )
    for split in SPLITS:
        source = seeded(run, split)
        done = stage.items_done(".npz", split)
        width = max_classes(source)
        with progress(len(source), f"seeds {split}", start=len(done)) as bar:
            for batch in pipeline.evaluation_batches(
                source, preprocess=model.preprocess, batch_size=config.batch_size
            ):
                if done.issuperset(batch["id"]):
                    continue
                classes = padded_classes(batch["labels"], width)
                cues = np.asarray(cue(model, batch["image"], classes))
                if not np.isfinite(cues).all():
                    raise FloatingPointError(f"seeds: a cue of {batch['id']} is not finite")
                for row in np.flatnonzero(batch["valid"]):
                    present = classes[row] >= 0
                    write_npz(
                        stage.item(batch["id"][row], ".npz", split),
                        {
                            "cues": cues[row][present].astype(np.float16),
                            "classes": classes[row][present],
                        },
                    )
                bar.advance(int(batch["valid"].sum()))
                run.stop.check()


def seeded(run: Run, split: str) -> pipeline.Source:
    """The images of "train" or "val" that go through the pipeline."""
    config = run.config
    return run.source(config.seeds.train_split if split == "train" else config.data.val_split)


def max_classes(source: pipeline.Source) -> int:
    """The most classes that one image of the source shows, which fixes the arrays' shapes."""
    return int(max(example.labels.sum() for example in source))


def padded_classes(labels: np.ndarray, width: int) -> np.ndarray:
    """Multi-hot labels (B, C) -> class indices int32 (B, width), -1 where an image has fewer."""
    classes = np.full((len(labels), width), -1, np.int32)
    for row, hot in enumerate(labels):
        present = np.flatnonzero(hot)
        classes[row, : len(present)] = present
    return classes


def read_cues(stage: Stage, split: str, identifiers: list[str], width: int) -> Any:
    """Cues float32 (B, width, H, W) and classes (B, width) of some images, padded with zeros and -1."""
    files = [read_npz(stage.item(identifier, ".npz", split)) for identifier in identifiers]
    size = files[0]["cues"].shape[1:]
    cues = np.zeros((len(files), width, *size), np.float32)
    classes = np.full((len(files), width), -1, np.int32)
    for row, file in enumerate(files):
        count = len(file["classes"])
        cues[row, :count], classes[row, :count] = file["cues"], file["classes"]
    return cues, classes
