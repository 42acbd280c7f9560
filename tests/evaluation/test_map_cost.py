"""The count of matrix products of an explanation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.small_models import small_vit
from vitx.evaluation.comparison import Comparison
from vitx.evaluation.cost import cost_in_forwards, product_flops


def test_products_of_a_function_by_hand():
    a, b = np.zeros((2, 3, 4), np.float32), np.zeros((4, 5), np.float32)

    def run(a, b):
        unused = jnp.einsum("nij,jk->nik", a, b) * 0
        total = jax.lax.map(lambda x: x @ b, a)  # 2 rounds
        image = jnp.zeros((1, 8, 8, 3), jnp.float32)
        kernel = jnp.zeros((3, 3, 3, 7), jnp.float32)
        convolved = jax.lax.conv_general_dilated(
            image, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        del unused
        return total, convolved

    products, convolution = 2 * 2 * 3 * 4 * 5, 2 * 6 * 6 * 7 * 27
    assert product_flops(run, a, b) == products + convolution


@pytest.mark.slow
def test_costs_are_those_that_the_methods_are_known_for():
    names = ("random", "input_x_gradient", "integrated_gradients", "attn_lrp_gamma")
    costs = cost_in_forwards(Comparison(names, ("predicted",)), small_vit(depth=4))
    assert costs["random"] == 0, "its maps need no forward"
    assert 1.8 < costs["input_x_gradient"] < 2.2
    assert costs["integrated_gradients"] == pytest.approx(20 * costs["input_x_gradient"], rel=0.1)
    assert costs["input_x_gradient"] + 1.5 < costs["attn_lrp_gamma"] < 4.8
