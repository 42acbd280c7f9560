import contextlib
import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tensorboardX.proto import event_pb2

from tests.runtime.test_workers import alive
from vitx.runtime import progress as module
from vitx.runtime.files import WorkdirError, WriteError
from vitx.runtime.metrics import MetricsWriter, read_metrics
from vitx.runtime.progress import progress
from vitx.runtime.signals import Stopped, StopRequest, clean_exit


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_held_until_it_is_safe(number, capsys):
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=number.name) as stopped, StopRequest() as stop:
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
        assert signal.getsignal(signal.SIGINT) != before
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


def test_metrics_are_read_back_and_rewound(tmp_path):
    with MetricsWriter(tmp_path / "a") as metrics:
        for step in (1, 2, 3):
            metrics.write(step, {"loss": 1 / step, "bad": float("nan")})
    assert read_metrics(tmp_path / "a")[1] == {"step": 2, "loss": 0.5, "bad": None}
    with (tmp_path / "a" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # a kill in the middle of a line
    assert [line["step"] for line in read_metrics(tmp_path / "a")] == [1, 2, 3]
    with MetricsWriter(tmp_path / "a", 2) as metrics:
        assert [line["step"] for line in read_metrics(tmp_path / "a")] == [1, 2]
        metrics.write(3, {"loss": 7})
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    assert read_metrics(tmp_path / "a")[-1] == {"step": 3, "loss": 7.0}
    assert read_metrics(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"step": 1}\n\xff\xfe\x00\n{"step": 3}\n', r"line 2 \("),
        (b'{"step": 1}\n{"st\n{"step": 3}\n', r"line 2 \("),
        (b"[1]\n", r"line 1 \(it is no JSON object\)"),
        (b"3\n", r"line 1 \(it is no JSON object\)"),
        (b'{"step": "x"}\n', r"line 1 \(its step is 'x'\)"),
        (b'{"loss": 0.5}\n', r"line 1 \(its step is None\)"),
        (b'{"step": 1, "loss": [2]}\n', r"line 1 \(its loss is \[2\], no number\)"),
        (b"[" * 100_000 + b"\n", r"line 1 \("),
    ],
)
def test_damaged_metrics_are_named(tmp_path, content, message):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"metrics\.jsonl is damaged in {message}") as error:
        MetricsWriter(tmp_path, 5)
    assert "delete that line" in str(error.value) and len(str(error.value).splitlines()) == 1
    assert path.read_bytes() == content


@pytest.mark.parametrize("cut", [b'{"step": 2, "lo', b"\0" * 40, b"\xff"])
def test_a_last_line_that_is_cut_is_left_out(tmp_path, cut):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": null}\n' + cut)
    assert read_metrics(tmp_path) == [{"step": 1, "loss": None}]


def tensorboard_scalars(folder):
    """Reads event files by their published layout: length, checksum, event, checksum."""
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            at += length + 16
    return found


def test_tensorboard_gets_the_same_numbers(tmp_path):
    with MetricsWriter(tmp_path) as metrics:
        metrics.write(3, {"train/loss": 0.5, "val/map": 0.25})
    assert tensorboard_scalars(tmp_path) == [(3, "train/loss", 0.5), (3, "val/map", 0.25)]


def test_a_full_disk_is_one_line(tmp_path):
    with MetricsWriter(tmp_path) as metrics:
        (tmp_path / "metrics.jsonl").unlink()
        (tmp_path / "metrics.jsonl").mkdir()
        with pytest.raises(WriteError, match=r"cannot write \S*metrics.jsonl"):
            metrics.write(1, {"loss": 1})


def test_progress_without_a_terminal_is_sparse(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    file = io.StringIO()
    with progress(100, "seeds", start=20, file=file) as bar:
        for _ in range(80):
            now[0] += 0.5
            bar.advance(loss=0.25)
    lines = file.getvalue().splitlines()
    assert lines[0] == "seeds: 40/100, 10 s, 30 s left, loss 0.25"
    assert lines[-1] == "seeds: 100/100, 40 s, loss 0.25"
    assert len(lines) == 5


def test_progress_in_a_terminal_is_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    file = Terminal()
    with progress(4, "seeds", file=file) as bar:
        for _ in range(4):
            bar.advance(loss=0.25)
    assert "4/4" in file.getvalue()
    assert "loss 0.25" in file.getvalue()


@pytest.mark.slow
def test_ctrl_c_ends_a_program_with_130(tmp_path):
    script = """
import time
from vitx.runtime.signals import StopRequest, clean_exit
with clean_exit(), StopRequest() as stop:
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
        stop.check()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "stopped by SIGINT; the same command goes on from here"


@contextlib.contextmanager
def ending(process):
    """A process that is killed where a test fails: pytest would wait for it for ever."""
    with process:
        try:
            yield
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_loader_processes_end_with_their_run(number, tmp_path):
    script = """
import multiprocessing, signal, sys, time
from vitx.data import loader
from vitx.models.vit import Preprocess
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
    process = subprocess.Popen(
        [sys.executable, str(path), str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with ending(process):
        loaders = [int(pid) for pid in process.stdout.readline().split()]
        process.send_signal(number)
        if number != signal.SIGKILL:
            told = [process.stderr.readline() for _ in range(2)]
            assert "again to stop at once" in told[1], told
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
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with ending(process):
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
