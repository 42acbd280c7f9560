import json
import os
import re
from urllib.parse import unquote

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from tests.runtime.scripts import ended
from vitx.runtime.files import (
    WriteError,
    append_line,
    read_npz,
    safe_name,
    write_bytes,
    write_json,
    write_npz,
)
from vitx.runtime.paths import is_remote
from vitx.runtime.workdir import Workdir


def test_files_come_back_and_nothing_else_is_left(place):
    for content in (b"old", b"new"):
        write_bytes(place / "deep" / "a", content)
    for line in ("one\n", "two\n"):
        append_line(place / "deep" / "d", line)
    value = {"a": np.float32(0.5), "b": jnp.ones(2), "c": ConfigDict({"d": (1, 2)}), "e": place}
    write_json(place / "deep" / "b.json", value)
    arrays = {"x": np.arange(6.0).reshape(2, 3), "y": jnp.ones(2, jnp.float16), "n": 3}
    write_npz(str(place / "deep" / "c.npz"), arrays)

    found = {path.name: path for path in (place / "deep").iterdir()}
    assert sorted(found) == ["a", "b.json", "c.npz", "d"]
    assert found["a"].read_bytes() == b"new"
    assert found["d"].read_text() == "one\ntwo\n"
    read = json.loads(found["b.json"].read_text())
    assert read == {"a": 0.5, "b": [1.0, 1.0], "c": {"d": [1, 2]}, "e": str(place)}
    read = read_npz(found["c.npz"])
    types = {name: array.dtype.str for name, array in read.items()}
    assert types == {"x": "<f8", "y": "<f2", "n": "<i8"}
    np.testing.assert_array_equal(read["x"], arrays["x"])
    assert read_npz(found["c.npz"], only=("n",)) == {"n": 3}
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        read_npz(place / "none.npz")
    if not is_remote(place):
        assert found["a"].stat().st_mode & 0o777 == 0o644


def test_objects_are_not_written(tmp_path):
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        write_json(tmp_path / "b.json", {"a": object()})
    with pytest.raises(ValueError, match="'o' holds Python objects"):
        write_npz(tmp_path / "b.npz", {"o": np.array([{}])})
    assert os.listdir(tmp_path) == []


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    link, middle, target = tmp_path / "link", tmp_path / "middle", tmp_path / "store" / "file"
    link.symlink_to("middle")
    middle.symlink_to("store/file")  # neither the file nor its folder exists yet
    for content in (b"first", b"second"):
        write_bytes(link, content)
        assert link.is_symlink() and middle.is_symlink() and not target.is_symlink()
        assert target.read_bytes() == content
    assert sorted(os.listdir(tmp_path)) == ["link", "middle", "store"]
    assert os.listdir(tmp_path / "store") == ["file"]


def test_links_to_something_other_than_a_file_are_clear_errors(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "c").symlink_to("fifo")
    for name, reason in (("a", "Too many levels of symbolic links"), ("c", "not a regular file")):
        with pytest.raises(WriteError, match=rf"cannot write \S*/{name}: .*{reason}"):
            write_bytes(tmp_path / name, b"x")
        assert (tmp_path / name).is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c", "fifo"]


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
    _, output, errors = ended(script, path)
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
