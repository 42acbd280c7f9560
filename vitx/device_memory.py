"""The accelerator's memory: how much there is, and an error that says what to do where it ends."""

import contextlib
import math
from collections.abc import Iterator

import jax


def device_bytes() -> float:
    """The memory of one of this process's devices; infinite where JAX does not know it, as on a CPU."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", math.inf)


@contextlib.contextmanager
def remedy(message: str) -> Iterator[None]:
    """Raises MemoryError with this message where XLA ran out of memory; other errors pass."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(message) from error
