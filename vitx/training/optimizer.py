"""Training by gradients: the optimiser, its learning rate, and the data-parallel step."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from ml_collections import ConfigDict

from vitx import parallel
from vitx.ops import Array
from vitx.runtime.signals import StopRequest
from vitx.training.loop import TrainState, fit

COMPUTE = ("float32", "bfloat16")
OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("linear", "poly", "cosine")

Loss = Callable[[Any, Mapping[str, Array], str | None], Array]


def check_batch(config: ConfigDict, stage: str, images: int) -> None:
    """Raises ValueError if a stage's batch does not divide over the devices, or is larger than its `images`."""
    devices = parallel.mesh().size
    if config.accumulate < 1 or config.batch_size % (devices * config.accumulate):
        raise ValueError(
            f"config.{stage}.batch_size {config.batch_size} must be a multiple of {devices} devices times "
            f"accumulate={config.accumulate}"
        )
    if images < config.batch_size:
        raise ValueError(
            f"config.{stage}.train_split={config.train_split} has {images} images, fewer than a batch: lower "
            f"config.{stage}.batch_size, {config.batch_size}"
        )


def minimise(
    config: ConfigDict,
    params: Any,
    loss: Loss,
    batches: Callable[[int], Iterator[Mapping[str, Any]]],
    evaluate: Callable[[Any], Mapping[str, float]],
    steps_per_epoch: int,
    *,
    folder: Path,
    stop: StopRequest,
    mode: str = "jit",
    frozen: nnx.State | None = None,
    rates: Any = None,
) -> Any:
    """Trains `config.epochs` epochs, and returns the parameters, or their average, of least validation loss.

    Args:
        config: See `make_optimizer`; besides accumulate, compute and average, see `gradient_step`, and batch_size.
        params: The first parameters.
        loss: (params, batch, axis) -> scalar: the loss of the batch, or under `jax.pmap` over `axis` the device's
            share of it.
        batches: First step -> iterator of this process's host batches.
        evaluate: Parameters, or their average -> scores, with "loss".
        steps_per_epoch: Of `batches`.
        folder: See `fit`; named like the stage.
        stop: See `fit`.
        mode: See `parallel.data_parallel`.
        frozen: See `gradient_step`.
        rates: See `make_optimizer`.

    Raises:
        ValueError: The split is smaller than a batch, or the batch does not divide over the devices.
    """
    check_batch(config, folder.name, steps_per_epoch * config.batch_size)
    optimizer = make_optimizer(config, steps_per_epoch, rates)
    step = gradient_step(
        loss,
        optimizer,
        mode,
        frozen=frozen,
        accumulate=config.accumulate,
        compute=config.compute,
        average=config.average,
    )
    best = fit(
        step,
        parallel.replicate(TrainState.create(params, optimizer, config.average > 0)),
        batches,
        lambda state: evaluate(state.weights),
        folder=folder,
        steps=config.epochs * steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        stop=stop,
    )
    return best.weights


def gradient_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    mode: str = "jit",
    *,
    frozen: nnx.State | None = None,
    accumulate: int = 1,
    compute: str = "float32",
    average: float = 0.0,
) -> Callable[..., Any]:
    """A data-parallel training step: (state, batch) -> (state, {"loss"}); the state's memory is reused.

    Args:
        loss: See `minimise`.
        optimizer: Updates the parameters.
        mode: See `parallel.data_parallel`.
        frozen: Parameters that stay as they are; the loss gets them merged into the others.
        accumulate: Number of parts of a batch that are computed one after the other, for devices with little memory.
            The gradient is the mean of theirs; each part normalises its loss by its own counts.
        compute: "bfloat16" computes in that type; parameters, their gradients and the loss keep theirs.
        average: Decay per step of the state's average of the parameters, in [0, 1), see `_moved`; 0 for a state
            without one.

    Raises:
        ValueError: The mode or the type is unknown.
    """
    axis = parallel.axis_of(mode)
    if compute not in COMPUTE:
        raise ValueError(f"compute must be one of {', '.join(COMPUTE)}, not {compute!r}")

    def step(
        state: TrainState, batch: Mapping[str, Array], fixed: nnx.State | None
    ) -> tuple[TrainState, dict[str, Array]]:
        @jax.value_and_grad
        def gradient_of(params: Any, batch: Mapping[str, Array]) -> Array:
            params = nnx.merge_state(params, fixed) if fixed else params
            if compute == "bfloat16":
                params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
            return loss(params, batch, axis)

        found = _accumulated(gradient_of, state.params, batch, accumulate)
        value, gradient = parallel.sum_over_devices(found, axis)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes where ours are strict
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        mean = _moved(state.average, params, average, state.step) if average else state.average
        return TrainState(params, opt_state, state.step + 1, mean), {"loss": value}

    run = parallel.data_parallel(step, donate_argnums=(0,), mode=mode)
    spread = parallel.replicate(frozen)
    return lambda state, batch: run(state, batch, spread)


