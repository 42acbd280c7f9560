"""The command line that `train.py` and `evaluate.py` share."""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from vitx.run import StopRequest, clean_exit
from vitx.stages import Run, run_stages
from vitx.workdir import Stage, Workdir, WriteError, write_bytes

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run; the same one resumes. Default: runs/ and the config's name.",
)
_TRACEBACK = "error.txt"


def launch(
    stages: Mapping[str, Callable[[Run, Stage], None]],
    finish: Callable[[Run], None] = lambda run: None,
) -> None:
    """Reads the flags, locks the workdir, runs the stages that are not done, and calls `finish`.

    Ends with exit code 0; 130 or 143 where a signal stopped it; 1 where the run failed; 2 where the
    input was wrong, with the error in one line and its traceback in the workdir's `error.txt`.
    """
    flags.mark_flags_as_required(["config"])
    app.run(lambda argv: _main(argv, stages, finish))


def _main(
    argv: list[str],
    stages: Mapping[str, Callable[[Run, Stage], None]],
    finish: Callable[[Run], None],
) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)  # the libraries' own; the run prints its progress
    _keep_compiled_programs()
    with clean_exit(), Workdir(_workdir()).lock() as workdir, StopRequest() as stop:
        (workdir.folder / _TRACEBACK).unlink(missing_ok=True)
        try:
            run = Run(_CONFIG.value, workdir, stop)
            run_stages(run, stages)
            finish(run)
        except (ValueError, FileNotFoundError, ImportError) as error:
            report = workdir.folder / _TRACEBACK
            print(f"error: {error}\n(details: {report})", file=sys.stderr)
            with contextlib.suppress(WriteError):
                write_bytes(report, traceback.format_exc().encode())
            raise SystemExit(2) from None


def _workdir() -> Path:
    if _WORKDIR.value is not None:
        return Path(_WORKDIR.value)
    return Path("runs") / Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem


def _keep_compiled_programs() -> None:
    """A second start should not compile again; JAX_COMPILATION_CACHE_DIR names another folder."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vitx" / "jax"
        jax.config.update("jax_compilation_cache_dir", str(folder))
