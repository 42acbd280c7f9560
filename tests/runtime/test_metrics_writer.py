import io
import json
import struct

import pytest
from tensorboardX.proto import event_pb2

from vitx.runtime.files import WriteError, write_bytes
from vitx.runtime.metrics import MetricsWriter, read_metrics
from vitx.runtime.progress import progress


def test_metrics_are_read_back_and_rewound(place):
    path = place / "metrics.jsonl"
    with MetricsWriter(place) as metrics:
        for step in (1, 2, 3):
            metrics.write(step, {"loss": 1 / step, "bad": float("nan")})
        assert read_metrics(place)[1] == {
            "step": 2,
            "loss": 0.5,
            "bad": None,
        }  # before it is closed
    write_bytes(path, path.read_bytes() + b'{"step": 4, "lo')  # a kill in the middle of a line
    assert [line["step"] for line in read_metrics(place)] == [1, 2, 3]
    with MetricsWriter(place, 2) as metrics:
        assert [line["step"] for line in read_metrics(place)] == [1, 2]
        metrics.write(3, {"loss": 7})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    assert read_metrics(place)[-1] == {"step": 3, "loss": 7.0}
    assert read_metrics(place / "none") == []


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
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while "events.out.tfevents." in path.name and at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            at += length + 16
    return found


def test_tensorboard_gets_the_same_numbers(place):
    with MetricsWriter(place, 2) as metrics:
        metrics.write(3, {"train/loss": 0.5, "val/map": 0.25})
    assert tensorboard_scalars(place) == [(3, "train/loss", 0.5), (3, "val/map", 0.25)]


def test_a_disk_that_refuses_is_one_line(tmp_path):
    with MetricsWriter(tmp_path) as metrics:
        (tmp_path / "metrics.jsonl").unlink()
        (tmp_path / "metrics.jsonl").mkdir()
        with pytest.raises(WriteError, match=r"cannot write \S*metrics.jsonl"):
            metrics.write(1, {"loss": 1})


def test_only_the_first_process_writes_metrics_and_shows_progress(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    file = io.StringIO()
    with MetricsWriter(tmp_path) as metrics, progress(1, "seeds", file=file) as bar:
        metrics.write(1, {"loss": 1.0})
        bar.advance()
    assert not list(tmp_path.iterdir()) and not file.getvalue()