def _accumulated(
    gradient_of: Callable[..., tuple[Array, Any]],
    params: Any,
    batch: Mapping[str, Array],
    count: int,
) -> tuple[Array, Any]:
    """The mean of the values and gradients of `count` parts of a batch."""
    if count == 1:
        return gradient_of(params, batch)
    # Neighbours go into different parts, so that every example stays on its device.
    parts = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch)
    found = jax.eval_shape(gradient_of, params, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), found)
    total, _ = jax.lax.scan(
        lambda total, part: (jax.tree.map(jnp.add, total, gradient_of(params, part)), None),
        zeros,
        parts,
    )
    return jax.tree.map(lambda x: x / count, total)


def _moved(average: Any, params: Any, decay: float, step: Array) -> Any:
    """The average after `step` steps and one more, which led to `params`.

    The decay is min(decay, (1 + step) / (10 + step)), as in TensorFlow's ExponentialMovingAverage with num_updates, so
    that the first parameters are soon forgotten.
    """
    with jax.numpy_dtype_promotion("standard"):  # a weak type: the average keeps its own
        share = jnp.maximum(1 - decay, 9.0 / (10 + step))
        return optax.incremental_update(params, average, share)


def at_least_float32(x: Array) -> Array:
    """Casts half precision to float32, in which losses are computed."""
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)


def learning_rate(config: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """From `learning_rate` to 0 over `epochs` by the config's `schedule`; before it a linear warm-up by step.

    "linear", also of configs without a schedule: one value an epoch. "poly" ((1 - t)^0.9, DeepLab) and "cosine": one a
    step, of the share t of the steps after the warm-up.
    """
    peak, epochs, warmup = config.learning_rate, config.epochs, config.warmup_epochs
    if not 0 <= warmup < epochs:
        raise ValueError(f"warmup_epochs must be in [0, epochs), not {warmup} of {epochs}")
    kind = config.get("schedule", "linear")
    if kind not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {kind!r}")

    def share(step: Any) -> Any:
        return jnp.clip((step / steps_per_epoch - warmup) / (epochs - warmup), 0, 1)

    def schedule(step: Any) -> Any:
        match kind:
            case "linear":
                decay = (epochs - step // steps_per_epoch) / (epochs - warmup)
            case "poly":
                decay = (1 - share(step)) ** 0.9
            case _:
                decay = (1 + jnp.cos(jnp.pi * share(step))) / 2
        ramp = (step + 1) / (warmup * steps_per_epoch) if warmup else 1.0
        return peak * jnp.minimum(jnp.minimum(decay, 1.0), ramp)

    return schedule


def make_optimizer(
    config: ConfigDict, steps_per_epoch: int, rates: Any = None
) -> optax.GradientTransformation:
    """The optimiser that a stage's config names.

    Args:
        config: Has optimizer ("sgd", with weight decay added to the gradient as in PyTorch and perhaps a momentum other
            than 0.9, or "adamw"), learning_rate, epochs, warmup_epochs, perhaps schedule, weight_decay,
            decay_norms_and_biases (True as published; else all but vectors decay), and clip_norm (of the whole
            gradient, 0 for none).
        steps_per_epoch: Of the loader.
        rates: Factors of the parameters' learning rates, a pytree like theirs; None: all 1.

    Raises:
        ValueError: The name is unknown.
    """
    rate = learning_rate(config, steps_per_epoch)
    decayed = None if config.decay_norms_and_biases else _matrices
    decay = config.weight_decay
    match config.optimizer:
        case "sgd":
            rule = optax.chain(
                optax.add_decayed_weights(decay, decayed),
                optax.sgd(rate, momentum=config.get("momentum", 0.9)),
            )
        case "adamw":
            rule = optax.adamw(rate, weight_decay=decay, mask=decayed)
        case other:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, not {other!r}")
    if (
        rates is not None
    ):  # both rules end with the rate, so that a factor of the update is one of it
        scale = optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, rates))
        rule = optax.chain(rule, scale)
    return (
        optax.chain(optax.clip_by_global_norm(config.clip_norm), rule) if config.clip_norm else rule
    )


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda x: x.ndim > 1, params)
