"""What JAX traced, for tests that look into it."""

from collections.abc import Iterator
from typing import Any

from jax.extend.core import JaxprEqn, jaxprs_in_params


def operations(program: Any) -> Iterator[JaxprEqn]:
    """The operations of a jaxpr, and of those inside of them."""
    for equation in program.eqns:
        yield equation
        for inside in jaxprs_in_params(equation.params):
            yield from operations(inside)
