"""How a run ends: signals that wait for a safe point, exit codes, and an end of all processes with the first."""

import contextlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final

import jax

from vitx.runtime.files import WorkdirError


class Stopped(Exception):
    """A signal asked the run to stop, and it did so at a safe point.

    Attributes:
        signal: The signal.
    """

    def __init__(self, signal_number: int):
        self.signal = signal.Signals(signal_number)
        super().__init__(f"stopped by {self.signal.name}; the same command goes on from here")

    @property
    def exit_code(self) -> int:
        """The exit code of a process that a signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signal


class StopRequest:
    """Turns Ctrl-C and SIGTERM into a flag that the run checks where stopping is safe.

    Use as a context in the main thread. The second signal acts as if the context were not there; worker processes end
    with the run, see `vitx.runtime.workers`.

    Attributes:
        signal: The number of the signal that came, 0 if none did.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()  # Python would handle a second signal only after a long call of C has returned
        print("\nstopping at the next safe point; again to stop at once", file=sys.stderr)

    def check(self) -> None:
        """Raises Stopped if a signal came: call where everything is saved."""
        if self.signal:
            raise Stopped(self.signal)


@contextlib.contextmanager
def clean_exit() -> Iterator[None]:
    """Ends the program with one line and the right exit code after errors that tell the user what to do."""
    try:
        yield
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        raise SystemExit(stopped.exit_code) from None
    except (WorkdirError, FloatingPointError) as error:
        raise SystemExit(f"error: {error}") from None


# What collectives and JAX's coordination report when a process is gone; other errors are this process's own.
_PROCESS_GONE: Final = re.compile(
    "gloo|nccl|coordinat|heartbeat|barrier|preempt|connection|peer|unavailable|deadline|aborted",
    re.IGNORECASE,
)


@contextlib.contextmanager
def exit_together() -> Iterator[None]:
    """Ends this process at once when it fails or when another one has ended.

    A process that ends early must end all: JAX would wait minutes for those that are gone.
    """
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        match error:
            case SystemExit(code=int(code)):
                _exit(code)
            case SystemExit(code=message):
                print(message, file=sys.stderr)
            case jax.errors.JaxRuntimeError() if _PROCESS_GONE.search(str(error)):
                print(
                    f"error: another process of this run ended or is out of reach ({str(error).splitlines()[0]}): its "
                    "own messages say why. Start all processes again with the same --workdir: finished work is kept",
                    file=sys.stderr,
                )
            case _:
                traceback.print_exc()
        _exit(1)


def _exit(code: int) -> None:
    """Exits without the barrier at which JAX waits for all processes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
