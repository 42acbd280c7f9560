"""Bundles: for each operation of `Ops`, the same value with another cotangent.

`with_rule` makes the cotangent relevance; `paired` makes it a pair of gradient and relevance, from one forward.
Bundles are made once, here: a bundle built inside a function would retrace at every call.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from vitx import ops as plain
from vitx.ops import Array, Ops
from vitx.relevance import rules
from vitx.relevance.rules import Operation, Pull, Rule

Constants = tuple[tuple[str, Any], ...]

# Relevance is ill-conditioned: the reduced-precision products that GPUs and TPUs default to would show in the maps.
_linear = partial(plain.linear, precision=lax.Precision.HIGHEST)
_scores = partial(plain.scores, precision=lax.Precision.HIGHEST)
_weigh = partial(plain.weigh, precision=lax.Precision.HIGHEST)
_conv = partial(plain.conv, precision=lax.Precision.HIGHEST)

EXACT = Ops(linear=_linear, pixels=_linear, scores=_scores, weigh=_weigh, conv=_conv)
"""`PLAIN` at full float32 precision on every backend. Taps (B, heads, Q, N) see the gradient."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pair:
    """One value held twice, so that its cotangent is a gradient and a relevance.

    Acts as an array where only shapes change.
    """

    gradient: Array
    relevance: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the value."""
        return self.gradient.shape

    def reshape(self, *shape: int) -> "Pair":
        """Both reshaped."""
        return self._both(lambda x: x.reshape(*shape))

    def transpose(self, *axes: int) -> "Pair":
        """Both transposed."""
        return self._both(lambda x: x.transpose(*axes))

    def __getitem__(self, index: Any) -> "Pair":
        return self._both(lambda x: x[index])

    def _both(self, f: Callable[[Array], Array]) -> "Pair":
        return Pair(f(self.gradient), f(self.relevance))


def _is_pair(x: Any) -> bool:
    return isinstance(x, Pair)


def _value(x: Any) -> Any:
    return x.gradient if _is_pair(x) else x


def twice(tree: Any) -> Any:
    """Each array of a tree as a `Pair`."""
    return jax.tree.map(lambda x: Pair(x, x), tree)


def with_rule(op: Operation, rule: Rule) -> Operation:
    """`op` with the same value, whose cotangent is relevance."""

    def value(constants: Constants, *inputs: Any) -> Any:
        return op(*inputs, **dict(constants))

    def forward(constants: Constants, *inputs: Any) -> tuple[Any, Pull]:
        output = op(*inputs, **dict(constants))
        return output, rule(inputs, output)

    def backward(constants: Constants, pull: Pull, relevance: Any) -> tuple[Any, ...]:
        return pull(relevance)

    return _with_backward(value, forward, backward)


def paired(op: Operation, rule: Rule) -> Operation:
    """`op` over pairs: one value, and below it `op`'s gradient beside the rule's relevance."""

    def value(constants: Constants, *inputs: Any) -> Any:
        return twice(op(*map(_value, inputs), **dict(constants)))

    def forward(constants: Constants, *inputs: Any) -> tuple[Any, tuple[Pull, Pull]]:
        values = tuple(map(_value, inputs))
        output, gradient = jax.vjp(partial(op, **dict(constants)), *values)
        return twice(output), (gradient, rule(values, output))

    def backward(constants: Constants, pulls: tuple[Pull, Pull], cotangent: Any) -> tuple[Any, ...]:
        gradient, relevance = pulls
        gradients = gradient(jax.tree.map(lambda p: p.gradient, cotangent, is_leaf=_is_pair))
        relevances = relevance(jax.tree.map(lambda p: p.relevance, cotangent, is_leaf=_is_pair))
        return tuple(
            None if r is None else Pair(g, r) for g, r in zip(gradients, relevances, strict=True)
        )

    return _with_backward(value, forward, backward)


def _with_backward(
    value: Callable[..., Any], forward: Callable[..., Any], backward: Callable[..., Any]
) -> Operation:
    """The operation whose keyword arguments are constants, outside of differentiation."""
    apply = jax.custom_vjp(value, nondiff_argnums=(0,))
    apply.defvjp(forward, backward)
    return lambda *inputs, **constants: apply(tuple(constants.items()), *inputs)


def observer(look: Callable[[Any], Array]) -> Operation:
    """An `observe` whose tap receives look(cotangent of the attention), which itself passes unchanged."""

    @jax.custom_vjp
    def apply(attention: Any, tap: Array) -> Any:
        return attention

    def forward(attention: Any, tap: Array) -> tuple[Any, None]:
        return attention, None

    def backward(_: None, cotangent: Any) -> tuple[Any, Array]:
        return cotangent, look(cotangent)

    apply.defvjp(forward, backward)
    return lambda attention, tap: attention if tap is None else apply(attention, tap)


def _no_rule(op: Operation) -> Rule:
    def pull(*_: Any) -> tuple[Any, ...]:
        raise NotImplementedError(
            f"{op.__name__} has no relevance rule: explanations end above the stem"
        )

    return lambda inputs, output: Partial(pull)


def _rules(
    linear: Rule, pixels: Rule, add: Rule, fork: Rule, products: Callable[..., Rule]
) -> dict:
    table: dict[str, Rule] = dict.fromkeys(
        ("bias", "scale", "softmax", "gelu", "layer_norm"), rules.carry
    )
    for name in ("conv", "group_norm", "relu", "max_pool"):
        table[name] = _no_rule(getattr(plain, name))
    table.update(
        linear=linear,
        pixels=pixels,
        add=add,
        fork=fork,
        scores=rules.halved(products(_scores)),
        weigh=rules.halved(products(_weigh)),
    )
    return table


_CHEFER = _rules(
    linear=rules.alpha1(_linear),
    pixels=rules.z_b(_linear),
    add=rules.normalised(rules.z_rule(plain.add)),
    fork=rules.gather_published,
    products=rules.z_rule,
)
_LRP = {**_CHEFER, "linear": rules.alpha1_halves(_linear), "add": rules.z_rule(plain.add)}
STABLE_RULES: dict[str, Rule] = {
    "add": rules.normalised(rules.stabilised(plain.add)),
    "fork": rules.gather,
    "scores": rules.halved(rules.stabilised(_scores)),
    "weigh": rules.halved(rules.stabilised(_weigh)),
}
"""What STABLE does otherwise than CHEFER."""
_STABLE = {**_CHEFER, **STABLE_RULES}
_STABLE_LRP = {**_LRP, **STABLE_RULES, "add": rules.stabilised(plain.add)}
_UNIFORM = _rules(
    linear=rules.only_first(rules.uniform(_linear)),
    pixels=rules.only_first(rules.uniform(_linear)),
    add=rules.uniform(plain.add),
    fork=rules.gather,
    products=rules.uniform,
)


def _bundle(make: Callable[[Operation, Rule], Operation], table: dict, look: Any) -> Ops:
    made = {
        field.name: make(getattr(EXACT, field.name), table[field.name])
        for field in fields(Ops)
        if field.name != "observe"
    }
    return Ops(**made, observe=observer(look))


def _raw(relevance: Array) -> Array:
    return relevance


def _mean_positive_product(cotangent: Pair) -> Array:
    product = cotangent.gradient * cotangent.relevance
    # Not relu, for whose zero XLA makes an array of the product's size on a CPU.
    return jnp.where(product < 0, 0.0, product).mean(1)


def attribution_bundle(**rules_of: Rule) -> Ops:
    """CHEFER_PAIRS with other rules for the operations named: make it once, at module level.

    Raises:
      ValueError: for a name that is no operation.
    """
    if unknown := rules_of.keys() - _CHEFER.keys():
        raise ValueError(f"no operation {min(unknown)!r}; there are {', '.join(sorted(_CHEFER))}")
    return _bundle(paired, {**_CHEFER, **rules_of}, _mean_positive_product)


CHEFER = _bundle(with_rule, _CHEFER, _raw)
"""The rules of Chefer et al., CVPR 2021, as their published code has them. Taps (B, heads, Q, N) see relevance."""
LRP = _bundle(with_rule, _LRP, _raw)
"""The original-LRP baseline of the same code, without normalisation at the adds, halves divided separately."""
STABLE = _bundle(with_rule, _STABLE, _raw)
"""CHEFER with stabilised adds and products, for float32."""
STABLE_LRP = _bundle(with_rule, _STABLE_LRP, _raw)
"""LRP with stabilised adds and products."""
UNIFORM = _bundle(with_rule, _UNIFORM, _raw)
"""Keeps every operation's total exactly, so that a model with an operation outside `Ops` shows at once."""

CHEFER_PAIRS = attribution_bundle()
"""Gradient and CHEFER relevance in one pass over pairs. Taps (B, Q, N) see mean over heads of relu(g * r)."""
STABLE_PAIRS = attribution_bundle(**STABLE_RULES)
"""The same with STABLE."""
