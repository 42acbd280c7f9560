"""What would end a comparison hours after it began, found before."""

from vitx.runtime.experiment import Run, wanted_stages


def preflight(run: Run) -> None:
    """Reads all images that are to be compared, once; a run of some of them (`limit`) meets bad ones soon enough.

    Raises:
      ValueError: naming what cannot be read, unless such images are left out.
    """
    whole = "methods" in wanted_stages(run.config) and not run.config.methods.images
    if whole and not run.stage("methods").done:
        run.require_readable(run.config.data.val_split)
