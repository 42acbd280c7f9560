import json
import os
import re
import signal
import subprocess
import sys
import time
from urllib.parse import unquote

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from vitx.runtime.files import WriteError, read_npz, safe_name, write_bytes, write_json, write_npz
from vitx.runtime.locks import WorkdirBusy
from vitx.runtime.workdir import Workdir


def python(script, *arguments, **options):
    """Starts Python on a script that sees this repository."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


# Files


def test_a_replaced_file_is_whole_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "deep" / "file"
    write_bytes(path, b"old")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["file"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_link_stays_and_the_file_that_it_names_is_replaced(tmp_path):
    link, middle, target = tmp_path / "link", tmp_path / "middle", tmp_path / "store" / "file"
    link.symlink_to("middle")
    middle.symlink_to("store/file")  # neither the file nor its folder is there yet
    for content in (b"first", b"second"):
        write_bytes(link, content)
        assert link.is_symlink() and middle.is_symlink() and not target.is_symlink()
        assert target.read_bytes() == content
    assert sorted(os.listdir(tmp_path)) == ["link", "middle", "store"]
    assert os.listdir(tmp_path / "store") == ["file"]


def test_links_to_what_is_no_file_are_clear_errors(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "c").symlink_to("fifo")
    for name, reason in (("a", "Too many levels of symbolic links"), ("c", "not a regular file")):
        with pytest.raises(WriteError, match=rf"cannot write \S*/{name}: .*{reason}"):
            write_bytes(tmp_path / name, b"x")
        assert (tmp_path / name).is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c", "fifo"]


def test_json_takes_numbers_of_numpy_and_jax_and_config_dicts(tmp_path):
    value = {"a": np.float32(0.5), "b": jnp.ones(2), "c": ConfigDict({"d": (1, 2)}), "e": tmp_path}
    write_json(tmp_path / "a.json", value)
    read = json.loads((tmp_path / "a.json").read_text())
    assert read == {"a": 0.5, "b": [1.0, 1.0], "c": {"d": [1, 2]}, "e": str(tmp_path)}
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        write_json(tmp_path / "b.json", {"a": object()})


def test_npz_comes_back_and_objects_are_refused(tmp_path):
    arrays = {"x": np.arange(6.0).reshape(2, 3), "y": jnp.ones(2, jnp.float16), "n": 3}
    write_npz(tmp_path / "a.npz", arrays)
    read = read_npz(tmp_path / "a.npz")
    assert {k: v.dtype for k, v in read.items()} == {
        "x": np.dtype("f8"),
        "y": np.dtype("f2"),
        "n": np.dtype("i8"),
    }
    np.testing.assert_array_equal(read["x"], arrays["x"])
    with pytest.raises(ValueError, match="'o' holds Python objects"):
        write_npz(tmp_path / "b.npz", {"o": np.array([{}])})
    assert os.listdir(tmp_path) == ["a.npz"]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no zip", "half", "objects"])
def test_a_damaged_npz_is_named(tmp_path, damage):
    path = tmp_path / "a.npz"
    write_npz(path, {"x": np.arange(1000)})
    if damage == "half":
        damage = path.read_bytes()[:900]
    elif damage == "objects":
        np.savez(path, x=np.array([{}]))
        damage = path.read_bytes()
    path.write_bytes(damage)
    with pytest.raises(ValueError, match=r"a\.npz is no .npz file of arrays, or damaged"):
        read_npz(path)
    with pytest.raises(FileNotFoundError, match=r"b\.npz"):
        read_npz(tmp_path / "b.npz")


@pytest.mark.slow
def test_a_disk_that_refuses_gives_one_line_and_keeps_the_old_file(tmp_path):
    script = """
import resource, signal, sys
from vitx.runtime.files import WriteError, write_bytes
write_bytes(sys.argv[1], b"old")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_bytes(sys.argv[1], b"x" * 2000)
except WriteError as error:
    print(error)
