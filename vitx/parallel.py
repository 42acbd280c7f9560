"""Data parallelism: one mesh axis over devices, and `jit` with shardings; or `jax.pmap`.

Nothing in vitx mixes the images of a batch, so a sharded batch needs no communication except the
sum of the gradients. Under `jit` XLA inserts that; under `jax.pmap` functions say it with `total`.
Training runs over the devices of all processes, everything else over those of one.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vitx.device_memory import remedy

AXIS = "data"
MODES = ("jit", "pmap")


@functools.cache
def mesh(devices: tuple[jax.Device, ...] | None = None) -> Mesh:
    """A one-dimensional mesh, axis "data", over `devices` or all there are, of all processes.

    Its axis is Auto: the compiler propagates shardings through the model's reshapes.
    """
    devices = tuple(jax.devices()) if devices is None else devices
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def local_mesh() -> Mesh:
    """The mesh over this process's own devices."""
    return mesh(tuple(jax.local_devices())) if jax.process_count() > 1 else mesh()


def shard_batch(batch: Any, over: Mesh | None = None) -> Any:
    """Puts host arrays (B, ...) on the mesh's devices, each with B / devices examples.

    With several processes each gives its own part of the batch.

    Raises:
        ValueError: B is no multiple of the number of devices; see `pad_batch`.
    """
    over = over or mesh()
    sharding = NamedSharding(over, P(AXIS))

    def put(x: Any) -> Any:
        return x if _lies(x, sharding) else jax.make_array_from_process_local_data(sharding, x)

    return jax.tree.map(put, _divisible(batch, over.local_mesh.size))


def _divisible(batch: Any, devices: int) -> Any:
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if np.ndim(leaf) == 0 or np.shape(leaf)[0] % devices:
            raise ValueError(
                f"batch{jax.tree_util.keystr(path)} has shape {np.shape(leaf)}: its first "
                f"dimension must be a multiple of the {devices} devices; pad it with pad_batch"
            )
    return batch


def replicate(tree: Any, over: Mesh | None = None) -> Any:
    """Puts a copy of a pytree of arrays on every device of the mesh, where it is not there yet.

    On a device that holds an array already the copy may be that array: who donates it donates both.
    """
    sharding = NamedSharding(over or mesh(), P())

    def put(x: Any) -> Any:
        if _lies(x, sharding):
            return x
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            x = x.addressable_data(0)  # of a mesh over all processes, where it was replicated
        return jax.device_put(x, sharding)

    there = all(_lies(leaf, sharding) for leaf in jax.tree.leaves(tree))
    return tree if there else jax.tree.map(put, tree)


def _lies(x: Any, sharding: NamedSharding) -> bool:
    return isinstance(x, jax.Array) and x.sharding == sharding


def axis_of(mode: str) -> str | None:
    """The axis that a function under this mode sums over, for `total`: None under "jit".

    Raises:
        ValueError: for a mode not in `MODES`.
    """
    if mode not in MODES:
        raise ValueError(f"config.parallel must be one of {', '.join(MODES)}, not {mode!r}")
    return AXIS if mode == "pmap" else None


def total(tree: Any, axis: str | None) -> Any:
    """The sum of a pytree over the devices of an axis; itself under "jit", which sees all of it."""
    return tree if axis is None else lax.psum(tree, axis)


def data_parallel(
    function: Callable[..., Any],
    *,
    batch_argnums: Sequence[int] = (1,),
    sharded_output: bool = False,
    donate_argnums: Sequence[int] = (),
    over: Mesh | None = None,
    mode: str = "jit",
) -> Callable[..., Any]:
    """Compiles a function of positional pytrees for a mesh, and puts its arguments there.

    Args:
        function: For example (state, batch) -> (state, metrics), with sums over the whole batch
            through `total`, or (model, images) -> maps.
        batch_argnums: Arguments whose arrays are sharded along their first axis; the others are
            replicated.
        sharded_output: Whether results are per example, or replicated.
        donate_argnums: Arguments whose memory the results may take.
        over: The mesh; all devices if not given.
        mode: "jit", or "pmap", under which the function sees one device's examples.

    Raises:
        ValueError: for an unknown mode, or "pmap" over the devices of several processes.
    """
    over = over or mesh()
    if mode == "pmap" and over.local_mesh.size < over.size:
        raise ValueError(
            "config.parallel='pmap' trains in one process only; with several take 'jit'"
        )
    arguments = range(len(inspect.signature(function).parameters))
    if axis_of(mode) is None:
        split, whole = NamedSharding(over, P(AXIS)), NamedSharding(over, P())
        run = jax.jit(
            function,
            in_shardings=tuple(split if i in batch_argnums else whole for i in arguments),
            out_shardings=split if sharded_output else whole,
            donate_argnums=tuple(donate_argnums),
        )
    else:
        run = jax.pmap(
            function,
            AXIS,
            in_axes=tuple(0 if i in batch_argnums else None for i in arguments),
            out_axes=0 if sharded_output else None,
            donate_argnums=tuple(donate_argnums),
            devices=over.devices.flatten().tolist(),
        )
    batch = functools.partial(shard_batch if axis_of(mode) is None else _by_device, over=over)

    def call(*arguments: Any) -> Any:
        placed = (
            batch(argument) if i in batch_argnums else replicate(argument, over)
            for i, argument in enumerate(arguments)
        )
        result = run(*placed)
        if axis_of(mode) is None or not sharded_output:
            return result
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), result)

    call.lower = run.lower  # type: ignore[attr-defined]  # to look at the compiled program
    return call


def _by_device(batch: Any, over: Mesh) -> Any:
    """Arrays (B, ...) as `jax.pmap` wants them, (devices of this process, B / devices, ...)."""
    local = over.local_mesh.size
    return jax.tree.map(lambda x: x.reshape(local, -1, *x.shape[1:]), _divisible(batch, local))


def per_example(
    function: Callable[..., Any], *, mode: str = "jit", over: Mesh | None = None
) -> Callable[..., Any]:
    """Compiles a function whose results are per example for this process's devices, for any number of examples.

    Args:
        function: (model, arrays (B, ...), ...) -> pytree of arrays (B, ...), where no example sees another.
        mode: See `data_parallel`.
        over: The mesh; this process's devices if not given.

    Returns:
        A function of the same arguments that gives NumPy arrays (B, ...). It fills the batch up to a multiple of the
        devices with repeats, whose results it drops. It raises MemoryError where the devices' memory ends.
    """
    over = over or local_mesh()
    count = len(inspect.signature(function).parameters)
    if axis_of(mode) is None:
        # Without it the compiler may gather a batch, for example to loop over its images.
        sharded = (P(AXIS),) * (count - 1)
        alone = jax.shard_map(
            function, mesh=over, in_specs=(P(), *sharded), out_specs=P(AXIS), check_vma=False
        )
        function = functools.wraps(function)(lambda *arguments: alone(*arguments))
    run = data_parallel(
        function, batch_argnums=range(1, count), sharded_output=True, over=over, mode=mode
    )

    def call(model: Any, *arrays: Any) -> Any:
        padded, valid = pad_batch(arrays, over.size)
        with remedy(
            f"the device's memory does not hold {len(valid)} images at once: give a smaller batch_size to this stage"
        ):
            return jax.tree.map(lambda x: np.asarray(x)[: valid.sum()], run(model, *padded))

    call.lower = run.lower  # type: ignore[attr-defined]
    return call


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
