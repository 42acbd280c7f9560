"""What an explanation costs: its matrix products, counted, over those of a forward."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr

from vitx.evaluation.comparison import Comparison
from vitx.explainable import Explainable


def cost_in_forwards(comparison: Comparison, model: Explainable) -> dict[str, float]:
    """The matrix products and convolutions of each method for one class of an image, over those of the model's forward.

    They are counted in the program that JAX traces, without what no result needs; nothing runs, and loops count in
    full. What a compiler shares beyond that is not seen.
    """
    shape = jax.ShapeDtypeStruct((1, *model.preprocess.size, 3), model.dtype)
    classes = jax.ShapeDtypeStruct((1, 1), np.int32)
    forward = product_flops(lambda model, images: model(images), model, shape)
    return {
        method: product_flops(partial(comparison.maps_of, method), model, shape, classes) / forward
        for method in comparison.methods
    }


def product_flops(function: Callable[..., Any], *arguments: Any) -> float:
    """FLOPs of the matrix products and convolutions of a function, traced with arguments or their shapes."""
    traced = jax.make_jaxpr(function)(*arguments).jaxpr
    needed, _ = dce_jaxpr(traced, [True] * len(traced.outvars))
    return _flops(needed)


def _flops(program: core.Jaxpr) -> float:
    total = 0.0
    for equation in program.eqns:
        kind, parameters = equation.primitive.name, equation.params
        if kind == "dot_general":
            contracted, _ = parameters["dimension_numbers"][0]
            sides = [_shape(equation.invars[0])[axis] for axis in contracted]
            total += 2.0 * np.prod(_shape(equation.outvars[0])) * np.prod(sides)
        elif kind == "conv_general_dilated":
            kernel = _shape(equation.invars[1])
            outputs = kernel[parameters["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * np.prod(_shape(equation.outvars[0])) * np.prod(kernel) / outputs
        rounds = parameters["length"] if kind == "scan" else 1
        total += rounds * sum(map(_flops, _inner(parameters.values())))
    return float(total)


def _inner(parameters: Iterable[Any]) -> list[core.Jaxpr]:
    """The programs among an operation's parameters."""
    found = []
    for value in parameters:
        if isinstance(value, core.ClosedJaxpr):
            found.append(value.jaxpr)
        elif isinstance(value, core.Jaxpr):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += _inner(value)
    return found


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape
