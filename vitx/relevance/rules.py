"""Relevance rules: pure functions that distribute the relevance of an operation's output over its inputs.

A rule is curried, like `jax.vjp`: `rule(inputs, output)` runs with the forward and returns a pullback, which maps the
output's relevance to the inputs' relevances, None for a parameter. A pullback is a pytree, `Partial(function, *kept)`.
What does not depend on the relevance, and so not on the class explained, belongs in `kept`: it is computed once for
all classes.

There is one generic rule, the z-rule (Bach et al., 2015, eq. 56; Chefer et al., 2021, eq. 6); each other rule changes
one thing in it. Everything is per image: no sum crosses the leading axis. docs/method.md has the equations,
docs/protocol.md which rule the published code uses where.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from vitx.ops import Array

Pullback = Callable[[Any], tuple[Any, ...]]
"""Relevance of the output -> relevances of the inputs."""
Rule = Callable[[Sequence[Any], Any], Pullback]
"""Inputs and output of an operation -> pullback."""
Operation = Callable[..., Any]

DENOMINATOR = 1e-9


def inverse(x: Array) -> Array:
    """1 / (x + 1e-9), 0 where x = 0; a denominator of exactly 0 is replaced by 1e-9."""
    denominator = x + DENOMINATOR
    denominator = jnp.where(denominator == 0, DENOMINATOR, denominator)
    return jnp.where(x == 0, 0.0, 1 / denominator)


def z_rule(op: Operation) -> Rule:
    """R_i = x_i * (dz / dx_i)^T (R / z), for an operation that is linear in each input."""

    def rule(inputs: Sequence[Array], output: Array) -> Pullback:
        return Partial(partial(_share, op), inputs, inverse(output))

    return rule


def stabilised(
    op: Operation, strength: float = 1e-3, magnitude_of: Operation | None = None
) -> Rule:
    """The z-rule with denominator z + strength * sign(z) * op(|inputs|): bounded where summands cancel.

    `magnitude_of` gives the sum of the summands' sizes from the inputs where op(|inputs|) is something else.
    """

    def rule(inputs: Sequence[Array], output: Array) -> Pullback:
        absolute = [jnp.abs(x) for x in inputs]
        magnitude = op(*absolute) if magnitude_of is None else magnitude_of(*inputs)
        sign = jnp.where(output < 0, -1.0, 1.0).astype(output.dtype)
        return Partial(partial(_share, op), inputs, inverse(output + strength * sign * magnitude))

    return rule


def halved(rule: Rule) -> Rule:
    """Half for each input of a product, since the z-rule gives the whole relevance to both (eq. 11)."""

    def pullback(whole: Pullback, relevance: Array) -> tuple[Array, ...]:
        return tuple(r / 2 for r in whole(relevance))

    return lambda inputs, output: Partial(pullback, rule(inputs, output))


def normalised(rule: Rule) -> Rule:
    """An add's two shares, rescaled so that their sums keep |sum| : |sum| and total R (section 4.2), per image."""

    def pullback(shared: Pullback, relevance: Array) -> tuple[Array, ...]:
        shares = shared(relevance)
        sums = [_image_sum(share) for share in shares]
        weight = jnp.abs(sums[0]) + jnp.abs(sums[1])
        total = _image_sum(relevance)
        parts = [jnp.abs(s) * inverse(weight) * total for s in sums]
        return tuple(
            share * (part * inverse(s)) for share, part, s in zip(shares, parts, sums, strict=True)
        )

    return lambda inputs, output: Partial(pullback, rule(inputs, output))


def alpha1_beta0(op: Operation) -> Rule:
    """Linear layer, alpha = 1, beta = 0 (eq. 4 with positive parts): one denominator, z+ = x+ w+ + x- w-.

    Since z = x w, z+ = (z + |x||w|) / 2, and with S = R / z+, R_x = (x (S w^T) + |x| (S |w|^T)) / 2: one product
    forward and two backward are enough.
    """

    def rule(inputs: Sequence[Array], output: Array) -> Pullback:
        x, weight = inputs
        absolute = jnp.abs(weight)
        magnitude = op(jnp.abs(x), absolute)
        positive = (output + magnitude) / 2
        # Where every part is negative the two cancel up to rounding, which the division would amplify.
        noise = 32 * jnp.finfo(positive.dtype).eps * magnitude
        return Partial(
            pullback, x, weight, absolute, inverse(jnp.where(positive > noise, positive, 0.0))
        )

    def pullback(
        x: Array, weight: Array, absolute: Array, inverted: Array, relevance: Array
    ) -> tuple[Any, ...]:
        share = relevance * inverted
        signed = _transposed(op, x, weight, share)
        unsigned = _transposed(op, x, absolute, share)
        return (x * signed + jnp.abs(x) * unsigned) / 2, None

    return rule


