import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.runtime.scripts import ended
from vitx.runtime.metrics import read_metrics
from vitx.runtime.signals import Stopped, StopRequest
from vitx.training.checkpointing import Checkpoints
from vitx.training.loop import TrainState, fit

OPTIMIZER = optax.adamw(1e-2)
STEPS, EPOCH = 23, 5


def loss_of(params, batch):
    return jnp.square(jnp.tanh(batch @ params["w"]) @ params["v"] - batch.sum(-1)).mean()


@jax.jit
def step_fn(state, batch):
    loss, gradient = jax.value_and_grad(loss_of)(state.params, batch)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes integers and floats
        updates, opt_state = OPTIMIZER.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(params, opt_state, state.step + 1), {"loss": loss, "lr": jnp.float32(0.01)}


donating_step_fn = jax.jit(step_fn, donate_argnums=0)


def first_state():
    random = np.random.default_rng(0)
    params = {"w": random.normal(size=(4, 8)), "v": random.normal(size=(8,))}
    return TrainState.create(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params), OPTIMIZER)


def batches(start):
    """The batch of a step depends on the step alone."""
    for step in range(start, STEPS):
        yield np.random.default_rng(100 + step).normal(size=(16, 4)).astype(np.float32)


VALIDATION = np.random.default_rng(1).normal(size=(32, 4)).astype(np.float32)


def evaluate(state):
    return {"loss": float(loss_of(state.params, VALIDATION)), "map": 0.5}


class Stop:
    """A stop request that comes when the loop has asked for the `after`th time."""

    def __init__(self, after=None):
        self.after, self.asked = after, 0

    @property
    def signal(self):
        self.asked += 1
        return signal.SIGINT if self.after is not None and self.asked >= self.after else 0


def train(folder, stop=None, step_fn=donating_step_fn, **changes):
    options = {
        "steps": STEPS,
        "steps_per_epoch": EPOCH,
        "evaluate": evaluate,
        "stop": stop or Stop(),
        "log_every": 3,
        "batches": batches,
    } | changes
    return fit(step_fn, first_state(), folder=folder, **options)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "toy"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return train(folder), folder / "metrics.jsonl"


def assert_same_run(folder, best, uninterrupted):
    expected, metrics = uninterrupted
    for a, b in zip(jax.tree.leaves(best), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert (folder / "metrics.jsonl").read_bytes() == metrics.read_bytes()


def test_it_does_what_a_plain_loop_does(uninterrupted):
    result, metrics = uninterrupted
    history = read_metrics(metrics.parent)
    state, scores, losses = first_state(), {}, []
    for step, batch in enumerate(batches(0), start=1):
        state, scalars = step_fn(state, batch)
        losses.append(float(scalars["loss"]))
        if step % EPOCH == 0 or step == STEPS:
            scores[step] = (evaluate(state)["loss"], state)
    best = min(scores, key=lambda step: scores[step][0])
    assert best == int(result.step)
    np.testing.assert_allclose(result.params["w"], scores[best][1].params["w"], rtol=1e-5)
    validated = [line for line in history if "val/loss" in line]
    assert [line["step"] for line in validated] == [5, 10, 15, 20, 23]
    assert [line["epoch"] for line in validated] == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(
        [line["val/loss"] for line in validated], [scores[s][0] for s in scores], rtol=1e-5
    )
    trained = {line["step"]: line["train/loss"] for line in history if "train/loss" in line}
    windows = {3: (0, 3), 5: (3, 5), 6: (5, 6), 9: (6, 9), 23: (21, 23)}
    for end, (start, stop) in windows.items():
        np.testing.assert_allclose(trained[end], np.mean(losses[start:stop]), rtol=1e-5)


@pytest.mark.parametrize("after", [1, 7, 10])
def test_stopped_and_started_again_it_ends_the_same(folder, uninterrupted, after):
    with pytest.raises(Stopped):
        train(folder, Stop(after))
    with Checkpoints(folder / "checkpoints") as checkpoints:
        assert checkpoints.steps[-1] == after
    assert_same_run(folder, train(folder), uninterrupted)
    # And once more, when all is done: no step is taken.
    assert_same_run(folder, train(folder, batches=None), uninterrupted)


@pytest.mark.slow
def test_saving_often_changes_nothing(folder, uninterrupted):
    assert_same_run(folder, train(folder, save_every_seconds=0.0), uninterrupted)


@pytest.mark.slow
def test_killed_and_started_again_it_ends_the_same(folder, uninterrupted):
    script = """
import os, pathlib, signal, sys
from tests import conftest
from tests.training import test_loop
def batches(start):
    for step, batch in enumerate(test_loop.batches(start), start=start + 1):
        if step == 14:
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch
test_loop.train(pathlib.Path(sys.argv[1]), batches=batches, save_every_seconds=0.2)
"""
    code, _, errors = ended(script, folder)
    assert code == -signal.SIGKILL, errors
    assert_same_run(folder, train(folder), uninterrupted)


def test_a_real_signal_stops_it(folder):
    def batches_with_signal(start):
        for step, batch in enumerate(batches(start)):
            if step == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with StopRequest() as stop, pytest.raises(Stopped) as stopped:
        train(folder, stop, batches=batches_with_signal)
    assert stopped.value.exit_code == 143


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_ends_it_and_is_not_saved(folder, value):
    def poisoned(start):
        for step, batch in enumerate(batches(start), start=start + 1):
            yield np.full_like(batch, value) if step == 13 else batch

    with pytest.raises(
        FloatingPointError, match=r"toy: 'loss' is \w+ at step 13; nothing"
    ) as error:
        train(folder, batches=poisoned, log_every=50)
    assert "\n" not in str(error.value)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        restored = checkpoints.restore_latest(first_state())
        assert restored.step == 10
        assert np.isfinite(restored.state.params["w"]).all()
    assert max(line["step"] for line in read_metrics(folder)) == 10


def test_a_state_that_is_not_finite_is_not_saved(folder):
    def bad_step(state, batch):
        """A finite loss whose gradient was not."""
        state, scalars = step_fn(state, batch)
        params = state.params | {"v": jnp.where(state.step == 5, jnp.nan, state.params["v"])}
        return TrainState(params, state.opt_state, state.step), scalars

    with pytest.raises(FloatingPointError, match=r"params\['v'\] is not finite at step 5"):
        train(folder, step_fn=bad_step, evaluate=lambda state: {"loss": 1.0})
    with Checkpoints(folder / "checkpoints") as checkpoints:
        assert checkpoints.steps == []


def test_a_score_that_is_not_finite_is_not_saved(folder):
    with pytest.raises(FloatingPointError, match="'loss' is nan at step 5"):
        train(folder, evaluate=lambda state: {"loss": float("nan")})


def test_batches_that_end_early_are_an_error(folder):
    with pytest.raises(ValueError, match="toy: the batches ended before step 24"):
        train(folder, steps=24)


def test_a_damaged_checkpoint_costs_time_but_no_bits(folder, uninterrupted):
    with pytest.raises(Stopped):
        train(folder, Stop(12))
    for path in (folder / "checkpoints" / "12").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    assert_same_run(folder, train(folder), uninterrupted)


def test_the_step_is_traced_once(folder):
    traces = []

    @jax.jit
    def counting(state, batch):
        traces.append(None)
        return step_fn(state, batch)

    with pytest.raises(Stopped):
        train(folder, Stop(7), step_fn=counting)
    train(folder, step_fn=counting)
    assert len(traces) == 1
