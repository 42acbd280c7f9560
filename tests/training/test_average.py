"""The moving average of the weights: its recursion written out, and what training makes of it."""

import math
from pathlib import Path

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from ml_collections import ConfigDict

from tests.training.test_loop import Stop
from vitx import parallel
from vitx.runtime.metrics import read_metrics
from vitx.runtime.signals import Stopped
from vitx.training.checkpointing import Checkpoints
from vitx.training.loop import TrainState
from vitx.training.optimizer import (
    at_least_float32,
    gradient_step,
    make_optimizer,
    minimise,
)

EPOCH, EPOCHS, BATCH = 5, 3, 48
GRAPH, FIRST = nnx.split(nnx.Linear(4, 2, rngs=nnx.Rngs(0)))


def loss_of(params, batch, axis=None):
    x = batch["x"].astype(params["kernel"].dtype)
    errors = jnp.square(at_least_float32(nnx.merge(GRAPH, params)(x)) - batch["y"]).sum(1)
    return errors.sum() / parallel.sum_over_devices(jnp.ones_like(errors).sum(), axis)


def batches(start, dtype=np.float32):
    """The batch of a step depends on the step alone."""
    for step in range(start, EPOCH * EPOCHS):
        x, y = np.split(np.random.default_rng(step).normal(size=(BATCH, 6)).astype(dtype), [4], 1)
        yield {"x": x, "y": y}


VALIDATION = next(batches(0))


def evaluate(params):
    return {"loss": float(loss_of(params, VALIDATION))}


def config(average, **options):
    common = {
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "weight_decay": 0.0,
        "decay_norms_and_biases": True,
        "clip_norm": 0.0,
        "epochs": EPOCHS,
        "warmup_epochs": 0,
        "batch_size": BATCH,
        "accumulate": 1,
        "compute": "float32",
        "average": average,
    }
    return ConfigDict(common | options)


def trained(folder, options, evaluate=evaluate, stop=None, mode="jit"):
    params = jax.tree.map(jnp.copy, FIRST)
    stop = stop or Stop()
    return minimise(
        options, params, loss_of, batches, evaluate, EPOCH, folder=folder, stop=stop, mode=mode
    )