def alpha1_beta0_split(op: Operation) -> Rule:
    """As `alpha1_beta0`, with a denominator for each of x+ w+ and x- w-: original LRP, about twice the relevance."""

    def rule(inputs: Sequence[Array], output: Array) -> Pullback:
        x, weight = inputs
        kernels = [jax.nn.relu(sign * weight) for sign in (1, -1)]
        sums = [op(jax.nn.relu(sign * x), w) for sign, w in zip((1, -1), kernels, strict=True)]
        return Partial(pullback, x, kernels, [inverse(z) for z in sums])

    def pullback(
        x: Array, kernels: Sequence[Array], inverted: Sequence[Array], relevance: Array
    ) -> tuple[Any, ...]:
        rising, falling = (
            _transposed(op, x, w, relevance * i) for w, i in zip(kernels, inverted, strict=True)
        )
        return jax.nn.relu(x) * rising + jax.nn.relu(-x) * falling, None

    return rule


def z_box(op: Operation) -> Rule:
    """Input layer with bounds (z^B of Montavon et al., 2017): the least value L and the greatest H of the image.

    Z = x w - L w+ - H w- + 1e-9, S = R / Z, R_x = x (S w^T) - L (S w+^T) - H (S w-^T).
    """

    def rule(inputs: Sequence[Array], output: Array) -> Pullback:
        x, weight = inputs
        axes = tuple(range(1, x.ndim))
        low = jnp.broadcast_to(x.min(axes, keepdims=True), x.shape)
        high = jnp.broadcast_to(x.max(axes, keepdims=True), x.shape)
        rising, falling = jnp.maximum(weight, 0.0), jnp.minimum(weight, 0.0)
        z = output - op(low, rising) - op(high, falling) + DENOMINATOR
        return Partial(pullback, (x, low, high), (weight, rising, falling), 1 / z)

    def pullback(
        values: Sequence[Array], weights: Sequence[Array], inverted: Array, relevance: Array
    ) -> tuple[Any, ...]:
        share = relevance * inverted
        own, low, high = (
            x * _transposed(op, x, w, share) for x, w in zip(values, weights, strict=True)
        )
        return own - low - high, None

    return rule


def identity(inputs: Sequence[Any], output: Array) -> Pullback:
    """Relevance passes unchanged: activations, softmax, LayerNorm, scales, LayerScale, the bias.

    For a scale, of all channels or of each, this is the z-rule.
    """
    return Partial(_first, (None,) * (len(inputs) - 1))


def sum_branches(inputs: Sequence[Array], output: Any) -> Pullback:
    """Of `clone`: the relevances of both branches add."""
    return Partial(lambda branches: (branches[0] + branches[1],))


def sum_branches_published(inputs: Sequence[Array], output: Any) -> Pullback:
    """Of `clone` in the published code: x * (R_1 / x + R_2 / x), which changes ill-conditioned maps visibly."""

    def pullback(kept: Array, relevances: Sequence[Array]) -> tuple[Array, ...]:
        first, second = relevances
        return (kept * (first + second),)

    (x,) = inputs
    return Partial(pullback, x * inverse(x))


def to_both(inputs: Sequence[Array], output: Array) -> Pullback:
    """Of a product x * y: the z-rule, which gives the whole relevance to each factor, without a division."""
    return Partial(lambda relevance: (relevance, relevance))


def split(inputs: Sequence[Array], output: Array) -> Pullback:
    """Of two values side by side: each takes the relevance of its own channels."""
    return Partial(partial(_cut, inputs[0].shape[-1]))


def uniform(op: Operation) -> Rule:
    """The z-rule with every input replaced by ones: each operation keeps the total of the relevance."""

    def rule(inputs: Sequence[Array], output: Array) -> Pullback:
        ones = tuple(jnp.ones_like(x) for x in inputs)
        return Partial(partial(_share, op), ones, 1 / op(*ones))

    return rule


def only_first(rule: Rule) -> Rule:
    """The rule for an operation whose further inputs are parameters, which take no relevance."""

    def pullback(whole: Pullback, others: tuple[None, ...], relevance: Array) -> tuple[Any, ...]:
        return whole(relevance)[0], *others

    def first(inputs: Sequence[Array], output: Array) -> Pullback:
        return Partial(pullback, rule(inputs, output), (None,) * (len(inputs) - 1))

    return first


def only_last(rule: Rule) -> Rule:
    """The rule for a product whose first input counts as a constant: it takes no relevance."""

    def pullback(whole: Pullback, constant: Array, relevance: Array) -> tuple[Array, ...]:
        return jnp.zeros_like(constant), whole(relevance)[1]

    return lambda inputs, output: Partial(pullback, rule(inputs, output), inputs[0])


def _cut(channels: int, relevance: Array) -> tuple[Array, Array]:
    return relevance[..., :channels], relevance[..., channels:]


def _first(others: tuple[None, ...], relevance: Array) -> tuple[Any, ...]:
    return relevance, *others


def _share(
    op: Operation, inputs: Sequence[Array], inverted: Array, relevance: Array
) -> tuple[Array, ...]:
    _, transposed = jax.vjp(op, *inputs)
    return tuple(x * c for x, c in zip(inputs, transposed(relevance * inverted), strict=True))


def _transposed(op: Operation, x: Array, weight: Array, share: Array) -> Array:
    """Share times the transposed weight."""
    (result,) = jax.linear_transpose(lambda value: op(value, weight), x)(share)
    return result


def _image_sum(x: Array) -> Array:
    return x.sum(tuple(range(1, x.ndim)), keepdims=True)
