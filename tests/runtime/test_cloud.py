"""Workdirs in a bucket, which here is fsspec's in-memory file system in the place of Google Cloud Storage."""

import json
import os
import signal
import time

import fsspec
import jax
import numpy as np
import pytest
from etils import epath
from flax import nnx
from safetensors.numpy import load, save

from configs import testing
from tests.runs import KNOWN
from tests.small_models import small_vit
from vitx import weights
from vitx.data.palette import decode_mask
from vitx.models.families import IMAGENET
from vitx.pipeline.artifacts import SPLITS, seeded, write_seed_maps
from vitx.report.page import write_report
from vitx.runtime import locks
from vitx.runtime.experiment import Run, run_stages
from vitx.runtime.files import (
    WorkdirError,
    WriteError,
    append_line,
    write_bytes,
    write_json,
)
from vitx.runtime.locks import WorkdirBusy
from vitx.runtime.metrics import MetricsWriter
from vitx.runtime.paths import as_path
from vitx.runtime.signals import Stopped, StopRequest
from vitx.runtime.workdir import Workdir


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks whose seconds are hundredths."""
    for name in ("_REFRESH_SECONDS", "_SETTLE_SECONDS"):
        monkeypatch.setattr(locks, name, getattr(locks, name) / 100)


RUN = "gs://bucket/runs/one"


# Paths and files


def test_names_with_a_scheme_are_buckets(bucket, tmp_path):
    assert isinstance(as_path(RUN), epath.Path)
    assert as_path(as_path(RUN) / "a") == as_path(f"{RUN}/a")
    assert type(as_path("runs/one")) is type(as_path(tmp_path)) is type(tmp_path)
    for name in ("s3://bucket/run", "http://host/run", "gs://", "gs:///"):
        with pytest.raises(ValueError, match=f"{name}: give a local folder or gs://BUCKET/FOLDER"):
            as_path(name)


def test_a_missing_library_is_named(monkeypatch):
    def missing(name, **options):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(ImportError, match=r"^gs:// needs gcsfs, .* install vitx\[gcs\]$"):
        as_path(RUN)


def test_a_bucket_that_refuses_is_one_line(bucket, monkeypatch):
    with pytest.raises(
        WriteError, match=r"^cannot write gs://none/a: there is no such bucket; fix"
    ):
        write_bytes("gs://none/a", b"")
    with pytest.raises(WriteError, match="no such bucket"), Workdir("gs://none/run").lock():
        pass

    class Forbidden(Exception):  # as gcsfs and google.auth have their own
        pass

    def refuse(*arguments, **options):
        raise Forbidden("403: not permitted\nand more")

    monkeypatch.setattr(fsspec.get_filesystem_class("gs"), "pipe_file", refuse)
    for write in (write_bytes, lambda path, data: append_line(path, "x")):
        with pytest.raises(WriteError, match="cannot write gs://bucket/a: 403: not permitted; fix"):
            write(as_path("gs://bucket/a"), b"")
    with pytest.raises(WorkdirError, match="403"), Workdir(RUN).lock():
        pass


# Lock


def lock_of(bucket):
    return json.loads(bucket["/bucket/runs/one/.lock"].getvalue())


def test_one_run_at_a_time_and_the_lock_is_released(bucket):
    with Workdir(RUN).lock() as workdir:
        assert workdir.folder == as_path(RUN)
        message = rf"{RUN} is in use by pid {os.getpid()} on host \S+, last heard of 0 s ago; wait for it .* 180 s"
        with pytest.raises(WorkdirBusy, match=message), Workdir(RUN).lock():
            pass
        assert lock_of(bucket)["holder"].startswith(f"pid {os.getpid()} ")
    assert not bucket
    with pytest.raises(RuntimeError), Workdir(RUN).lock():
        raise RuntimeError("a run that fails")
    assert not bucket


@pytest.mark.parametrize("age, free", [(170, False), (190, True)])
def test_a_lock_that_is_not_refreshed_is_taken_over(bucket, quick, age, free):
    dead = {"holder": "pid 7 on host dead", "token": "x", "time": time.time() - age}
    write_json(f"{RUN}/.lock", dead)
    if free:
        with Workdir(RUN).lock():
            assert lock_of(bucket)["token"] != "x"
        assert not bucket
    else:
        with pytest.raises(WorkdirBusy, match="pid 7 on host dead"), Workdir(RUN).lock():
            pass
        assert lock_of(bucket) == dead


def test_of_two_that_take_over_the_last_has_it(bucket, monkeypatch):
    write_json(f"{RUN}/.lock", {"holder": "pid 7 on host dead", "token": "x", "time": 0})
    other = {"holder": "pid 8 on host quicker", "token": "y", "time": time.time()}
    monkeypatch.setattr(locks.time, "sleep", lambda seconds: write_json(f"{RUN}/.lock", other))
    with pytest.raises(WorkdirBusy, match="in use by pid 8 on host quicker"), Workdir(RUN).lock():
        pass
    assert lock_of(bucket) == other


def test_a_lock_is_refreshed(bucket, quick):
    with Workdir(RUN).lock():
        first = lock_of(bucket)
        time.sleep(1.0)
        last = lock_of(bucket)
    assert last["token"] == first["token"] and last["time"] >= first["time"] + 0.3


def test_a_run_whose_lock_was_taken_stops_and_leaves_it(bucket, quick, capsys):
    other = {"holder": "pid 8 on host other", "token": "y", "time": time.time()}
    with pytest.raises(Stopped) as stopped, Workdir(RUN).lock(), StopRequest() as stop:
        write_json(f"{RUN}/.lock", other)
        for _ in range(1000):
            time.sleep(0.01)
            stop.check()
    assert stopped.value.signal == signal.SIGTERM
    assert f"{RUN} was taken over by pid 8 on host other" in capsys.readouterr().err
    assert lock_of(bucket) == other


def test_a_refresh_that_fails_is_tried_again(bucket, quick, monkeypatch):
    put, failures = locks.put, iter([OSError("no network")] * 2)

    def flaky(path, data, *, new=False):
        if not new and (error := next(failures, None)):
            raise error
        put(path, data, new=new)

    monkeypatch.setattr(locks, "put", flaky)
    with Workdir(RUN).lock():
        first = lock_of(bucket)["time"]
        time.sleep(1.5)
        assert lock_of(bucket)["time"] > first + 0.5


def test_tensorboard_events_arrive_when_the_writer_is_closed(bucket):
    def events():
        return [name for name in bucket if "events.out.tfevents." in name]

    with MetricsWriter(as_path(RUN)) as metrics:
        metrics.write(3, {"train/loss": 0.5})
        assert not events()
    assert len(events()) == 1


# Models


@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_a_model_comes_back_to_the_bit(bucket, name):
    model = small_vit()
    folder = as_path(RUN) / "classifier"
    weights.save(model, folder / name)
    assert list(bucket) == ["/bucket/runs/one/classifier/model.safetensors"]
    loaded = weights.load(folder / name)
    assert loaded.preprocess == model.preprocess
    jax.tree.map(np.testing.assert_array_equal, nnx.state(loaded), nnx.state(model))


def test_what_is_said_beside_a_model_and_by_its_name_counts(bucket):
    model = small_vit(size=(8, 8))
    weights.save(model, "gs://bucket/deit_tiny")
    content = bucket["/bucket/deit_tiny/model.safetensors"].getvalue()
    tensors = load(content)  # without the metadata that vitx writes
    write_bytes("gs://bucket/deit_tiny/model.safetensors", save(tensors))
    write_json("gs://bucket/deit_tiny/config.json", {"pretrained_cfg": {"std": [0.1, 0.2, 0.3]}})
    preprocess = weights.load("gs://bucket/deit_tiny", num_heads=2).preprocess
    assert preprocess.mean == IMAGENET[0]
    assert preprocess.std == (0.1, 0.2, 0.3)


def test_a_model_that_is_not_there_is_named(bucket):
    with pytest.raises(FileNotFoundError, match=r"gs://bucket/none\.npz: there is no such file"):
        weights.load("gs://bucket/none.npz")
    write_bytes("gs://bucket/folder/other", b"")
    with pytest.raises(ValueError, match="gs://bucket/folder: the folder has no checkpoint"):
        weights.load("gs://bucket/folder")


def test_a_digest_does_not_depend_on_where_a_model_lies(bucket, tmp_path):
    weights.save(small_vit(), tmp_path)
    write_bytes(f"{RUN}/model.safetensors", (tmp_path / "model.safetensors").read_bytes())
    assert weights.digest(RUN) == weights.digest(tmp_path)
    with pytest.raises(FileNotFoundError, match="gs://bucket/none: there is no such file"):
        weights.digest("gs://bucket/none")


# A run


def test_a_page_is_written(bucket):
    write_report(as_path(RUN) / "report.html", title="A page", results={}, sections=[])
    assert b"A page" in bucket["/bucket/runs/one/report.html"].getvalue()


@pytest.mark.slow
def test_a_stage_runs_in_a_bucket_and_makes_lost_objects_again(bucket, tmp_path):
    config = testing.get_config()
    config.data.root = str(tmp_path)
    generator = np.random.default_rng(0)
    with Workdir(RUN).lock() as workdir, StopRequest() as stop:
        run = Run(config, workdir, stop, KNOWN)
        seeds = run.stage("seeds")
        with seeds.run():
            for split in SPLITS:
                for example in seeded(run, split):
                    classes = np.flatnonzero(example.labels)
                    seed_maps = generator.random((len(classes), 12, 12), np.float32)
                    write_seed_maps(seeds, split, example.id, seed_maps, classes)
        run_stages(run, [KNOWN["labels"]])

        labels = run.finished("labels")
        names = [name for name in bucket if name.endswith(".png")]
        made = {name: bucket[name].getvalue() for name in names}
        ids = {example.id for example in seeded(run, "train")}
        assert labels.items_done(".png", "train") == ids
        for identifier in ids:
            mask = decode_mask(labels.item(identifier, ".png", "train").read_bytes())
            assert mask.shape == (12, 12)

        for name in names[::3]:
            del bucket[name]
        record = json.loads((labels.folder / "stage.json").read_text())
        write_json(labels.folder / "stage.json", record | {"done": False})
        run_stages(run, [KNOWN["labels"]])
        assert run.finished("labels").items_done(".png", "train") == ids
        train = [name for name in names if "/labels/train/" in name]
        assert {n: bucket[n].getvalue() for n in train} == {n: made[n] for n in train}
    assert not os.path.exists("gs:")
