"""What would end a later stage, found before the first one begins."""

import importlib.util

from vitx.cues import SPLITS, pool_factor, seeded
from vitx.pseudomasks.crf import BACKENDS, EXACT_MAX_PIXELS, MISSING_BACKEND, too_large
from vitx.stages import Run, wanted_stages

# The splits that each stage reads.
_SPLITS = {
    "classifier": ("classifier.train_split", "classifier.val_split", "data.val_split"),
    "seeds": ("seeds.train_split", "data.val_split"),
    "affinity": ("affinity.train_split", "affinity.val_split"),
    "masks": ("walk.split",),
}


def preflight(run: Run) -> None:
    """Opens every split, and looks at what the stages to come need: grid, CRF, sizes of images.

    Raises:
      ValueError, FileNotFoundError: naming the key of the config.
      ImportError: where the CRF's package is missing.
    """
    wanted = wanted_stages(run.config)
    run.source(run.config.data.val_split)
    for key in dict.fromkeys(key for stage in wanted for key in _SPLITS.get(stage, ())):
        section, name = key.split(".")
        split = run.config[section][name]
        try:
            run.source(split)
        except ValueError as error:
            raise ValueError(f"config.{key}={split}: {error}") from error
    if {"labels", "affinity", "masks"} & set(wanted):
        pool_factor(run.config.model.image_size, run.config.affinity.grid)
    if "labels" in wanted and not run.stage("labels").done:
        _check_crf(run)


def _check_crf(run: Run) -> None:
    backend = run.config.labels.backend
    if backend not in BACKENDS:
        raise ValueError(
            f"config.labels.backend must be one of {', '.join(BACKENDS)}, not {backend!r}"
        )
    if backend == "pydensecrf":
        if importlib.util.find_spec("pydensecrf") is None:
            raise ImportError(MISSING_BACKEND)
        return
    for source in (seeded(run, split) for split in SPLITS):
        for index in range(len(source)):
            height, width = source.size(index)
            if height * width > EXACT_MAX_PIXELS:
                raise ValueError(f"image {source.identifier(index)}: {too_large(height, width)}")
