"""Learning rates and optimisers against their recurrences written out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from vitx.training.optimizer import learning_rate, make_optimizer


def _config(**changes: object) -> ConfigDict:
    options = {
        "optimizer": "sgd",
        "learning_rate": 0.5,
        "weight_decay": 0.1,
        "decay_norms_and_biases": True,
        "clip_norm": 0.0,
        "epochs": 4,
        "warmup_epochs": 0,
    }
    return ConfigDict(options | changes)


def test_rate_falls_linearly_per_epoch() -> None:
    rate = learning_rate(_config(), steps_per_epoch=3)
    found = [float(rate(jnp.int32(step))) for step in range(12)]
    np.testing.assert_allclose(found, np.repeat([0.5, 0.375, 0.25, 0.125], 3), rtol=1e-6)


def test_rate_warms_up_by_step() -> None:
    rate = learning_rate(_config(warmup_epochs=2), steps_per_epoch=2)
    found = [float(rate(jnp.int32(step))) for step in range(8)]
    expected = [0.125, 0.25, 0.375, 0.5, 0.5, 0.5, 0.25, 0.25]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_sgd_is_pytorchs() -> None:
    # v <- 0.9 v + (g + decay * w); w <- w - rate * v, every parameter decayed
    config = _config(epochs=10)
    optimizer = make_optimizer(config, steps_per_epoch=1000)
    weights = jnp.array([1.0, -2.0])
    state = optimizer.init(weights)
    expected, velocity = np.array([1.0, -2.0]), np.zeros(2)
    for gradient in ([0.5, 0.25], [-1.0, 2.0], [0.0, 0.0]):
        updates, state = optimizer.update(jnp.array(gradient), state, weights)
        weights = optax.apply_updates(weights, updates)
        velocity = 0.9 * velocity + (np.array(gradient) + 0.1 * expected)
        expected = expected - 0.5 * velocity
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_adamw_takes_a_signed_step_and_decays() -> None:
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        optimizer = make_optimizer(_config(optimizer="adamw"), steps_per_epoch=1000)
        weights = jnp.array([1.0, -2.0])
        updates, _ = optimizer.update(jnp.array([0.3, -0.1]), optimizer.init(weights), weights)
    np.testing.assert_allclose(updates, [-0.5 * (1 + 0.1), 0.5 * (1 + 0.2)], rtol=1e-4)


def test_unknown_optimiser_is_refused() -> None:
    with pytest.raises(ValueError, match="sgd or adamw, not 'adam'"):
        make_optimizer(_config(optimizer="adam"), steps_per_epoch=1)


def test_decay_may_leave_out_norms_and_biases() -> None:
    optimizer = make_optimizer(_config(decay_norms_and_biases=False), steps_per_epoch=1000)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.5 * 0.1, rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 0)


def test_gradient_is_clipped_as_a_whole() -> None:
    config = _config(clip_norm=1.0, weight_decay=0.0)
    optimizer = make_optimizer(config, steps_per_epoch=1000)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    gradient = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose([updates["a"][0], updates["b"][0]], [-0.3, -0.4], rtol=1e-5)


@pytest.mark.parametrize("warmup", [-1, 4, 5])
def test_warm_up_must_end_before_training_does(warmup: int) -> None:
    with pytest.raises(ValueError, match=rf"warmup_epochs must be in \[0, epochs\), not {warmup}"):
        learning_rate(_config(warmup_epochs=warmup), steps_per_epoch=1)
