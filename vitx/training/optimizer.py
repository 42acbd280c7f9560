"""What the training stages share: optimiser, learning rate, the step, and the run of the loop."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vitx import parallel
from vitx.ops import Array
from vitx.run import MetricsWriter
from vitx.stages import Run
from vitx.training.checkpointing import Checkpoints
from vitx.training.loop import TrainState, fit
from vitx.workdir import Stage

Loss = Callable[[Any, Mapping[str, Array], str | None], Array]


def minimise(
    run: Run,
    stage: Stage,
    config: Any,
    params: Any,
    loss: Loss,
    batches: Callable[[int], Iterator[Mapping[str, Any]]],
    evaluate: Callable[[Any], Mapping[str, float]],
    steps_per_epoch: int,
) -> Any:
    """Trains `config.epochs` epochs in a stage's folder; returns the parameters of least validation loss.

    Args:
      run: the experiment.
      stage: where to keep checkpoints and metrics; an earlier start of it is resumed.
      config: as for `make_optimizer`.
      params: the first parameters.
      loss: (params, batch, axis) -> scalar: all of the batch's loss, or with the axis of a `jax.pmap` the device's
        share of it.
      batches: first step -> iterator of this process's host batches.
      evaluate: params -> scores, with "loss".
      steps_per_epoch: of `batches`.

    Raises:
      ValueError: where the split is smaller than a batch.
    """
    if not steps_per_epoch:
        raise ValueError(f"{stage.folder.name}: the training split holds less than one batch")
    optimizer = make_optimizer(config, steps_per_epoch)
    first = TrainState.create(params, optimizer)
    folder = stage.folder / "checkpoints"
    with MetricsWriter(stage.folder) as metrics, Checkpoints(folder) as checkpoints:
        best = fit(
            gradient_step(loss, optimizer, run.config.parallel),
            parallel.replicate(first),
            batches,
            steps=config.epochs * steps_per_epoch,
            steps_per_epoch=steps_per_epoch,
            evaluate=lambda state: evaluate(state.params),
            checkpoints=checkpoints,
            metrics=metrics,
            stop=run.stop,
            description=stage.folder.name,
        )
    return best.state.params


def gradient_step(
    loss: Loss, optimizer: optax.GradientTransformation, mode: str = "jit"
) -> Callable[..., Any]:
    """A data-parallel training step: (state, batch) -> (state, {"loss"}); the state's memory is reused."""
    axis = parallel.axis_of(mode)

    def step(state: TrainState, batch: Mapping[str, Array]) -> tuple[TrainState, dict[str, Array]]:
        shares = jax.value_and_grad(loss)(state.params, batch, axis)
        value, gradient = parallel.total(shares, axis)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes where ours are strict
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, opt_state, state.step + 1), {"loss": value}

    return parallel.data_parallel(step, donate_argnums=(0,), mode=mode)


def learning_rate(config: Any, steps_per_epoch: int) -> optax.Schedule:
    """Linear from `learning_rate` to 0 over `epochs`, one value an epoch; before it a linear warm-up by step."""
    peak, epochs, warmup = config.learning_rate, config.epochs, config.warmup_epochs
    if not 0 <= warmup < epochs:
        raise ValueError(f"warmup_epochs must be in [0, epochs), not {warmup} of {epochs}")

    def schedule(step: Any) -> Any:
        decay = (epochs - step // steps_per_epoch) / (epochs - warmup)
        ramp = (step + 1) / (warmup * steps_per_epoch) if warmup else 1.0
        return peak * jnp.minimum(jnp.minimum(decay, 1.0), ramp)

    return schedule


def make_optimizer(config: Any, steps_per_epoch: int) -> optax.GradientTransformation:
    """The optimiser that a stage's config names.

    Args:
      config: has optimizer ("sgd", with momentum 0.9 and decay in the gradient as in PyTorch, or "adamw"),
        learning_rate, epochs, warmup_epochs, weight_decay, decay_norms_and_biases (as published; else only
        matrices and kernels decay), and clip_norm (of the whole gradient, 0 for none).
      steps_per_epoch: of the loader.

    Raises:
      ValueError: for another name.
    """
    rate = learning_rate(config, steps_per_epoch)
    decayed = None if config.decay_norms_and_biases else _matrices
    decay = config.weight_decay
    match config.optimizer:
        case "sgd":
            rule = optax.chain(
                optax.add_decayed_weights(decay, decayed), optax.sgd(rate, momentum=0.9)
            )
        case "adamw":
            rule = optax.adamw(rate, weight_decay=decay, mask=decayed)
        case other:
            raise ValueError(f"optimizer must be sgd or adamw, not {other!r}")
    return (
        optax.chain(optax.clip_by_global_norm(config.clip_norm), rule) if config.clip_norm else rule
    )


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda x: x.ndim > 1, params)
