import errno
import re
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.runtime.scripts import ended
from vitx import parallel
from vitx.runtime.files import WorkdirError, WriteError
from vitx.training.checkpointing import Checkpoints


def make_state(value=0.0, width=3):
    """A tree with every kind of container and leaf that training states have."""
    params = nnx.state(nnx.Linear(2, width, rngs=nnx.Rngs(0)), nnx.Param)
    params = jax.tree.map(lambda x: x + value, params)
    return {
        "params": params,
        "opt": optax.chain(optax.clip(1.0), optax.adamw(1e-3)).init(params),
        "step": jnp.asarray(5, jnp.int32),
        "half": jnp.full((3,), 1 / 3, jnp.bfloat16),
        "host": np.arange(3),
        "none": None,
    }


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert isinstance(a, np.ndarray) == isinstance(b, np.ndarray)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.slow
def test_an_empty_folder_gives_the_template(tmp_path):
    with Checkpoints(tmp_path / "new") as checkpoints:
        state = make_state()
        for restored in (checkpoints.restore_latest(state), checkpoints.restore_best(state)):
            assert restored.step is None
            assert restored.state is state


def test_every_bit_and_container_comes_back(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, make_state(2.0), {"loss": 0.5, "map": 0.25}, {"window": [{"a": 0.1}]})
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore_latest(make_state(0.0))
        assert restored.step == 7
        assert restored.extra == {"window": [{"a": 0.1}]}
        assert_same(restored.state, make_state(2.0))
        abstract = {"x": jax.eval_shape(lambda: make_state()["half"])}
        checkpoints.save(8, {"x": make_state()["half"]})
        assert_same(checkpoints.restore_latest(abstract).state, {"x": make_state()["half"]})


def test_the_newest_and_the_best_are_kept(tmp_path):
    losses = {1: 9.0, 2: 1.0, 3: 5.0, 4: None, 5: 4.0, 6: None, 7: None}
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, loss in losses.items():
            metrics = None if loss is None else {"loss": loss}
            checkpoints.save(step, {"x": np.full(2, step)}, metrics)
        assert checkpoints.steps == [2, 6, 7]
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        restored = checkpoints.restore_best({"x": np.zeros(2, int)})
        assert restored.step == 2
        assert restored.state["x"].tolist() == [2, 2]
        assert checkpoints.restore_latest({"x": np.zeros(2, int)}).step == 7


def test_equally_good_ones_give_the_newer(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, {"x": np.full(2, step)}, {"loss": 0.5})
        assert checkpoints.restore_best({"x": np.zeros(2, int)}).step == 3


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, {"x": np.arange(5000.0)}, {"loss": 2.0})
        checkpoints.save(2, {"x": np.arange(5000.0) + 1}, {"loss": 1.0})
    return folder


