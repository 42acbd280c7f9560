"""What an explanation costs, counted in the programs that XLA compiles for ViT-Base: nothing runs, nothing is timed."""

import math
import re
from collections import Counter
from functools import cache, partial

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import vitx
from benchmarks import methods
from benchmarks.methods import product_flops

BATCH = 8
INSTRUCTION = re.compile(r"%?([\w.-]+) = \w+\[([\d,]*)\]\S* ([\w-]+)\((.*)")
slow = pytest.mark.slow  # compiles ViT-Base


@cache
def compiled(classes):
    """The program of an explanation of `classes` classes, of a full forward where that is 0."""
    model = nnx.eval_shape(partial(vitx.create, "vit_base_patch16_224"))
    images = jax.ShapeDtypeStruct((BATCH, 224, 224, 3), jnp.float32)
    if not classes:
        return methods.full_forward.lower(model, images).compile().as_text()
    chosen = jax.ShapeDtypeStruct((BATCH, classes), jnp.int32)
    return jax.jit(vitx.explain).lower(model, images, chosen).compile().as_text()


def computations(program):
    """Each computation's instructions: name, elements, kind, and the rest of the line."""
    found = {}
    for match in re.finditer(r"^(?:ENTRY )?%?(\S+) \(.*?\{\n(.*?)^\}", program, re.S | re.M):
        lines = map(INSTRUCTION.search, match[2].splitlines())
        found[match[1]] = [(m[1], elements(m[2]), m[3], m[4]) for m in lines if m]
    return found


def elements(shape):
    return math.prod(int(side) for side in shape.split(",") if side)


def called(rest, *attributes):
    return re.findall(rf"(?:{'|'.join(attributes)})=%?([\w.-]+)", rest)


def looped(program):
    """The instructions of every loop's body, and of what it calls."""
    known = computations(program)

    def within(name):
        for instruction in known[name]:
            yield instruction
            for other in called(instruction[3], "calls", "to_apply"):
                yield from within(other)

    bodies = re.findall(r" while\(.*body=%?([\w.-]+)", program)
    return [instruction for body in bodies for instruction in within(body)]


def zeros(program):
    """Elements of each array of zeros in memory: a zero broadcast outside of a fusion, or as all of one."""
    known, found = computations(program), []
    fused = {f for body in known.values() for *_, rest in body for f in called(rest, "calls")}

    def zero_filled(name, given):
        names = {n for n, _, kind, rest in known[name] if kind == "constant" and rest[:2] == "0)"}
        filled = []
        for instruction, size, kind, rest in known[name]:
            operands = re.findall(r"%([\w.-]+)", rest.split(")")[0])
            if kind == "parameter":
                of_zero = given[int(rest.split(")")[0])] if given else False
            elif kind == "fusion":
                of_zero = zero_filled(called(rest, "calls")[0], [o in names for o in operands])[1]
            else:
                of_zero = kind in ("broadcast", "bitcast", "copy") and operands[0] in names
            if of_zero:
                names.add(instruction)
            if of_zero and kind != "parameter":
                filled.append(size)
        return filled, instruction in names  # the last is the result

    for name in known.keys() - fused:
        if known[name]:
            found += zero_filled(name, [])[0]
    return found


def magnitudes_needed(model):
    """How many weights of each shape relevance passes: all but the first block's queries, keys and values."""
    shapes = [model.head.kernel.shape]
    for block in model.blocks:
        shapes += [layer.kernel.shape for layer in (block.attn.proj, block.mlp.fc1, block.mlp.fc2)]
    width, outputs = model.blocks[0].attn.qkv.kernel.shape
    return Counter(shapes + [(width, outputs // 3)] * 3 * (len(model.blocks) - 1))


@slow
def test_products_of_one_class_are_at_most_4_6_forwards():
    assert 4 < product_flops(compiled(1)) / product_flops(compiled(0)) <= 4.6


@slow
def test_each_further_class_takes_its_gradient_and_its_relevance_alone():
    one, three = (product_flops(compiled(classes)) for classes in (1, 3))
    # Of a linear layer one product for the gradient, two for the relevance.
    assert 2.5 < (three - one) / 2 / product_flops(compiled(0)) <= 2.8


@slow
def test_one_class_is_no_loop_and_three_are_one_loop():
    assert compiled(1).count(" while(") == 0
    assert compiled(3).count(" while(") == 1


@slow
def test_what_does_not_depend_on_the_class_is_outside_of_the_loop():
    kinds = {kind for _, size, kind, _ in looped(compiled(3)) if size > BATCH}
    assert {"dot", "multiply", "add"} <= kinds
    assert kinds.isdisjoint({"divide", "abs", "sign", "exponential", "erf", "rsqrt", "maximum"})


@slow
@pytest.mark.parametrize("classes", [1, 3])
def test_the_magnitude_of_each_weight_is_computed_once(classes):
    model = nnx.eval_shape(partial(vitx.create, "vit_base_patch16_224"))
    expected = magnitudes_needed(model)
    found = Counter(
        tuple(map(int, sides))
        for sides in re.findall(r"= f32\[(\d+),(\d+)\]\S* abs\(", compiled(classes))
    )
    assert {shape: found[shape] for shape in expected} == expected


@slow
@pytest.mark.parametrize("classes", [1, 3])
def test_no_array_of_zeros_is_written(classes):
    # The loop's results are: (3, B, 14, 14).
    assert max(zeros(compiled(classes)), default=0) <= 3 * BATCH * 14 * 14


# What counts: small programs whose figures are known.


def text_of(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().as_text()


def test_products_are_counted_by_hand():
    x, w = jnp.ones((5, 2, 3)), jnp.ones((3, 7))
    assert product_flops(text_of(jnp.matmul, x, w)) == 2 * 5 * 2 * 3 * 7
    heads = partial(jnp.einsum, "bhqd,bhnd->bhqn")
    query, key = jnp.ones((2, 4, 6, 8)), jnp.ones((2, 4, 9, 8))
    assert product_flops(text_of(heads, query, key)) == 2 * 2 * 4 * 6 * 9 * 8
    assert product_flops(text_of(lambda x: jnp.exp(x) + 1, x)) == 0


def test_a_loop_counts_in_full():
    def loop(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=6)[0]

    x, w = jnp.ones((5, 3)), jnp.ones((3, 3))
    text = text_of(loop, x, w)
    assert product_flops(text) == 6 * 2 * 5 * 3 * 3
    assert "tanh" in {kind for _, _, kind, _ in looped(text)}


def test_zeros_are_seen_where_they_are_written():
    def write(x):
        return jnp.zeros((40, 50)), x + 1

    def add(x):
        return jnp.zeros((40, 50)) + x

    x = jnp.ones((40, 50))
    assert zeros(text_of(write, x)) == [2000]
    assert zeros(text_of(add, x)) == []
