"""Data parallelism: one mesh axis over all devices, `jit` with shardings.

Nothing in vitx mixes the images of a batch, so a sharded batch needs no communication except the
sum of the gradients, which XLA inserts because the parameters are replicated.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "data"


@functools.cache
def mesh(devices: tuple[jax.Device, ...] | None = None) -> Mesh:
    """A one-dimensional mesh, axis "data", over `devices` or all there are.

    Its axis is Auto: the compiler propagates shardings through the model's reshapes.
    """
    devices = tuple(jax.devices()) if devices is None else devices
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def shard_batch(batch: Any, over: Mesh | None = None) -> Any:
    """Puts host arrays (B, ...) on the mesh's devices, each with B / devices examples.

    With several processes each gives its own part of the batch.

    Raises:
        ValueError: B is no multiple of the number of devices; see `pad_batch`.
    """
    over = over or mesh()
    local = over.local_mesh.size
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if np.ndim(leaf) == 0 or np.shape(leaf)[0] % local:
            raise ValueError(
                f"batch{jax.tree_util.keystr(path)} has shape {np.shape(leaf)}: its first "
                f"dimension must be a multiple of the {local} devices; pad it with pad_batch"
            )
    sharding = NamedSharding(over, P(AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def replicate(tree: Any, over: Mesh | None = None) -> Any:
    """Puts a copy of a pytree of arrays on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(over or mesh(), P()))


def data_parallel(
    function: Callable[..., Any],
    *,
    batch_argnums: Sequence[int] = (1,),
    sharded_output: bool = False,
    donate_argnums: Sequence[int] = (),
    over: Mesh | None = None,
) -> Callable[..., Any]:
    """Jits a function of positional pytrees over the mesh.

    Args:
        function: For example (state, batch) -> (state, metrics), with means over the whole batch,
            or (model, images) -> maps.
        batch_argnums: Arguments whose arrays are sharded along their first axis; the others are
            replicated.
        sharded_output: Whether results are per example, or replicated.
        donate_argnums: Arguments whose memory the results may take.
        over: The mesh; all devices if not given.
    """
    over = over or mesh()
    split, whole = NamedSharding(over, P(AXIS)), NamedSharding(over, P())
    arguments = range(len(inspect.signature(function).parameters))
    return jax.jit(
        function,
        in_shardings=tuple(split if i in batch_argnums else whole for i in arguments),
        out_shardings=split if sharded_output else whole,
        donate_argnums=tuple(donate_argnums),
    )


def pad_batch(batch: Any, multiple: int) -> tuple[Any, np.ndarray]:
    """Repeats the last example until the batch is a multiple of `multiple`.

    Args:
        batch: Pytree of host arrays (B, ...).
        multiple: For example the number of devices.

    Returns:
        The pytree with arrays (B', ...), and `valid`, bool (B',), False where an example was added.

    Raises:
        ValueError: The batch is empty, or its arrays differ in B.
    """
    sizes = {np.shape(leaf)[0] for leaf in jax.tree.leaves(batch)}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"a batch needs arrays of one size, not empty; got sizes {sorted(sizes)}")
    (size,) = sizes
    padded = -(-size // multiple) * multiple
    rows = np.minimum(np.arange(padded), size - 1)  # (B',)
    return jax.tree.map(lambda x: np.asarray(x)[rows], batch), np.arange(padded) < size
