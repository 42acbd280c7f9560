from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitx import parallel


def loss(params, batch, axis=None):
    hidden = jnp.tanh(batch["x"] @ params["w"])
    errors = jnp.square(hidden @ params["v"] - batch["y"])
    return errors.sum() / parallel.sum_over_devices(jnp.ones_like(errors).sum(), axis)


def step_with(axis):
    def step(params, batch):
        shares = jax.value_and_grad(loss)(params, batch, axis)
        value, gradient = parallel.sum_over_devices(shares, axis)
        return optax.apply_updates(params, jax.tree.map(lambda g: -0.1 * g, gradient)), value

    return step


step = step_with(None)


@pytest.fixture
def problem(x64):
    random = np.random.default_rng(0)
    params = {"w": random.normal(size=(5, 7)), "v": random.normal(size=(7,))}
    batch = {"x": random.normal(size=(16, 5)), "y": random.normal(size=(16,))}
    return jax.tree.map(jnp.asarray, params), batch


@pytest.mark.parametrize("mode", parallel.MODES)
def test_eight_devices_train_as_one_does(problem, mode):
    params, batch = problem
    assert parallel.mesh().size == 8
    expected, expected_loss = jax.jit(step)(params, batch)
    eight = parallel.data_parallel(
        step_with(parallel.axis_of(mode)), donate_argnums=(0,), mode=mode
    )
    got, got_loss = eight(jax.tree.map(jnp.copy, params), parallel.shard_batch(batch))
    np.testing.assert_allclose(got_loss, expected_loss, rtol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), got, expected)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(got))
    again, _ = eight(got, batch)  # host arrays are sharded on the way in
    assert len(again["w"].sharding.device_set) == 8


def test_per_example_results_stay_where_their_examples_are(problem):
    params, batch = problem
    predict = parallel.data_parallel(lambda p, x: jnp.tanh(x @ p["w"]), sharded_output=True)
    images = parallel.shard_batch(batch["x"])
    assert [shard.data.shape for shard in images.addressable_shards] == [(2, 5)] * 8
    lowered = predict.lower(parallel.replicate(params), images).compile().as_text()
    assert "all-" not in lowered and "collective" not in lowered
    got = predict(parallel.replicate(params), images)
    assert [shard.data.shape for shard in got.addressable_shards] == [(2, 7)] * 8
    np.testing.assert_allclose(got, np.tanh(batch["x"] @ np.asarray(params["w"])), rtol=1e-12)


def test_a_mesh_over_some_devices(problem):
    _, batch = problem
    mesh = parallel.mesh(tuple(jax.devices()[:2]))
    assert len(parallel.shard_batch(batch["y"], mesh).sharding.device_set) == 2
    assert len(parallel.replicate(batch["y"], mesh).sharding.device_set) == 2


def test_a_batch_that_does_not_divide_is_refused_with_its_shape():
    with pytest.raises(ValueError, match=r"\(9, 2\)"):
        parallel.shard_batch({"x": np.zeros((9, 2))})


@pytest.mark.parametrize("mode", parallel.MODES)
@pytest.mark.parametrize("size", [1, 8, 13])
def test_any_number_of_examples_is_spread(problem, mode, size):
    params, batch = problem
    seen = []

    def predict(params, x, y):
        seen.append(x.shape)
        return {"z": jnp.tanh(x @ params["w"]) + y[:, None]}

    x, y = (np.asarray(batch[name])[:size] for name in "xy")
    got = parallel.per_example(predict, mode=mode)(params, x, y)["z"]
    assert isinstance(got, np.ndarray)
    np.testing.assert_allclose(got, np.tanh(x @ np.asarray(params["w"])) + y[:, None], rtol=1e-12)
    assert set(seen) == {(-(-size // 8), 5)}  # an image's own device alone sees it


def test_what_lies_there_is_not_copied(problem):
    params, _ = problem
    spread = parallel.replicate(params)
    assert parallel.replicate(spread) is spread
    there = parallel.shard_batch({"x": np.zeros((8, 2))})
    assert parallel.shard_batch(there)["x"] is there["x"]


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match=r"config\.parallel must be one of jit, pmap, not 'pjit'"):
        parallel.data_parallel(step, mode="pjit")


@given(st.integers(1, 20), st.integers(1, 9))
def test_padding_keeps_every_example_and_repeats_the_last(size, multiple):
    batch = {"x": np.arange(size), "y": np.arange(size * 2).reshape(size, 2)}
    padded, valid = parallel.pad_batch(batch, multiple)
    assert len(valid) % multiple == 0 and len(valid) - size < multiple
    assert valid.tolist() == [True] * size + [False] * (len(valid) - size)
    np.testing.assert_array_equal(padded["y"][valid], batch["y"])
    assert (padded["x"][~valid] == size - 1).all()


def test_pmap_trains_in_one_process_only():
    over = SimpleNamespace(size=8, local_mesh=SimpleNamespace(size=4))
    with pytest.raises(ValueError, match="trains in one process only; with several take 'jit'"):
        parallel.data_parallel(step, mode="pmap", over=over)


def test_a_batch_stays_on_its_devices(problem):
    """A loop over images would have the compiler gather them on every device."""
    params, batch = problem

    def predict(params, x):
        return jax.lax.map(lambda row: row @ params["w"], x)

    x = np.asarray(batch["x"])[:8]
    alone = parallel.per_example(predict)
    np.testing.assert_allclose(alone(params, x), x @ np.asarray(params["w"]), rtol=1e-12)
    text = alone.lower(params, x).compile().as_text()
    assert "all-gather" not in text and "all-reduce" not in text


def test_memory_that_ends_names_what_to_change(problem):
    params, batch = problem

    def predict(params, x):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    with pytest.raises(
        MemoryError, match="does not hold 8 images at once: give a smaller batch_size"
    ):
        parallel.per_example(predict)(params, np.asarray(batch["x"])[:8])
