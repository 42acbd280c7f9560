"""The devices of a run: one mesh axis over them, and functions compiled for it by `jit`, or by `jax.pmap`.

Nothing in vitx mixes the images of a batch, so a sharded batch needs no communication except the sum of the
gradients. XLA inserts that sum under `jit`; under `jax.pmap` functions call `sum_over_devices`. Training runs over
the devices of all processes, everything else over those of one.
"""

import contextlib
import functools
import inspect
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "data"
MODES = ("jit", "pmap")
# Compute capability from which NVIDIA's GPUs multiply bfloat16, and cuDNN attends in it.
AMPERE = 8.0


@functools.cache
def mesh(devices: tuple[jax.Device, ...] | None = None) -> Mesh:
    """A one-dimensional mesh, axis "data", over `devices`; default: all devices of all processes.

    Its axis is Auto: the compiler propagates shardings through the model's reshapes.
    """
    devices = devices or tuple(jax.devices())
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def local_mesh() -> Mesh:
    """The mesh over this process's own devices."""
    return mesh(tuple(jax.local_devices()))


def shard_batch(batch: Any, over: Mesh | None = None) -> Any:
    """Puts host arrays (B, ...) on the mesh's devices, each with B / devices examples.

    With several processes each gives its own part of the batch. JAX raises ValueError if B is not a multiple of the
    number of devices; see `pad_batch`.
    """
    sharding = NamedSharding(over or mesh(), P(AXIS))

    def put(x: Any) -> Any:
        there = _has_sharding(x, sharding)
        return x if there else jax.make_array_from_process_local_data(sharding, x)

    return jax.tree.map(put, batch)


def replicate(tree: Any, over: Mesh | None = None) -> Any:
    """Puts a copy of a pytree of arrays on every device of the mesh that does not hold one yet.

    The copy may share memory with the array it came from: donating one donates both.
    """
    sharding = NamedSharding(over or mesh(), P())
    if all(_has_sharding(leaf, sharding) for leaf in jax.tree.leaves(tree)):
        return tree

    def own(x: Any) -> Any:
        """This process's copy of an array that is replicated over the devices of all processes."""
        whole = not isinstance(x, jax.Array) or x.is_fully_addressable
        return x if whole else x.addressable_data(0)

    return jax.device_put(jax.tree.map(own, tree), sharding)


def _has_sharding(x: Any, sharding: NamedSharding) -> bool:
    return isinstance(x, jax.Array) and x.sharding == sharding


def axis_of(mode: str) -> str | None:
    """The axis that a function under this mode sums over, see `sum_over_devices`: None under "jit".

    Raises:
        ValueError: The mode is not in `MODES`.
    """
    if mode not in MODES:
        raise ValueError(f"config.parallel must be one of {', '.join(MODES)}, not {mode!r}")
    return AXIS if mode == "pmap" else None


