"""Rule sets: for each operation of `Ops`, the same value with another cotangent.

With `with_rule` the cotangent is relevance, with `paired` a pair of gradient and relevance, from one forward.
Create rule sets at module level: a new one per call triggers recompilation.
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
from vitx.relevance.precision import of_product
from vitx.relevance.rules import Operation, Pullback, Rule

Constants = tuple[tuple[str, Any], ...]


def _precise(product: Operation) -> Operation:
    def apply(x: Array, y: Array) -> Array:
        return product(x, y, precision=of_product(x))

    return apply


_linear = _precise(plain.linear)
_attention_scores = _precise(plain.attention_scores)
_apply_attention = _precise(plain.apply_attention)
_pool_values = _precise(plain.pool_values)
_conv = partial(plain.conv, precision=lax.Precision.HIGHEST)

EXACT = Ops(
    linear=_linear,
    pixels=_linear,
    attention_scores=_attention_scores,
    apply_attention=_apply_attention,
    pool_values=_pool_values,
    conv=_conv,
)
"""`PLAIN` at the precision of `of_product`, the stem at full float32. Probes (B, heads, Q, N) see the gradient."""


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


def twice(tree: Any) -> Any:
    """Each array of a tree as a `Pair`."""
    return jax.tree.map(lambda x: Pair(x, x), tree)


def with_rule(op: Operation, rule: Rule) -> Operation:
    """`op` with the same value, whose cotangent is relevance."""

    def forward(constants: Constants, *inputs: Any) -> tuple[Any, Pullback]:
        output = op(*inputs, **dict(constants))
        return output, rule(inputs, output)

    def backward(constants: Constants, pullback: Pullback, relevance: Any) -> tuple[Any, ...]:
        return pullback(relevance)

    return _with_backward(forward, backward)


def paired(op: Operation, rule: Rule) -> Operation:
    """`op` over pairs: one value, and as its cotangent the gradient of `op` beside the relevance of the rule."""

    def forward(constants: Constants, *inputs: Any) -> tuple[Any, tuple[Pullback, Pullback]]:
        values = tuple(x.gradient if _is_pair(x) else x for x in inputs)
        output, gradient = jax.vjp(partial(op, **dict(constants)), *values)
        return twice(output), (gradient, rule(values, output))

    def backward(
        constants: Constants, pullbacks: tuple[Pullback, Pullback], cotangent: Any
    ) -> tuple[Any, ...]:
        gradient, relevance = pullbacks
        gradients = gradient(jax.tree.map(lambda p: p.gradient, cotangent, is_leaf=_is_pair))
        relevances = relevance(jax.tree.map(lambda p: p.relevance, cotangent, is_leaf=_is_pair))
        return tuple(
            None if r is None else Pair(g, r) for g, r in zip(gradients, relevances, strict=True)
        )

    return _with_backward(forward, backward)


def _with_backward(forward: Callable[..., Any], backward: Callable[..., Any]) -> Operation:
    """The operation whose keyword arguments are constants, outside of differentiation."""
    apply = jax.custom_vjp(lambda *inputs: forward(*inputs)[0], nondiff_argnums=(0,))
    apply.defvjp(forward, backward)
    return lambda *inputs, **constants: apply(tuple(constants.items()), *inputs)


def probing(readout: Callable[[Any], Array]) -> Operation:
    """A `probe` whose zeros receive readout(cotangent of the attention); the cotangent itself passes unchanged."""

    @jax.custom_vjp
    def apply(attention: Any, probe: Array) -> Any:
        return attention

    def forward(attention: Any, probe: Array) -> tuple[Any, None]:
        return attention, None

    def backward(_: None, cotangent: Any) -> tuple[Any, Array]:
        return cotangent, readout(cotangent)

    apply.defvjp(forward, backward)
    return lambda attention, probe: attention if probe is None else apply(attention, probe)


def probing_with_value(readout: Callable[[Array, Array], Array]) -> Operation:
    """As `probing`, of arrays: the zeros receive readout(cotangent, attention)."""

    @jax.custom_vjp
    def apply(attention: Array, probe: Array) -> Array:
        return attention

    def forward(attention: Array, probe: Array) -> tuple[Array, Array]:
        return attention, attention

    def backward(attention: Array, cotangent: Array) -> tuple[Array, Array]:
        return cotangent, readout(cotangent, attention)

    apply.defvjp(forward, backward)
    return lambda attention, probe: attention if probe is None else apply(attention, probe)


def _no_rule(op: Operation) -> Rule:
    def pullback(*_: Any) -> tuple[Any, ...]:
        raise NotImplementedError(
            f"{op.__name__} has no relevance rule: explanations end above the stem"
        )

    return lambda inputs, output: Partial(pullback)


_CHEFER: dict[str, Rule] = {
    "linear": rules.alpha1_beta0(_linear),
    "pixels": rules.z_box(_linear),
    "add": rules.normalised(rules.z_rule(plain.add)),
    "clone": rules.sum_branches_published,
    "attention_scores": rules.halved(rules.z_rule(_attention_scores)),
    "apply_attention": rules.halved(rules.z_rule(_apply_attention)),
    "multiply": rules.halved(rules.to_both),
    "rotate": rules.only_first(rules.z_rule(plain.rotate)),
    "concatenate": rules.split,
    "mean_tokens": rules.z_rule(plain.mean_tokens),
    "best_tokens": rules.only_first(rules.z_rule(plain.best_tokens)),
    "pool_values": rules.only_last(rules.z_rule(_pool_values)),
    **dict.fromkeys(("bias", "scale", "scale_channels", "layer_norm"), rules.identity),
    **dict.fromkeys(("softmax", "gelu", "quick_gelu", "tanh_gelu", "silu"), rules.identity),
    **{
        op.__name__: _no_rule(op)
        for op in (plain.conv, plain.group_norm, plain.relu, plain.max_pool)
    },
}
_LRP = {
    **_CHEFER,
    "linear": rules.alpha1_beta0_split(_linear),
    "add": rules.z_rule(plain.add),
}
STABLE_RULES: dict[str, Rule] = {
    "add": rules.normalised(rules.stabilised(plain.add)),
    "clone": rules.sum_branches,
    "attention_scores": rules.halved(rules.stabilised(_attention_scores)),
    "apply_attention": rules.halved(rules.stabilised(_apply_attention)),
    "rotate": rules.only_first(rules.stabilised(plain.rotate)),
    "mean_tokens": rules.stabilised(plain.mean_tokens),
    "best_tokens": rules.only_first(
        rules.stabilised(plain.best_tokens, magnitude_of=plain.best_tokens_magnitude)
    ),
    "pool_values": rules.only_last(rules.stabilised(_pool_values)),
}
"""The rules of STABLE that differ from CHEFER."""
_STABLE = {**_CHEFER, **STABLE_RULES}
_STABLE_LRP = {**_LRP, **STABLE_RULES, "add": rules.stabilised(plain.add)}
_UNIFORM = {
    **_CHEFER,
    "linear": rules.only_first(rules.uniform(_linear)),
    "pixels": rules.only_first(rules.uniform(_linear)),
    "add": rules.uniform(plain.add),
    "clone": rules.sum_branches,
    "attention_scores": rules.halved(rules.uniform(_attention_scores)),
    "apply_attention": rules.halved(rules.uniform(_apply_attention)),
    "rotate": rules.identity,  # its kernel has negative entries, so ones may sum to 0
    "mean_tokens": rules.uniform(plain.mean_tokens),
    "best_tokens": rules.only_first(rules.uniform(plain.best_tokens)),
    "pool_values": rules.only_last(rules.uniform(_pool_values)),
}


def _rule_set(
    make: Callable[[Operation, Rule], Operation],
    table: dict[str, Rule],
    readout: Callable[[Any], Array],
) -> Ops:
    names = [field.name for field in fields(Ops) if field.name != "probe"]
    ops = {name: make(getattr(EXACT, name), table[name]) for name in names}
    return Ops(**ops, probe=probing(readout))


def _raw(relevance: Array) -> Array:
    return relevance


def _mean_positive_product(cotangent: Pair) -> Array:
    product = cotangent.gradient * cotangent.relevance
    # Not relu, for whose zero XLA writes an array of the product's size on a CPU.
    return jnp.where(product < 0, 0.0, product).mean(1)


def attribution_rule_set(**rules_of: Rule) -> Ops:
    """CHEFER_PAIRS with other rules for some operations, by their names: create it once, at module level.

    Raises:
      ValueError: for a name that is no operation.
    """
    if unknown := rules_of.keys() - _CHEFER.keys():
        raise ValueError(f"no operation {min(unknown)!r}; there are {', '.join(sorted(_CHEFER))}")
    return _rule_set(paired, {**_CHEFER, **rules_of}, _mean_positive_product)


CHEFER = _rule_set(with_rule, _CHEFER, _raw)
"""The rules of Chefer et al., CVPR 2021, as in their published code. Probes (B, heads, Q, N) see relevance."""
LRP = _rule_set(with_rule, _LRP, _raw)
"""The original-LRP baseline of the same code, with a denominator for each half and no normalisation at adds."""
STABLE = _rule_set(with_rule, _STABLE, _raw)
"""CHEFER with stabilised adds and products, for float32."""
STABLE_LRP = _rule_set(with_rule, _STABLE_LRP, _raw)
"""LRP with stabilised adds and products."""
UNIFORM = _rule_set(with_rule, _UNIFORM, _raw)
"""Keeps every operation's total exactly, which finds an operation of a model outside `Ops`."""

CHEFER_PAIRS = attribution_rule_set()
"""Gradient and CHEFER relevance in one pass over pairs. Probes (B, Q, N) see mean over heads of relu(g * r)."""
STABLE_PAIRS = attribution_rule_set(**STABLE_RULES)
"""The same with STABLE."""
