import json
import os
import signal
import time

import pytest
from ml_collections import ConfigDict

from tests.runtime.scripts import started
from vitx.runtime.files import write_bytes
from vitx.runtime.locks import WorkdirBusy
from vitx.runtime.workdir import Workdir

HOLD = """
import sys, time
from vitx.runtime.workdir import Workdir
with Workdir(sys.argv[1]).lock():
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_one_run_at_a_time_and_a_killed_one_leaves_no_lock(tmp_path):
    with started(HOLD, tmp_path) as holder:
        assert holder.stdout.readline() == "locked\n"
        message = rf"in use by pid {holder.pid} on host \S+; wait for it"
        with pytest.raises(WorkdirBusy, match=message), Workdir(tmp_path).lock():
            pass
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / ".vitx-abc.tmp").write_text("half")
    (tmp_path / "stage" / "kept.tmp").write_text("not ours")
    with Workdir(tmp_path).lock():
        assert os.listdir(tmp_path / "stage") == ["kept.tmp"]
        with pytest.raises(WorkdirBusy, match=f"pid {os.getpid()}"), Workdir(tmp_path).lock():
            pass
    with Workdir(tmp_path).lock():
        pass


def test_a_stage_is_done_only_when_its_body_ended(place):
    workdir = Workdir(place)
    stage = workdir.stage("seeds", {"alpha": 4})
    with pytest.raises(RuntimeError, match="half way"), stage.run():
        time.sleep(0.02)
        raise RuntimeError("half way")
    again = workdir.stage("seeds", {"alpha": 4})
    assert not again.done
    assert again.seconds >= 0.02
    before = again.seconds
    with again.run():
        time.sleep(0.02)
    assert again.done
    third = workdir.stage("seeds", {"alpha": 4})
    assert third.done
    assert before + 0.02 <= third.seconds < before + 5
    assert third.seconds == again.seconds


def test_other_options_are_refused_and_named(place):
    workdir = Workdir(place)
    options = {"alpha": 4, "model": {"name": "tiny", "sizes": (1, 2)}}
    with workdir.stage("seeds", options).run():
        pass
    assert workdir.stage("seeds", ConfigDict(options)).done
    changed = {"alpha": 4, "model": {"name": "small", "sizes": [1, 2]}, "beta": None}
    with pytest.raises(ValueError, match=rf"'seeds' in {place} was begun with other") as error:
        workdir.stage("seeds", changed)
    assert '(beta absent -> null, model.name "tiny" -> "small")' in str(error.value)
    assert "\n" not in str(error.value)


def test_a_stage_without_results_takes_other_options(place):
    with pytest.raises(RuntimeError), Workdir(place).stage("seeds", {"root": 3}).run():
        raise RuntimeError("a wrong option, say")
    stage = Workdir(place).stage("seeds", {"root": 2})
    write_bytes(stage.folder / "1.npz", b"")
    assert stage.options == {"root": 2}
    with stage.run():
        pass
    with pytest.raises(ValueError, match="root 2 -> 3"):
        Workdir(place).stage("seeds", {"root": 3})


def test_seconds_of_all_stages_in_the_order_they_began(place):
    workdir = Workdir(place)
    for name in ("seeds", "labels", "affinity"):
        with workdir.stage(name, {}).run():
            time.sleep(0.01)
    assert list(workdir.seconds()) == ["seeds", "labels", "affinity"]
    assert all(0.01 <= seconds < 5 for seconds in workdir.seconds().values())


@pytest.mark.parametrize("content", [{}, {"options": [], "seconds": 1, "done": True, "begun": 0}])
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds" / "stage.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"stage\.json is damaged"):
        Workdir(tmp_path).stage("seeds", {})


def test_finished_items_are_listed_by_id(place):
    stage = Workdir(place).stage("masks", {})
    assert stage.items_done(".png", "val") == set()
    identifiers = {"2007_000032", "a/b", ".hidden", "å", "100%"}
    for identifier in identifiers:
        write_bytes(stage.item(identifier, ".png", "val"), b"")
    write_bytes(stage.item("other", ".npz", "val"), b"")
    write_bytes(stage.folder / "val" / ".vitx-half.png", b"")
    assert stage.items_done(".png", "val") == identifiers


ITEMS = """
import os, sys
from vitx.runtime.workdir import Workdir
from vitx.runtime.files import write_bytes
with Workdir(sys.argv[1]).lock() as workdir:
    stage = workdir.stage("items", {})
    with stage.run():
        for i in range(100000):
            write_bytes(stage.item(str(i), ".bin"), bytes(10000))
            print(i, flush=True)
"""


@pytest.mark.slow
def test_a_killed_stage_leaves_whole_files_and_can_go_on(tmp_path):
    with started(ITEMS, tmp_path) as process:
        for _ in range(30):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    with Workdir(tmp_path).lock() as workdir:
        stage = workdir.stage("items", {})
        assert not stage.done
        done = stage.items_done(".bin")
        assert len(done) >= 30
        assert all(stage.item(i, ".bin").stat().st_size == 10000 for i in done)
        assert len(os.listdir(stage.folder)) == len(done) + 1  # and stage.json