def sum_over_devices(tree: Any, axis: str | None) -> Any:
    """The sum of a pytree over an axis's devices; `tree` itself under "jit", whose arrays span all devices."""
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
        function: For example (state, batch) -> (state, metrics), whose sums over the whole batch go through
            `sum_over_devices`, or (model, images) -> maps.
        batch_argnums: Arguments whose arrays are sharded along their first axis; the others are replicated.
        sharded_output: Whether results are per example, or replicated.
        donate_argnums: Arguments whose memory the results may take.
        over: The mesh; default: all devices.
        mode: "jit", or "pmap", under which the function sees one device's examples.

    Raises:
        ValueError: The mode is unknown, or it is "pmap" and the mesh spans several processes.
    """
    over, axis = over or mesh(), axis_of(mode)
    if axis and over.local_mesh.size < over.size:
        raise ValueError(
            "config.parallel='pmap' trains in one process only; with several take 'jit'"
        )
    sharded = [i in batch_argnums for i in range(len(inspect.signature(function).parameters))]
    if axis is None:
        split, whole = NamedSharding(over, P(AXIS)), NamedSharding(over, P())
        run = jax.jit(
            function,
            in_shardings=tuple(split if on else whole for on in sharded),
            out_shardings=split if sharded_output else whole,
            donate_argnums=tuple(donate_argnums),
        )
    else:
        run = jax.pmap(
            function,
            axis,
            in_axes=tuple(0 if on else None for on in sharded),
            out_axes=0 if sharded_output else None,
            donate_argnums=tuple(donate_argnums),
            devices=over.devices.flatten().tolist(),
        )
    place = _by_device if axis else shard_batch

    def call(*arguments: Any) -> Any:
        pairs = zip(arguments, sharded, strict=True)
        result = run(*(place(x, over) if on else replicate(x, over) for x, on in pairs))
        if axis and sharded_output:
            return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), result)
        return result

    call.lower = run.lower  # type: ignore[attr-defined]  # to look at the compiled program
    return call


def _by_device(batch: Any, over: Mesh) -> Any:
    """Arrays (B, ...) in the layout of `jax.pmap`, (devices, B / devices, ...)."""
    return jax.tree.map(lambda x: x.reshape(over.size, -1, *x.shape[1:]), batch)


def per_example(
    function: Callable[..., Any], *, mode: str = "jit", over: Mesh | None = None
) -> Callable[..., Any]:
    """Compiles a function whose results are per example for this process's devices, for any number of examples.

    Args:
        function: (model, arrays (B, ...), ...) -> pytree of arrays (B, ...), where no example sees another.
        mode: See `data_parallel`.
        over: The mesh; default: this process's devices.

    Returns:
        A function of the same arguments that gives NumPy arrays (B, ...). It pads the batch to a multiple of the
        devices with repeats, and drops their results. It raises MemoryError where the devices run out of memory.
    """
    over = over or local_mesh()
    count = len(inspect.signature(function).parameters)
    if axis_of(mode) is None:
        # Without shard_map the compiler may gather a batch, for example to loop over its images.
        specs = (P(), *(P(AXIS),) * (count - 1))
        alone = jax.shard_map(
            function, mesh=over, in_specs=specs, out_specs=P(AXIS), check_vma=False
        )
        function = functools.wraps(function)(lambda *arguments: alone(*arguments))
    run = data_parallel(
        function, batch_argnums=range(1, count), sharded_output=True, over=over, mode=mode
    )

    def call(model: Any, *arrays: Any) -> Any:
        padded, valid = pad_batch(arrays, over.size)
        with out_of_memory(
            f"the device's memory does not hold {len(valid)} images at once: give a smaller batch_size to this stage"
        ):
            return jax.tree.map(lambda x: np.asarray(x)[: valid.sum()], run(model, *padded))

    call.lower = run.lower  # type: ignore[attr-defined]
    return call


def pad_batch(batch: Any, multiple: int) -> tuple[Any, np.ndarray]:
    """Repeats the last example until the batch size is a multiple of `multiple`, for example the number of devices.

    Returns:
        The pytree, of arrays (B, ...), with arrays (B', ...), and `valid`, bool (B',), False for each repeat.
    """
    size = len(jax.tree.leaves(batch)[0])
    padded = -(-size // multiple) * multiple
    rows = np.minimum(np.arange(padded), size - 1)  # (B',)
    return jax.tree.map(lambda x: np.asarray(x)[rows], batch), np.arange(padded) < size


def device_memory() -> float:
    """Bytes of memory of one of this process's devices; infinite where JAX does not know it, as on a CPU."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", math.inf)


def compute_capability() -> float:
    """That of this process's first GPU by NVIDIA, such as 8.0 for an A100; 0.0 for another kind of device."""
    found = str(getattr(jax.local_devices()[0], "compute_capability", ""))
    return float(found) if re.fullmatch(r"\d+\.\d", found) else 0.0  # AMD's is a name


@contextlib.contextmanager
def out_of_memory(message: str) -> Iterator[None]:
    """Raises MemoryError with this message where XLA runs out of memory; other errors pass."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(message) from error