DAMAGES = {
    "removed": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": lambda path: path.write_bytes(
        bytes(
            b ^ (255 if i == path.stat().st_size // 2 else 0)
            for i, b in enumerate(path.read_bytes())
        )
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_no_damage_to_any_file_gives_wrong_numbers(tmp_path, two_checkpoints, damage, caplog):
    fell_back = 0
    for number, path in enumerate(files_of(two_checkpoints / "2")):
        folder = tmp_path / str(number)
        shutil.copytree(two_checkpoints, folder)
        DAMAGES[damage](folder / path.relative_to(two_checkpoints))
        with Checkpoints(folder) as checkpoints:
            for restore in (checkpoints.restore_latest, checkpoints.restore_best):
                restored = restore({"x": np.zeros(5000)})
                assert restored.step in (1, 2), path
                expected = np.arange(5000.0) + restored.step - 1
                np.testing.assert_array_equal(restored.state["x"], expected)
            caplog.clear()
            if checkpoints.restore_latest({"x": np.zeros(5000)}).step == 1 and caplog.messages:
                fell_back += 1
                assert "2 is damaged: " in caplog.text and "\n" not in caplog.messages[-1]
            # Training goes on from there, and writes the damaged step again.
            checkpoints.save(2, {"x": np.full(5000, 7.0)}, {"loss": 0.5})
            assert checkpoints.restore_best({"x": np.zeros(5000)}).state["x"][0] == 7.0
    assert fell_back > 0


def test_what_a_killed_save_left_is_removed(tmp_path, two_checkpoints):
    folder = tmp_path / "copy"
    shutil.copytree(two_checkpoints, folder)
    half = folder / "3.orbax-checkpoint-tmp"
    shutil.copytree(folder / "2", half)
    (half / "commit_success.txt").unlink(missing_ok=True)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.restore_latest({"x": np.zeros(5000)}).step == 2
    assert not half.exists()


def test_another_model_is_an_error_and_no_damage(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state())
        with pytest.raises(ValueError, match="does not fit") as error:
            checkpoints.restore_latest(make_state(width=4))
        assert "+ opt.1.0.mu.bias.value float32[3]; - opt.1.0.mu.bias.value float32[4];" in str(
            error.value
        )
        assert "; 4 more" in str(error.value)
        assert "\n" not in str(error.value)


def test_a_checkpoint_does_not_depend_on_the_devices(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, parallel.replicate({"x": jnp.arange(16.0)}))
        plain = checkpoints.restore_latest({"x": jnp.zeros(16)}).state["x"]
        assert not plain.committed
        template = {"x": parallel.shard_batch(np.zeros(16, np.float32))}
        sharded = checkpoints.restore_latest(template).state["x"]
        assert sharded.sharding == template["x"].sharding
        np.testing.assert_array_equal(sharded, np.arange(16.0))


def test_a_state_can_be_donated_after_it_was_saved(tmp_path):
    double = jax.jit(lambda x: x * 2, donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        state = jnp.arange(1000.0)
        checkpoints.save(1, {"x": state})
        double(state)
        restored = checkpoints.restore_latest({"x": jnp.zeros(1000)}).state["x"]
        double(restored)
        again = checkpoints.restore_latest({"x": jnp.zeros(1000)}).state["x"]
        np.testing.assert_array_equal(again, np.arange(1000.0))


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot write"):
        Checkpoints(tmp_path / "file")


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_keeps_the_last_checkpoint(tmp_path):
    script = """
import pathlib, resource, signal, sys
import numpy as np
from vitx.runtime.signals import clean_exit
from vitx.training.checkpointing import Checkpoints
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
numbers = np.random.default_rng(0).random(100000)
with clean_exit(), Checkpoints(pathlib.Path(sys.argv[1])) as checkpoints:
    checkpoints.save(1, {"x": numbers}, {"loss": 1.0})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))
    checkpoints.save(2, {"x": numbers}, {"loss": 0.5})
"""
    code, _, errors = ended(script, tmp_path)
    assert code == 1
    assert re.fullmatch(r"error: cannot write \S*/2: File too large; fix .*\n", errors)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_best({"x": np.zeros(100000)}).step == 1


def test_saving_a_small_model_takes_no_time_worth_mentioning(tmp_path):
    state = {f"block{i}": {"w": np.zeros((192, 192), np.float32)} for i in range(27)}  # 1 M numbers
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state)
        seconds = []
        for step in (1, 2, 3):
            began = time.perf_counter()
            checkpoints.save(step, state)
            seconds.append(time.perf_counter() - began)
    assert min(seconds) < 2.0


def make_two(folder):
    with Checkpoints(folder, keep=1) as checkpoints:
        for step, loss in ((10, 0.1), (20, 0.5)):
            checkpoints.save(step, {"x": np.full(3, float(step))}, {"loss": loss})


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError("timed out"),
        OSError(errno.ESTALE, "Stale file handle"),
        ConnectionResetError("connection reset"),
        PermissionError(errno.EACCES, "Permission denied"),
        ValueError("UNAVAILABLE: the bucket does not answer"),
        ValueError("read failed [os_error_code='5']"),
    ],
    ids=repr,
)
def test_what_may_pass_is_no_damage(tmp_path, monkeypatch, error):
    """Else a hiccup of a file system would cost the checkpoints, or the best of them."""
    make_two(tmp_path)

    def fail(self, step):
        raise error

    with Checkpoints(tmp_path, keep=1) as checkpoints:
        monkeypatch.setattr(Checkpoints, "_read", fail)
        for restore in (checkpoints.restore_latest, checkpoints.restore_best):
            with pytest.raises(WorkdirError, match=r"cannot be read \(.*nothing is lost"):
                restore({"x": np.zeros(3)})
    monkeypatch.undo()
    monkeypatch.setattr(Checkpoints, "_metadata", fail)
    with pytest.raises(WorkdirError, match="cannot be read"):
        Checkpoints(tmp_path, keep=1)
    monkeypatch.undo()
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(30, {"x": np.zeros(3)}, {"loss": 0.2})
        assert checkpoints.steps == [10, 30]
        assert checkpoints.restore_best({"x": np.zeros(3)}).step == 10


def test_where_all_are_damaged_nothing_begins_anew(tmp_path):
    make_two(tmp_path)
    for path in (*files_of(tmp_path / "10"), *files_of(tmp_path / "20")):
        path.write_bytes(b"")
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        with pytest.raises(WorkdirError, match=r"all checkpoints in .* are damaged: delete that"):
            checkpoints.restore_latest({"x": np.zeros(3)})
        assert checkpoints.steps == [10, 20]


def test_processes_take_the_same_checkpoint(tmp_path, monkeypatch):
    """A checkpoint that another process cannot read is not taken here either."""
    make_two(tmp_path)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        damaged = iter(
            [(1, -1), (True,), (False,)]
        )  # the same list, step 20 of another process, step 10
        monkeypatch.setattr("vitx.parallel.max_over_processes", lambda *values: next(damaged))
        assert checkpoints.restore_latest({"x": np.zeros(3)}).step == 10
        monkeypatch.setattr("vitx.parallel.max_over_processes", lambda *values: (2, -1))
        with pytest.raises(WorkdirError, match="the processes see different checkpoints"):
            checkpoints.restore_best({"x": np.zeros(3)})
