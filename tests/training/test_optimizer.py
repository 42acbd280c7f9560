"""Learning rates and optimisers against their recurrences written out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from ml_collections import ConfigDict

from tests.small_models import images_for, small_vit
from vitx import parallel
from vitx.models.affinitynet import AffinityNet
from vitx.pipeline.affinity import pair_loss
from vitx.pipeline.classifier import image_loss
from vitx.training.loop import TrainState
from vitx.training.optimizer import gradient_step, learning_rate, make_optimizer


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


@pytest.mark.parametrize("warmup", [0, 1])
def test_rates_that_fall_by_step(warmup: int) -> None:
    steps, ramp = 6, 2 * warmup
    share = np.clip(np.arange(steps) - ramp, 0, None) / (steps - ramp)
    expected = {"poly": (1 - share) ** 0.9, "cosine": np.cos(np.pi * share / 2) ** 2}
    for kind, decay in expected.items():
        config = _config(schedule=kind, epochs=3, warmup_epochs=warmup)
        rate = learning_rate(config, steps_per_epoch=2)
        found = [float(rate(jnp.int32(step))) for step in range(steps)]
        first = np.minimum(1, (np.arange(steps) + 1) / ramp) if ramp else 1
        np.testing.assert_allclose(found, 0.5 * np.minimum(decay, first), rtol=1e-6)


def test_a_momentum_of_ones_own() -> None:
    """Against the sum over earlier gradients, each times the momentum to the power of its age."""
    optimizer = make_optimizer(_config(momentum=0.25, weight_decay=0.0), steps_per_epoch=1000)
    gradients = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    state = optimizer.init(jnp.zeros(3))
    for step in range(4):
        update, state = optimizer.update(jnp.asarray(gradients[step]), state, jnp.zeros(3))
        ages = np.arange(step, -1, -1.0)
        expected = -0.5 * (0.25**ages) @ gradients[: step + 1]
        np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-6)


def test_an_unknown_schedule_is_named() -> None:
    with pytest.raises(ValueError, match="schedule must be one of linear, poly, cosine, not 'x'"):
        learning_rate(_config(schedule="x"), steps_per_epoch=1)


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
    with pytest.raises(ValueError, match="one of sgd, adamw, not 'adam'"):
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


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_rates_scale_the_step_of_each_parameter(optimizer: str) -> None:
    """Momentum, clipping and decay are as without them."""
    config = _config(optimizer=optimizer, clip_norm=1.0)
    params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([0.5])}
    rates = {"a": 0.25, "b": 1.0}
    plain = make_optimizer(config, steps_per_epoch=1000)
    scaled = make_optimizer(config, steps_per_epoch=1000, rates=rates)
    state, scaled_state = plain.init(params), scaled.init(params)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        for gradient in (0.5, -1.0, 0.125):
            gradients = jax.tree.map(lambda x, g=gradient: x + g, params)
            expected, state = plain.update(gradients, state, params)
            found, scaled_state = scaled.update(gradients, scaled_state, params)
            np.testing.assert_allclose(found["a"], 0.25 * expected["a"], rtol=1e-6)
            np.testing.assert_array_equal(found["b"], expected["b"])


@pytest.mark.parametrize("warmup", [-1, 4, 5])
def test_warm_up_must_end_before_training_does(warmup: int) -> None:
    with pytest.raises(ValueError, match=rf"warmup_epochs must be in \[0, epochs\), not {warmup}"):
        learning_rate(_config(warmup_epochs=warmup), steps_per_epoch=1)


@pytest.mark.parametrize("mode", parallel.MODES)
@pytest.mark.usefixtures("x64")
def test_accumulated_parts_make_the_step_of_the_whole_batch(mode: str) -> None:
    generator = np.random.default_rng(0)
    params = {"w": jnp.asarray(generator.normal(size=(5, 2)))}
    batch = {"x": generator.normal(size=(48, 5)), "y": generator.normal(size=(48, 2))}

    def loss(params, batch, axis):
        errors = jnp.square(jnp.tanh(batch["x"] @ params["w"]) - batch["y"]).sum(1)
        return errors.sum() / parallel.sum_over_devices(jnp.ones_like(errors).sum(), axis)

    optimizer = make_optimizer(_config(), steps_per_epoch=2)
    state = TrainState.create(params, optimizer)
    steps = [
        gradient_step(loss, optimizer, mode, accumulate=parts)(jax.tree.map(jnp.copy, state), batch)
        for parts in (1, 3)
    ]
    (whole, value), (parts, same) = steps
    np.testing.assert_allclose(same["loss"], value["loss"], rtol=1e-12)
    np.testing.assert_allclose(parts.params["w"], whole.params["w"], rtol=1e-12)


def _of_params(loss, graph):
    return lambda params, batch, axis: loss(nnx.merge(graph, params), batch, axis)


@pytest.mark.exhaustive
def test_bfloat16_computes_near_float32_and_keeps_its_parameters() -> None:
    model = small_vit()
    graph, params = nnx.split(model)
    batch = {"image": np.asarray(images_for(model, 16)), "labels": np.ones((16, 3), np.float32)}
    optimizer = make_optimizer(_config(learning_rate=1e-2), steps_per_epoch=2)
    losses = {}
    for compute in ("float32", "bfloat16"):
        state = TrainState.create(jax.tree.map(jnp.copy, params), optimizer)
        step = gradient_step(_of_params(image_loss, graph), optimizer, compute=compute)
        state, found = step(state, batch)
        losses[compute] = float(found["loss"])
        assert found["loss"].dtype == jnp.float32
        assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert losses["bfloat16"] != losses["float32"]
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.02)
    with pytest.raises(ValueError, match="compute must be one of float32, bfloat16, not 'half'"):
        gradient_step(_of_params(image_loss, graph), optimizer, compute="half")


class _NoStem(nnx.Module):
    channels = 3

    def __call__(self, images: jax.Array) -> jax.Array:
        return images


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mode", ["jit", pytest.param("pmap", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("what", ["classifier", "affinity"])
def test_eight_devices_take_the_steps_of_one(what: str, mode: str) -> None:
    model, generator = small_vit(depth=1), np.random.default_rng(0)
    batch = {"image": np.asarray(images_for(model, 16))}
    if what == "classifier":
        batch["labels"] = generator.integers(0, 2, (16, 3)).astype(np.float64)
        loss = image_loss
    else:
        # Devices differ in how many pairs of each kind they see, and some see none.
        batch["label"] = generator.choice(np.uint8([0, 1, 255]), (16, 8, 12), p=[0.5, 0.3, 0.2])
        batch["label"][:4] = 255
        model = AffinityNet(
            _NoStem(), (8, 12), preprocess=None, hidden=32, features=32, rngs=nnx.Rngs(0)
        )
        loss = pair_loss(radius=3)

    graph, params = nnx.split(model)
    optimizer = make_optimizer(_config(optimizer="adamw", learning_rate=1e-3), steps_per_epoch=2)
    state = TrainState.create(params, optimizer)
    alone = jax.jit(gradient_step_of_one(_of_params(loss, graph), optimizer))
    spread = gradient_step(_of_params(loss, graph), optimizer, mode)
    one, eight = state, jax.tree.map(jnp.copy, state)
    for _ in range(2):
        one, expected = alone(one, batch)
        eight, found = spread(eight, batch)
        np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-9)
    for got, wanted in zip(jax.tree.leaves(eight), jax.tree.leaves(one), strict=True):
        assert len(got.sharding.device_set) == 8
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-9 * (np.abs(wanted).max() + 1e-3))


def gradient_step_of_one(loss, optimizer):
    """A step written out."""

    def step(state, batch):
        value, gradient = jax.value_and_grad(loss)(state.params, batch, None)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, opt_state, state.step + 1), {"loss": value}

    return step


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("mode", ["jit", pytest.param("pmap", marks=pytest.mark.exhaustive)])
def test_frozen_parameters_take_no_part(mode: str, accumulate: int) -> None:
    """The others move as if the frozen ones were constants, which clipping, momentum and decay never see."""
    model, generator = small_vit(depth=1), np.random.default_rng(0)
    batch = {"image": np.asarray(images_for(model, 16))}
    batch["labels"] = generator.integers(0, 2, (16, 3)).astype(np.float64)
    graph, *states = nnx.split(model, lambda path, _: path[0] == "blocks", ...)
    frozen, params = states
    kept = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(frozen)]
    optimizer = make_optimizer(_config(clip_norm=0.01), steps_per_epoch=2)

    def of_the_others(params, batch, axis):
        return image_loss(nnx.merge(graph, params, frozen), batch, axis)

    alone = jax.jit(gradient_step_of_one(of_the_others, optimizer))
    step = gradient_step(
        _of_params(image_loss, graph), optimizer, mode, frozen=frozen, accumulate=accumulate
    )
    expected = TrainState.create(params, optimizer)
    found = jax.tree.map(jnp.copy, expected)
    for _ in range(2):
        expected, _ = alone(expected, batch)
        found, _ = step(found, batch)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for got, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-7, atol=1e-12)
    assert [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(frozen)] == kept
