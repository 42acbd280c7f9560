import io
import json
import os
import signal
import struct
import subprocess
import sys

import pytest
from tensorboardX.proto import event_pb2

from vitx import run
from vitx.files import WorkdirError, WriteError
from vitx.run import MetricsWriter, Stopped, StopRequest, clean_exit, progress, read_metrics


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
        metrics.rewind(0)
        for step in (1, 2, 3):
            metrics.write(step, {"loss": 1 / step, "bad": float("nan")})
        assert metrics.read()[1] == {"step": 2, "loss": 0.5, "bad": None}
    with (tmp_path / "a" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # a kill in the middle of a line
    with MetricsWriter(tmp_path / "a") as metrics:
        assert [line["step"] for line in metrics.read()] == [1, 2, 3]
        metrics.rewind(2)
        assert [line["step"] for line in metrics.read()] == [1, 2]
        metrics.write(3, {"loss": 7})
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    assert read_metrics(tmp_path / "a")[-1] == {"step": 3, "loss": 7.0}
    assert read_metrics(tmp_path / "none") == []


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
    metrics = MetricsWriter(tmp_path)
    metrics.path.mkdir()
    with pytest.raises(WriteError, match=r"cannot write \S*metrics.jsonl"):
        metrics.write(1, {"loss": 1})


def test_progress_without_a_terminal_is_sparse(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(run.time, "monotonic", lambda: now[0])
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
from vitx.run import StopRequest, clean_exit
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