"""
    path = tmp_path / "file"
    output, errors = python(script, path).communicate(timeout=60)
    assert re.fullmatch(r"cannot write \S*/file: File too large; .*\n", output), output + errors
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_in_the_place_of_a_folder_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot write"):
        write_bytes(tmp_path / "file" / "inner", b"")
    with pytest.raises(WriteError, match="cannot write"):
        Workdir(tmp_path / "file")


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20))
def test_any_id_makes_a_reversible_file_name(identifier):
    name = safe_name(identifier)
    assert unquote(name) == identifier
    assert "/" not in name and "\0" not in name and not name.startswith(".")


def test_ordinary_ids_keep_their_names():
    assert safe_name("2007_000032") == "2007_000032"
    assert safe_name("a/b.c") == "a%2Fb.c"
    with pytest.raises(ValueError, match="empty"):
        safe_name("")


# Lock


HOLD = """
import sys, time
from vitx.runtime.workdir import Workdir
with Workdir(sys.argv[1]).lock():
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_one_run_at_a_time_and_a_killed_one_leaves_no_lock(tmp_path):
    holder = python(HOLD, tmp_path)
    try:
        assert holder.stdout.readline() == "locked\n"
        message = rf"in use by pid {holder.pid} on host \S+; wait for it"
        with pytest.raises(WorkdirBusy, match=message), Workdir(tmp_path).lock():
            pass
    finally:
        holder.kill()
        holder.communicate()
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / ".vitx-abc.tmp").write_text("half")
    (tmp_path / "stage" / "kept.tmp").write_text("not ours")
    with Workdir(tmp_path).lock():
        assert os.listdir(tmp_path / "stage") == ["kept.tmp"]
        with pytest.raises(WorkdirBusy, match=f"pid {os.getpid()}"), Workdir(tmp_path).lock():
            pass
    with Workdir(tmp_path).lock():
        pass


# Stages


def test_a_stage_is_done_only_when_its_body_ended(tmp_path):
    workdir = Workdir(tmp_path)
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


def test_other_options_are_refused_and_named(tmp_path):
    workdir = Workdir(tmp_path)
    options = {"alpha": 4, "model": {"name": "tiny", "sizes": (1, 2)}}
    with workdir.stage("seeds", options).run():
        pass
    assert workdir.stage("seeds", ConfigDict(options)).done
    changed = {"alpha": 4, "model": {"name": "small", "sizes": [1, 2]}, "beta": None}
    with pytest.raises(ValueError, match="other options") as error:
        workdir.stage("seeds", changed)
    assert '(beta absent -> null, model.name "tiny" -> "small")' in str(error.value)
    assert "\n" not in str(error.value)


def test_a_stage_that_made_nothing_takes_other_options(tmp_path):
    with pytest.raises(RuntimeError), Workdir(tmp_path).stage("seeds", {"root": 3}).run():
        raise RuntimeError("a wrong option, say")
    stage = Workdir(tmp_path).stage("seeds", {"root": 2})
    write_bytes(stage.folder / "1.npz", b"")
    assert stage.options == {"root": 2}
    with stage.run():
        pass
    with pytest.raises(ValueError, match="root 2 -> 3"):
        Workdir(tmp_path).stage("seeds", {"root": 3})


def test_seconds_of_all_stages_in_the_order_they_began(tmp_path):
    workdir = Workdir(tmp_path)
    for name in ("seeds", "labels", "affinity"):
        with workdir.stage(name, {}).run():
            time.sleep(0.01)
    assert list(workdir.seconds()) == ["seeds", "labels", "affinity"]
    assert all(0.01 <= seconds < 5 for seconds in workdir.seconds().values())


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds" / "stage.json").write_text("{}")
    with pytest.raises(ValueError, match=r"stage\.json is damaged"):
        Workdir(tmp_path).stage("seeds", {})


def test_finished_items_are_listed_by_id(tmp_path):
    stage = Workdir(tmp_path).stage("masks", {})
    assert stage.items_done(".png", "val") == set()
    identifiers = {"2007_000032", "a/b", ".hidden", "å", "100%"}
    for identifier in identifiers:
        write_bytes(stage.item(identifier, ".png", "val"), b"")
    write_bytes(stage.item("other", ".npz", "val"), b"")
    (stage.folder / "val" / ".vitx-half.png").write_text("")
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
    process = python(ITEMS, tmp_path)
    for _ in range(30):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with Workdir(tmp_path).lock() as workdir:
        stage = workdir.stage("items", {})
        assert not stage.done
        done = stage.items_done(".bin")
        assert len(done) >= 30
        assert all(stage.item(i, ".bin").stat().st_size == 10000 for i in done)
        assert len(os.listdir(stage.folder)) == len(done) + 1  # and stage.json
