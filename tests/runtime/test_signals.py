"""How a run ends: by a signal, with one line, and with its loader and other processes."""

import os
import signal
import time

import jax
import pytest

from tests.runtime.scripts import alive, started
from vitx.runtime.files import WorkdirError
from vitx.runtime.signals import Stopped, StopRequest, clean_exit, exit_together


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_held_until_it_is_safe(number, capsys):
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=number.name) as stopped, StopRequest() as stop:
        assert signal.getsignal(number) != before
        stop.check()
        assert not stop.signal
        os.kill(os.getpid(), number)
        assert stop.signal == number
        assert signal.getsignal(number) == before  # so that a second one acts at once
        stop.check()
    assert stopped.value.exit_code == 128 + number
    assert "stopping at the next safe point" in capsys.readouterr().err
    assert signal.getsignal(number) == before


def test_without_a_signal_the_handlers_come_back():
    before = signal.getsignal(signal.SIGINT)
    with StopRequest():
        pass
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize(
    "error, code",
    [(Stopped(signal.SIGTERM), 143), (WorkdirError("no room"), "error: no room")],
)
def test_known_ends_are_one_line(error, code):
    with pytest.raises(SystemExit) as end, clean_exit():
        raise error
    assert end.value.code == code


def test_a_defect_keeps_its_traceback():
    with pytest.raises(KeyError), clean_exit():
        raise KeyError("x")


GONE = "UNKNOWN: Gloo all-reduce failed: Connection closed by peer"
LOCAL = "INTERNAL: CUDNN_STATUS_EXECUTION_FAILED in a local stream"


@pytest.mark.parametrize(
    ("error", "code", "printed", "hidden"),
    [
        (jax.errors.JaxRuntimeError(GONE), 1, "another process of this run ended", "Traceback"),
        (jax.errors.JaxRuntimeError(LOCAL), 1, "Traceback", "another process"),
        (ValueError("its own"), 1, "ValueError: its own", "another process"),
        (SystemExit("error: no room"), 1, "error: no room", "Traceback"),
        (SystemExit(143), 143, "", "Traceback"),
    ],
)
def test_each_of_several_processes_ends_at_once_with_its_own_error(
    monkeypatch, capsys, error, code, printed, hidden
):
    codes: list[int] = []
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr("vitx.runtime.signals._exit", codes.append)
    with exit_together():
        raise error
    errors = capsys.readouterr().err
    assert codes[0] == code and printed in errors and hidden not in errors


@pytest.mark.slow
def test_ctrl_c_ends_a_program_with_130():
    script = """
import time
from vitx.runtime.signals import StopRequest, clean_exit
with clean_exit(), StopRequest() as stop:
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
        stop.check()
"""
    with started(script) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "stopped by SIGINT; the same command goes on from here"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_loader_processes_end_with_their_run(number, tmp_path):
    script = """
import multiprocessing, signal, sys, time
from vitx.data import loader
from vitx.models.design import Preprocess
from vitx.runtime.signals import StopRequest, clean_exit
if __name__ == "__main__":
    source = loader.open_source("shapes/tiny", "train", sys.argv[1])
    batches = loader.training_loader(
        source, preprocess=Preprocess(size=(8, 8)), batch_size=2, epochs=1000, seed=0,
        augment=loader.Augment(), workers=2,
    )
    # Shells have what they start in the background ignore Ctrl-C, and its children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with clean_exit(), StopRequest():
        next(batches)
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        while True:
            time.sleep(0.01)
"""
    path = tmp_path / "script.py"  # loader processes read the main module's file
    path.write_text(script)
    with started(path, tmp_path) as process:
        loaders = [int(pid) for pid in process.stdout.readline().split()]
        process.send_signal(number)
        if number != signal.SIGKILL:
            lines = [process.stderr.readline() for _ in range(2)]
            assert "again to stop at once" in lines[1], lines
            process.send_signal(number)
        process.wait(timeout=60)
    assert len(loaders) == 2
    assert process.returncode == -number
    end = time.monotonic() + 20
    while left := [pid for pid in loaders if alive(pid)]:
        assert time.monotonic() < end, f"loader processes {left} outlive their run"
        time.sleep(0.1)


@pytest.mark.slow
def test_a_second_signal_ends_a_long_call_of_c():
    """Python's own handlers run only after such a call: a compilation, a product of large matrices."""
    script = """
import time
import numpy as np
from vitx.runtime.signals import StopRequest, clean_exit
matrix = np.random.default_rng(0).standard_normal((6000, 6000))
with clean_exit(), StopRequest() as stop:
    print("ready", flush=True)
    while not stop.signal:
        time.sleep(0.01)
    np.linalg.svd(matrix)
"""
    with started(script) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        process.stderr.readline()
        process.stderr.readline()
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        process.wait(timeout=120)
    assert process.returncode == -signal.SIGTERM
    assert time.monotonic() - began < 5, "the svd takes a minute"
