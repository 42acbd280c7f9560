"""Relevance rules: pure functions that share an operation's relevance out among its inputs.

A rule is `rule(inputs, output, relevance) -> relevances`, one for each input, None for a parameter. There is one
generic rule, the z-rule (Bach et al., 2015, eq. 56; Chefer et al., 2021, eq. 6); each other one changes one thing.
Everything is per image: no sum crosses the leading axis. Which rule the published code uses where:
docs/protocol.md.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vitx.ops import Array

Rule = Callable[[Sequence[Any], Any, Any], tuple[Any, ...]]
Operation = Callable[..., Any]

DENOMINATOR = 1e-9


def safe_divide(a: Array, b: Array) -> Array:
    """A / (b + 1e-9), 0 where b = 0; a denominator of exactly 0 is replaced by 1e-9."""
    denominator = b + DENOMINATOR
    denominator = jnp.where(denominator == 0, DENOMINATOR, denominator)
    return jnp.where(b == 0, 0.0, a / denominator)


def z_rule(op: Operation) -> Rule:
    """R_i = x_i * (dz / dx_i)^T (R / z), for an operation that is linear in each input."""

    def rule(inputs: Sequence[Array], output: Array, relevance: Array) -> tuple[Array, ...]:
        return _share(op, inputs, safe_divide(relevance, output))

    return rule


def stabilised(op: Operation, strength: float = 1e-3) -> Rule:
    """The z-rule with z + strength * sign(z) * op(|inputs|) below: bounded where summands cancel."""

    def rule(inputs: Sequence[Array], output: Array, relevance: Array) -> tuple[Array, ...]:
        magnitude = op(*(jnp.abs(x) for x in inputs))
        sign = jnp.where(output < 0, -1.0, 1.0).astype(output.dtype)
        return _share(op, inputs, safe_divide(relevance, output + strength * sign * magnitude))

    return rule


def halved(rule: Rule) -> Rule:
    """Each input of a product gets half, since the z-rule hands the whole relevance to both (eq. 11)."""
    return lambda *arguments: tuple(r / 2 for r in rule(*arguments))


def normalised(rule: Rule) -> Rule:
    """An add's two shares, rescaled so that their sums keep |sum| : |sum| and total R (section 4.2), per image."""

    def normalise(inputs: Sequence[Array], output: Array, relevance: Array) -> tuple[Array, ...]:
        shares = rule(inputs, output, relevance)
        sums = [_image_sum(share) for share in shares]
        weight = jnp.abs(sums[0]) + jnp.abs(sums[1])
        total = _image_sum(relevance)
        parts = [safe_divide(jnp.abs(s), weight) * total for s in sums]
        return tuple(
            share * safe_divide(part, s) for share, part, s in zip(shares, parts, sums, strict=True)
        )

    return normalise


def alpha1(op: Operation) -> Rule:
    """Linear layer, alpha = 1, beta = 0 (eq. 4 with positive parts): z+ = x+ w+ + x- w- below, one denominator.

    From z = x w, z+ = (z + |x||w|) / 2; so one product forward and two backward are enough.
    """

    def rule(inputs: Sequence[Array], output: Array, relevance: Array) -> tuple[Any, ...]:
        x, weight = inputs
        size, absolute = jnp.abs(x), jnp.abs(weight)
        magnitude = op(size, absolute)
        positive = (output + magnitude) / 2
        # Where every part is negative the two cancel up to rounding, which the division would blow up.
        noise = 32 * jnp.finfo(positive.dtype).eps * magnitude
        share = safe_divide(relevance, jnp.where(positive > noise, positive, 0.0))
        signed = _transposed(op, x, weight, share)
        unsigned = _transposed(op, x, absolute, share)
        return (x * signed + size * unsigned) / 2, None

    return rule


def alpha1_halves(op: Operation) -> Rule:
    """As `alpha1`, but x+ w+ and x- w- each divide by their own sum: original LRP, about twice the relevance."""

    def rule(inputs: Sequence[Array], output: Array, relevance: Array) -> tuple[Any, ...]:
        x, weight = inputs

        def half(sign: int) -> Array:
            part, kernel = jax.nn.relu(sign * x), jax.nn.relu(sign * weight)
            return part * _transposed(op, part, kernel, safe_divide(relevance, op(part, kernel)))

        return half(1) + half(-1), None

    return rule


def z_b(op: Operation) -> Rule:
    """Input layer with bounds (Montavon et al., 2017, z^B): the image's own least L and greatest H value.

    Z = x w - L w+ - H w- + 1e-9, S = R / Z, R_x = x (S w^T) - L (S w+^T) - H (S w-^T).
    """

    def rule(inputs: Sequence[Array], output: Array, relevance: Array) -> tuple[Any, ...]:
        x, weight = inputs
        axes = tuple(range(1, x.ndim))
        low = jnp.broadcast_to(x.min(axes, keepdims=True), x.shape)
        high = jnp.broadcast_to(x.max(axes, keepdims=True), x.shape)
        rising, falling = jnp.maximum(weight, 0.0), jnp.minimum(weight, 0.0)
        share = relevance / (output - op(low, rising) - op(high, falling) + DENOMINATOR)
        return (
            x * _transposed(op, x, weight, share)
            - low * _transposed(op, x, rising, share)
            - high * _transposed(op, x, falling, share)
        ), None

    return rule


def carry(inputs: Sequence[Any], output: Array, relevance: Array) -> tuple[Any, ...]:
    """Through unchanged: GELU, softmax, LayerNorm, the scale, the bias."""
    return (relevance, *(None for _ in inputs[1:]))


def gather(inputs: Sequence[Array], output: Any, relevance: tuple[Array, ...]) -> tuple[Array, ...]:
    """Fan-out: relevances add."""
    first, second = relevance
    return (first + second,)


def gather_published(
    inputs: Sequence[Array], output: Any, relevance: tuple[Array, ...]
) -> tuple[Array, ...]:
    """Fan-out as in the published code: x * (R_1 / x + R_2 / x), which moves ill-conditioned maps visibly."""
    (x,) = inputs
    return (x * sum(safe_divide(r, x) for r in relevance),)


def uniform(op: Operation) -> Rule:
    """The z-rule with every input replaced by ones: relevance in = relevance out at every operation."""

    def rule(inputs: Sequence[Array], output: Array, relevance: Array) -> tuple[Array, ...]:
        ones = [jnp.ones_like(x) for x in inputs]
        return _share(op, ones, relevance / op(*ones))

    return rule


def only_first(rule: Rule) -> Rule:
    """The rule of an operation whose other inputs are parameters, which take nothing."""

    def first(inputs: Sequence[Any], output: Array, relevance: Array) -> tuple[Any, ...]:
        return (rule(inputs, output, relevance)[0], *(None for _ in inputs[1:]))

    return first


def _share(op: Operation, inputs: Sequence[Array], share: Array) -> tuple[Array, ...]:
    _, pull = jax.vjp(op, *inputs)
    return tuple(x * c for x, c in zip(inputs, pull(share), strict=True))


def _transposed(op: Operation, x: Array, weight: Array, share: Array) -> Array:
    """Share times the transposed weight."""
    (result,) = jax.vjp(lambda value: op(value, weight), x)[1](share)
    return result


def _image_sum(x: Array) -> Array:
    return x.sum(tuple(range(1, x.ndim)), keepdims=True)
