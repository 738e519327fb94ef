"""Dtypes, matrix products and memory of a user's losses by blocks of rows."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from benchmarks.lib.programs import temporaries
from jxent import losses
from tests.projection.blockwise import BLOCKS, EACH, close, data


def test_low_precision_is_added_up_in_float32():
    """Losses in bfloat16 would stop growing at 256; so would a gradient of many blocks."""
    rows = jnp.ones(2048, jnp.bfloat16)

    def loss(scale):
        return BLOCKS(lambda s, r: s * r, scale, rows, block_size=1, reduction="weighted_sum")

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.bfloat16(1))
    assert (value, gradient) == (2048, 2048)
    assert (value.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.one_in(2)
def test_products_of_a_projection_are_in_its_dtype(dtype):
    """As JAX differentiates a product that is accumulated in float32, two of three would not be."""
    arrays = data(dtype, rows=64)
    rows = {"x": arrays["x"], "y": arrays["y"]}

    def loss(kernel, x, master=False):
        def inside(kernel, row):
            return EACH(labels=row["y"], logits=jxent.linear_logits(inputs=row["x"], kernel=kernel))

        return BLOCKS(inside, kernel, {**rows, "x": x}, block_size=16)

    for kernel in (arrays["kernel"], arrays["kernel"].astype(np.float32)):
        step = jax.jit(jax.value_and_grad(loss, (0, 1)))
        text = step.lower(kernel, arrays["x"]).as_text()
        found = re.findall(r"stablehlo\.dot_general.*: \(tensor<(\S+)>, tensor<(\S+)>\)", text)
        dtypes = {x.split("x")[-1] for pair in found for x in pair}
        assert len(found) == 3
        if dtype == jnp.bfloat16:  # float16 is too narrow for a slope over the number of rows
            assert dtypes == {"bf16"}
        value, gradients = step(kernel, arrays["x"])
        wanted = jax.value_and_grad(
            lambda k, x: losses.linear_sparse_softmax_cross_entropy(rows["y"], x, k), (0, 1)
        )(kernel, arrays["x"])
        close(value, wanted[0], rtol=1e-5)
        for gradient, other in zip(gradients, wanted[1], strict=True):
            assert gradient.dtype == other.dtype
            size = np.abs(np.asarray(other, np.float32)).max()
            close(gradient, other, rtol=0, atol=2e-2 * size)


# What it costs.


def projection_and_blocks(examples, features, classes, block):
    arrays = (
        jax.ShapeDtypeStruct((features, classes), np.float32),
        jax.ShapeDtypeStruct((examples, features), np.float32),
        jax.ShapeDtypeStruct((examples,), np.int32),
    )

    def head(kernel, row):
        return EACH(labels=row[1], logits=row[0] @ kernel)

    def blocks(kernel, x, y):
        return BLOCKS(head, kernel, (x, y), block_size=block)

    def own(kernel, x, y):
        return losses.linear_sparse_softmax_cross_entropy(y, x, kernel, block_size=block)

    return arrays, blocks, own


@pytest.mark.parametrize(("differentiated", "count"), [((0, 1), 3), (0, 2), (1, 2)])
def test_products(differentiated, count):
    arrays, blocks, _ = projection_and_blocks(64, 8, 32, 16)
    text = jax.jit(jax.value_and_grad(blocks, differentiated)).lower(*arrays).as_text()
    assert text.count("stablehlo.dot_general") == count


@pytest.mark.long
def test_a_plain_matrix_holds_what_the_projection_holds(narrow_rows):
    arrays, blocks, own = projection_and_blocks(4096, 256, 65536, 512)
    got, wanted = (temporaries(jax.value_and_grad(f, (0, 1)), *arrays) for f in (blocks, own))
    assert got <= 1.1 * wanted
