"""Products as an accelerator takes them (benchmarks/emulated.py) against their definition, and through a model."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.emulated import emulated


def _bfloat16(x: np.ndarray) -> np.ndarray:
    return x.astype(ml_dtypes.bfloat16).astype(np.float64)


def _tf32(x: np.ndarray) -> np.ndarray:
    """Ten bits of mantissa: the float32's bits, half a unit added, ties to even, the last thirteen cleared."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0xFFF + ((bits >> 13) & 1)) & ~np.uint64(0x1FFF)
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


def _product(x: np.ndarray, y: np.ndarray, precision: str) -> np.ndarray:
    """In float64, where the product of two rounded operands is exact."""
    if precision == "tf32":
        return _tf32(x) @ _tf32(y)
    first, second = _bfloat16(x), _bfloat16(y)
    if precision == "bfloat16":
        return first @ second
    rest, other = _bfloat16(x - first), _bfloat16(y - second)
    return first @ second + first @ other + rest @ second


@pytest.mark.parametrize("precision", ["high", "tf32", "bfloat16"])
@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 5),
    shared=st.integers(1, 40),
    columns=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_products_follow_the_definition(
    precision: str, rows: int, shared: int, columns: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((rows, shared)).astype(np.float32)
    y = generator.standard_normal((shared, columns)).astype(np.float32)
    got = np.asarray(emulated(jnp.matmul, precision)(x, y), np.float64)
    size = np.abs(x).astype(np.float64) @ np.abs(y)
    assert (np.abs(got - _product(x, y, precision)) <= 4e-7 * shared * size).all()


def test_products_inside_of_other_operations_are_rounded() -> None:
    x = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)

    @jax.custom_vjp
    def product(x: jax.Array) -> jax.Array:
        return x @ x

    product.defvjp(lambda x: (x @ x, x), lambda x, cotangent: ((cotangent @ x.T),))

    def steps(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda carry, _: (carry @ x, carry.sum()), x, length=2)[0]

    def value(x: jax.Array) -> jax.Array:
        return jax.checkpoint(product)(x).sum()

    exact = x.astype(np.float64)
    twice = _product(_product(exact, exact, "tf32").astype(np.float32), exact, "tf32")
    np.testing.assert_allclose(emulated(steps, "tf32")(x), twice, rtol=1e-5, atol=1e-5)
    slope = _product(np.ones((4, 4)), exact.T, "tf32")
    np.testing.assert_allclose(emulated(jax.grad(value), "tf32")(x), slope, rtol=1e-5, atol=1e-5)
    assert np.abs(slope - np.ones((4, 4)) @ exact.T).max() > 1e-4  # and rounding is seen


def test_convolutions_are_rounded_and_other_loops_refused() -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((1, 6, 3)).astype(np.float32)
    kernel = generator.standard_normal((2, 3, 4)).astype(np.float32)

    def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
        numbers = ("NHC", "HIO", "NHC")
        return jax.lax.conv_general_dilated(x, kernel, (1,), "VALID", dimension_numbers=numbers)

    windows = np.stack([x[0, :-1], x[0, 1:]], 1).reshape(5, 6)
    expected = _product(windows, kernel.reshape(6, 4), "high")
    np.testing.assert_allclose(emulated(conv, "high")(x, kernel)[0], expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(NotImplementedError, match="while, whose products would stay exact"):
        emulated(lambda n: jax.lax.fori_loop(0, n, lambda _, y: y @ y, x[0, :3]), "high")(2)


def test_float64_is_left_alone() -> None:
    with jax.enable_x64(True):
        x = np.random.default_rng(0).standard_normal((3, 3))
        np.testing.assert_allclose(emulated(jnp.matmul, "bfloat16")(x, x), x @ x, rtol=1e-14)