def first_state(options):
    return TrainState.create(FIRST, make_optimizer(options, EPOCH), options.average > 0)


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("average", [0.3, 0.999])
@pytest.mark.parametrize("mode, accumulate", [("jit", 1), ("jit", 3), ("pmap", 1)])
def test_average_is_its_recursion(mode: str, accumulate: int, average: float) -> None:
    """Of gradient descent on least squares in NumPy, with a bias that is frozen."""
    first = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64) + 0.5, FIRST)
    bias, params = nnx.split_state(first, lambda path, _: path[0] == "bias", ...)
    optimizer = optax.sgd(0.1)
    step_fn = gradient_step(
        loss_of, optimizer, mode, frozen=bias, accumulate=accumulate, average=average
    )
    kernel, fixed = (np.asarray(jax.tree.leaves(part)[0]) for part in (params, bias))
    state, expected = TrainState.create(params, optimizer, averaged=True), kernel
    np.testing.assert_array_equal(state.weights["kernel"][...], kernel)
    for step, batch in enumerate(batches(0, np.float64)):
        state, _ = step_fn(state, batch)
        error = batch["x"] @ kernel + fixed - batch["y"]
        kernel = kernel - 0.1 * 2 / BATCH * batch["x"].T @ error
        decay = min(average, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * kernel
        np.testing.assert_allclose(state.params["kernel"][...], kernel, rtol=1e-10)
        np.testing.assert_allclose(state.weights["kernel"][...], expected, rtol=1e-10)
    assert list(state.weights) == ["kernel"] and state.weights is state.average


@pytest.mark.usefixtures("x64")
@given(steps=st.integers(1, 40), seed=st.integers(0, 99))
def test_warm_up_weighs_steps_by_binomials(steps: int, seed: int) -> None:
    """Before the decay reaches its limit, the parameters after t steps weigh C(t + 8, 8)."""
    gradients = np.random.default_rng(seed).normal(size=(steps, 3))
    optimizer = optax.sgd(1.0)
    step_fn = gradient_step(lambda p, g, _: (p * g[0]).sum(), optimizer, average=1 - 1e-9)
    state = TrainState.create(jnp.zeros(3), optimizer, averaged=True)
    for gradient in gradients:
        # One row for each device, in a batch that they share.
        state, _ = step_fn(state, np.tile(gradient, (jax.device_count(), 1)))
    path = np.vstack([np.zeros(3), -np.cumsum(gradients, axis=0)])
    weights = [math.comb(t + 8, 8) for t in range(steps + 1)]
    assert sum(weights) == math.comb(steps + 9, 9)
    expected = np.average(path, axis=0, weights=weights)
    np.testing.assert_allclose(state.weights, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", parallel.MODES)
def test_average_is_validated_chosen_and_returned(tmp_path: Path, mode: str) -> None:
    options, seen = config(0.9), []

    def noting(params):
        seen.append(bits(params))
        return {"loss": [3.0, 1.0, 2.0][len(seen) - 1]}

    best = trained(tmp_path / "toy", options, noting, mode=mode)
    assert bits(best) == seen[1] and len(seen) == EPOCHS
    with Checkpoints(tmp_path / "toy" / "checkpoints") as checkpoints:
        kept = checkpoints.restore_best(first_state(options))
    assert kept.step == 2 * EPOCH
    assert bits(kept.state.average) == seen[1] != bits(kept.state.params)


@pytest.mark.parametrize(
    "mode, options",
    [("jit", {}), ("jit", {"compute": "bfloat16", "accumulate": 2}), ("pmap", {})],
)
def test_stopped_and_started_again_the_average_is_the_same(
    tmp_path: Path, mode: str, options: dict[str, object]
) -> None:
    whole, stopped = tmp_path / "whole" / "toy", tmp_path / "stopped" / "toy"
    expected = trained(whole, config(0.9, **options), mode=mode)
    for after in (1, 7):  # counted from each start
        with pytest.raises(Stopped):
            trained(stopped, config(0.9, **options), stop=Stop(after), mode=mode)
    assert bits(trained(stopped, config(0.9, **options), mode=mode)) == bits(expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(expected)} == {jnp.dtype("float32")}
    assert read_metrics(stopped) == read_metrics(whole)
    states = []
    for folder in (whole, stopped):
        with Checkpoints(folder / "checkpoints") as checkpoints:
            states.append(checkpoints.restore_latest(first_state(config(0.9))))
    assert states[0].step == states[1].step == EPOCH * EPOCHS
    assert bits(states[0].state) == bits(states[1].state)


def test_without_average_nothing_changes(tmp_path: Path) -> None:
    """The arrays of a checkpoint are those of before there was an option, and steps never see an average."""
    state = first_state(config(0.0))
    before = {"params": state.params, "opt_state": state.opt_state, "step": state.step}
    with Checkpoints(tmp_path / "before") as checkpoints:
        checkpoints.save(0, before)
        restored = checkpoints.restore_latest(state).state
    assert bits(restored) == bits(state) and restored.weights is restored.params
    for average in (0.0, 0.9):
        trained(tmp_path / f"{average}" / "toy", config(average))
    without, averaged = (read_metrics(tmp_path / name / "toy") for name in ("0.0", "0.9"))
    key = "train/loss"
    assert [line.get(key) for line in without] == [line.get(key) for line in averaged]
    assert without != averaged  # in validation
    step_fn = gradient_step(loss_of, make_optimizer(config(0.0), EPOCH))
    state, seen = jax.tree.map(jnp.copy, state), []
    for batch in batches(0):
        state, _ = step_fn(state, batch)
        seen.append(evaluate(state.params)["loss"])
    validated = [line["val/loss"] for line in without if "val/loss" in line]
    assert validated == seen[EPOCH - 1 :: EPOCH] and state.average is None
