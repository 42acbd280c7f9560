"""A function's matrix products as an accelerator takes them, emulated on any device by rounding their operands.

Each matrix product and convolution of float32 operands is replaced by those of rounded ones, whose exact products are
added in float32:

- "high": three products of bfloat16 parts, x = high + low: high high' + high low' + low high'
  (`jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X3`; `Precision.HIGH` of TPUs);
- "tf32": one product of operands rounded to 10 bits of mantissa, to the nearest (NVIDIA's TensorFloat-32);
- "bfloat16": one product of operands rounded to bfloat16.

What a device adds to this is the order of its sums.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from vitx.ops import Array

_BILINEAR = (lax.dot_general_p, lax.conv_general_dilated_p)
_TF32_BITS = 13  # of float32's mantissa, that TensorFloat-32 lacks


def to_bfloat16(x: Array) -> Array:
    """The nearest bfloat16, ties to even, as float32."""
    return lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def to_tf32(x: Array) -> Array:
    """The nearest number of 10 bits of mantissa, ties to even, as float32."""
    return lax.reduce_precision(x, exponent_bits=8, mantissa_bits=23 - _TF32_BITS)


def _high(product: Callable[[Array, Array], Array], x: Array, y: Array) -> Array:
    first, second = to_bfloat16(x), to_bfloat16(y)
    rest, other = to_bfloat16(x - first), to_bfloat16(y - second)
    return product(rest, second) + product(first, other) + product(first, second)


PRODUCTS: dict[str, Callable[[Callable[[Array, Array], Array], Array, Array], Array]] = {
    "high": _high,
    "tf32": lambda product, x, y: product(to_tf32(x), to_tf32(y)),
    "bfloat16": lambda product, x, y: product(to_bfloat16(x), to_bfloat16(y)),
}


def emulated(function: Callable[..., Any], precision: str) -> Callable[..., Any]:
    """The function whose float32 products, its derivatives' among them, have the precision: a key of `PRODUCTS`.

    The function takes and returns pytrees of arrays.
    """

    @jax.jit
    def rounded(*arguments: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
        leaves = jax.tree.leaves(arguments)
        values = _evaluate(closed.jaxpr, closed.consts, leaves, precision)
        return jax.tree.unflatten(jax.tree.structure(shape), values)

    return rounded


def _evaluate(
    jaxpr: Any, constants: Sequence[Any], inputs: Sequence[Any], precision: str
) -> list[Any]:
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *inputs], strict=True))
    for equation in jaxpr.eqns:
        values = [x.val if isinstance(x, core.Literal) else known[x] for x in equation.invars]
        known |= zip(equation.outvars, _apply(equation, values, precision), strict=True)
    return [x.val if isinstance(x, core.Literal) else known[x] for x in jaxpr.outvars]


def _apply(equation: core.JaxprEqn, inputs: Sequence[Any], precision: str) -> Sequence[Any]:
    """The results of an operation. What it calls is evaluated in its place: all derivatives are taken already."""
    primitive, options = equation.primitive, equation.params
    if primitive in (lax.while_p, lax.cond_p):
        raise NotImplementedError(f"{primitive.name}, whose products would stay exact")
    if primitive in _BILINEAR and inputs[0].dtype == inputs[1].dtype == jnp.float32:
        product = partial(primitive.bind, **options | {"precision": lax.Precision.HIGHEST})
        return [PRODUCTS[precision](product, *inputs)]
    called = options.get("call_jaxpr", options.get("jaxpr"))
    if primitive is lax.scan_p:
        body = partial(_evaluate, called.jaxpr, called.consts, precision=precision)
        options = options | {"jaxpr": jax.make_jaxpr(lambda *given: body(given))(*called.in_avals)}
    elif isinstance(called, core.ClosedJaxpr):
        return _evaluate(called.jaxpr, called.consts, inputs, precision)
    elif called is not None:
        return _evaluate(called, (), inputs, precision)
    found = primitive.bind(*inputs, **options)
    return found if primitive.multiple_results else [found]
