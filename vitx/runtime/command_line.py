"""The command line of experiments: of `vitx train`, `vitx evaluate` and the like, `train.py` and `evaluate.py`."""

import contextlib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from vitx import parallel
from vitx.runtime import config_files
from vitx.runtime.experiment import Run, Stage, check_options, run_stages
from vitx.runtime.files import WriteError, first_line, write_bytes
from vitx.runtime.signals import StopRequest, clean_exit, exit_together
from vitx.runtime.workdir import Workdir

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment: a file, or a name that `vitx configs` lists.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run, or gs://BUCKET/FOLDER; an existing one resumes. Default: runs/ and the config's name.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "Several hosts: host:port of process 0, the same for all."
)
_PROCESSES = flags.DEFINE_integer("num_processes", None, "Several hosts: how many processes.")
_PROCESS = flags.DEFINE_integer("process_id", None, "Several hosts: this process, from 0.")
_MULTIHOST = flags.DEFINE_boolean(
    "multihost", False, "Several hosts, on a cluster that gives JAX the three values above."
)


_FORMAT: Final = warnings.formatwarning
_EXTRA: Final = ("array_record", "grain", "h5py", "tensorboardX", "tensorflow_datasets")
"""Packages that the extra `train` of pyproject.toml brings; they are imported only where they are needed."""


def launch(
    stages: Sequence[Stage], before: Sequence[Stage] = (), after: Sequence[Stage] = ()
) -> None:
    """Runs stages: reads the flags, locks the workdir, and runs the selected stages that are not done.

    Exit codes: 0 for success; 130 or 143 if a signal stopped the run; 1 if it failed; 2 if the input was wrong, with
    the error in one line and its traceback in the workdir's `error.txt`. Several processes share one lock, and if one
    stops, all stop.

    Args:
        stages: The command's own stages, in order.
        before: Stages of the experiment that run in another command before these.
        after: Stages that run in another command after these; they are checked before any stage runs.
    """
    try:
        sys.argv = config_files.with_found(sys.argv)  # where ml_collections looks, too
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    flags.mark_flags_as_required(["config"])
    app.run(lambda argv: _main(argv, stages, before, after), flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags; an error is one line and exit code 2."""
    try:
        rest = flags.FLAGS(argv)
        getattr(_CONFIG.value, "stages", None)  # an unreadable config raises its error only here
        return rest
    except OSError as error:
        message = f"cannot read the config: {str(error).splitlines()[-1].strip()}"
    except flags.Error as error:
        message = " ".join(str(error).split())
    except (AttributeError, KeyError) as error:
        if not (message := _unknown(argv, str(error))):
            raise  # an error in the config file itself
    print(f"error: {message} (--helpshort lists the flags)", file=sys.stderr)
    raise SystemExit(2)


def _unknown(argv: list[str], error: str) -> str:
    """Names the flag that sets an option that the config does not have; "" if the error is another one."""
    if not (name := re.search(r"'(\w+)\\*'", error)):
        return ""
    options = (argument.partition("=")[0] for argument in argv)
    given = [option for option in options if re.match(rf"--?(no)?config\..*\b{name[1]}\b", option)]
    meant = re.search(r'Did you mean "(\w+)"', error)
    hint = f": did you mean {meant[1]!r}?" if meant else ""
    return f"{given[0]}: the config has no option {name[1]!r}{hint}" if given else ""


def _main(
    argv: list[str], stages: Sequence[Stage], before: Sequence[Stage], after: Sequence[Stage]
) -> None:
    if len(argv) > 1:
        print(f"error: unexpected argument {argv[1]!r}: flags begin with --", file=sys.stderr)
        raise SystemExit(2)
    warnings.formatwarning = _as_note
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)  # of the libraries; the run prints its own progress
    _keep_compiled_programs()
    with exit_together(), clean_exit():
        if _MULTIHOST.value or {_COORDINATOR.value, _PROCESSES.value, _PROCESS.value} != {None}:
            _start()
        workdir = _workdir()
        with _locked(workdir), StopRequest() as stop:
            parallel.barrier()  # process 0 has removed the leftovers of killed runs
            known = {stage.name: stage for stage in (*stages, *before, *after)}
            _run(workdir, stop, known, stages, after)


def _as_note(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """A warning for users as one line; other ones say where in the code they are from."""
    if category is UserWarning:
        return f"note: {message}\n"
    return _FORMAT(message, category, filename, lineno, line)


def _locked(workdir: Workdir) -> contextlib.AbstractContextManager[Any]:
    """Process 0 holds the lock for all processes of a run."""
    return workdir.lock() if parallel.is_first_process() else contextlib.nullcontext()


def _run(
    workdir: Workdir,
    stop: StopRequest,
    known: Mapping[str, Stage],
    stages: Sequence[Stage],
    after: Sequence[Stage],
) -> None:
    number = parallel.process_shard()[0]
    report = workdir.folder / (f"error.{number}.txt" if number else "error.txt")
    report.unlink(missing_ok=True)
    try:
        run = Run(_CONFIG.value, workdir, stop, known)
        check_options(run.config, run.stages)
        run_stages(run, stages, after)
    except (ValueError, FileNotFoundError, ImportError, MemoryError) as error:
        print(f"error: {explained(error)}\n(details: {report})", file=sys.stderr)
        with contextlib.suppress(WriteError):
            write_bytes(report, traceback.format_exc().encode(errors="backslashreplace"))
        raise SystemExit(2) from None


def explained(error: Exception) -> str:
    """The error's text; where a package is missing that the extra `train` brings, how to install it."""
    package = (getattr(error, "name", None) or "").partition(".")[0]
    if not isinstance(error, ImportError) or package not in _EXTRA:
        return str(error)
    return f"the package {package} is not installed: pip install 'vitx[train]', or in a clone '.[train]'"


def _start() -> None:
    try:
        parallel.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    except (ValueError, RuntimeError) as error:
        print(f"error: cannot start the processes together: {first_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None


def _workdir() -> Workdir:
    config = Path(config_flags.get_config_filename(flags.FLAGS["config"]))
    try:
        return Workdir(Path("runs", config.stem) if _WORKDIR.value is None else _named_folder())
    except (ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _named_folder() -> str | Path:
    """The folder that --workdir names; "~" and "~user" are home folders.

    Raises:
        ValueError: The flag is empty, or the home folder is not known.
    """
    named = _WORKDIR.value or ""
    if not named.strip():
        raise ValueError(
            "--workdir is empty: name a folder, or leave the flag out for runs/ and the config's name"
        )
    try:
        return Path(named).expanduser() if named.startswith("~") else named
    except RuntimeError:
        raise ValueError(
            f"--workdir={named}: the home folder is not known; write the folder's full path"
        ) from None


def _keep_compiled_programs() -> None:
    """Keeps compiled programs for the next start, in ~/.cache/vitx/jax unless JAX_COMPILATION_CACHE_DIR is set."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    caches = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = (Path(caches) if caches else Path.home() / ".cache") / "vitx" / "jax"
    except RuntimeError:  # no HOME, and a user that the system does not list
        print(
            "compiled programs are not kept: the home folder is not known; set JAX_COMPILATION_CACHE_DIR=FOLDER in "
            "the environment to keep them",
            file=sys.stderr,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
