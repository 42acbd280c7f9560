"""What would end a later stage, found before the first one begins."""

import importlib.util

from vitx.pipeline.artifacts import SPLITS, seeded
from vitx.pseudomasks.crf import MISSING_BACKEND, CRFParameters, require_size
from vitx.runtime.experiment import Run, wanted_stages
from vitx.training.optimizer import check_batch

# The splits that each stage reads.
_SPLITS = {
    "classifier": ("classifier.train_split", "classifier.val_split", "data.val_split"),
    "seeds": ("seeds.train_split", "data.val_split"),
    "affinity": ("affinity.train_split", "affinity.val_split"),
    "masks": ("walk.split",),
}


def preflight(run: Run) -> None:
    """Reads every split once, and looks at what the stages to come need of them: batches, CRF, sizes of images.

    Raises:
      ValueError, FileNotFoundError: naming the key of the config.
      ImportError: where the CRF's package is missing.
    """
    wanted = wanted_stages(run.config)
    run.require_readable(run.config.data.val_split)
    for key in dict.fromkeys(key for stage in wanted for key in _SPLITS.get(stage, ())):
        section, name = key.split(".")
        split = run.config[section][name]
        try:
            run.source(split)
            run.require_readable(split)
        except ValueError as error:
            raise ValueError(f"config.{key}={split}: {error}") from error
    for stage in ("classifier", "affinity"):
        if stage in wanted and not run.stage(stage).done:
            config = run.config[stage]
            check_batch(config, stage, len(run.source(config.train_split)))
    if "labels" in wanted and not run.stage("labels").done:
        _check_crf(run)


def _check_crf(run: Run) -> None:
    if run.config.labels.backend == "pydensecrf":
        if importlib.util.find_spec("pydensecrf") is None:
            raise ImportError(MISSING_BACKEND)
        return
    parameters = CRFParameters(**run.config.labels.crf)
    sizes: set[tuple[int, int]] = set()
    for source in (seeded(run, split) for split in SPLITS):
        for index in range(len(source)):
            size = source.size(index)
            if size in sizes:
                continue
            sizes.add(size)
            try:
                require_size(*size, run.config.labels.backend, parameters)
            except ValueError as error:
                raise ValueError(f"image {source.identifier(index)}: {error}") from error
