"""Matrix products of a projection: how many, their dtypes, and the gradients' digits."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jxent import losses
from jxent._src.projection import matmuls
from tests.compile_options import quick
from tests.projection.members import LOSSES, operands, per_example, products, scalar

inf, nan = np.inf, np.nan


# Matrix products, as the program is lowered.


@pytest.mark.parametrize("loss_name", LOSSES)
@pytest.mark.one_in(2)
def test_three_products_and_fewer_where_something_is_frozen(loss_name):
    labels, inputs, kernel = operands(loss_name)
    f = scalar(loss_name)
    assert len(products(f, labels, inputs, kernel)) == 1
    assert len(products(jax.value_and_grad(f, (1, 2)), labels, inputs, kernel)) == 3
    assert len(products(jax.value_and_grad(f, 1), labels, inputs, kernel)) == 2
    assert len(products(jax.value_and_grad(f, 2), labels, inputs, kernel)) == 2

    def summed(labels, inputs, kernel):
        return per_example(loss_name)(labels, inputs, kernel).sum()

    assert len(products(summed, labels, inputs, kernel)) == 1
    assert len(products(jax.value_and_grad(summed, (1, 2)), labels, inputs, kernel)) == 4


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("loss_name", LOSSES)
@pytest.mark.one_in(2)
def test_no_product_mixes_dtypes(loss_name, dtype):
    """A float32 x bfloat16 product runs at a fraction of the speed."""
    labels, inputs, kernel = operands(loss_name, dtype=dtype)

    def summed(labels, inputs, kernel):
        return per_example(loss_name)(labels, inputs, kernel).sum()

    for f in (scalar(loss_name), summed):
        for order in (f, jax.value_and_grad(f, (1, 2))):
            found = products(order, labels, inputs, kernel)
            assert found
            assert all(a == b for a, b in found), found
            # d/d kernel of float16, one loss per example: cotangents of any size.
            wide = sum(a == "f32" for a, _ in found)
            assert wide == (dtype == jnp.float16 and f is summed and order is not f), found
        gradients = jax.eval_shape(jax.grad(f, (1, 2)), labels, inputs, kernel)
        assert all(g.dtype == dtype for g in gradients)
        assert jax.eval_shape(f, labels, inputs, kernel).dtype == jnp.float32


@pytest.mark.parametrize("form", [scalar, per_example])
@pytest.mark.one_in(2)
def test_bfloat16_gradients_are_accumulated_in_float32(form):
    """1024 equal blocks of one example: a bfloat16 running sum would stop growing."""
    examples = 1024
    inputs = jnp.ones((examples, 2), jnp.bfloat16)
    kernel = jnp.zeros((2, 3), jnp.bfloat16)
    labels = jnp.zeros(examples, jnp.int32)

    def total(kernel):
        each = form("sparse_softmax")(labels, inputs, kernel, block_size=1)
        return jnp.sum(each)

    def stored(kernel):
        logits = inputs.astype(jnp.float32) @ kernel.astype(jnp.float32)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return each.mean() if form is scalar else each.sum()

    expected = jax.grad(stored)(kernel)
    np.testing.assert_allclose(
        np.float32(jax.grad(total)(kernel)), np.float32(expected), rtol=2**-7
    )


# Master weights: a float32 kernel beside narrower inputs.

BY_CLASSES = {"sigmoid": 2, "sparse_sigmoid": 2, "sparse_softmax": 2}
IMPLEMENTATIONS = [(m, {"block_size": 3}) for m in LOSSES]
IMPLEMENTATIONS += [(m, {"class_block_size": n}) for m, n in BY_CLASSES.items()]


@pytest.mark.parametrize("form", [scalar, per_example])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(("loss_name", "sizes"), IMPLEMENTATIONS)
@pytest.mark.one_in(18)
def test_a_float32_kernel_is_that_of_the_products(form, dtype, loss_name, sizes):
    """Value and gradients of the rounded kernel, but its own gradient is a float32 array."""
    labels, inputs, kernel = operands(loss_name, dtype=dtype)
    master = kernel.astype(jnp.float32) * (1 + 2**-13)  # rounded to the kernel again

    def program(inputs, kernel):
        def f(inputs, kernel):
            return jnp.sum(form(loss_name)(labels, inputs, kernel, **sizes))

        return jax.value_and_grad(f, (0, 1))(inputs, kernel)

    value, (dinputs, dkernel) = quick(program)(inputs, kernel)
    same, (dsame, dmaster) = quick(program)(inputs, master)
    np.testing.assert_array_equal(same, value)
    np.testing.assert_array_equal(np.float32(dsame), np.float32(dinputs))
    assert dmaster.dtype == jnp.float32
    unit = float(np.max(np.abs(np.float32(dkernel)))) * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(dmaster, np.float32(dkernel), atol=unit)
    found = products(program, inputs, master)
    assert all(a == b for a, b in found), found


@pytest.mark.parametrize(("loss_name", "sizes"), IMPLEMENTATIONS)
@pytest.mark.one_in(6)
def test_the_gradient_of_a_float32_kernel_is_not_rounded(loss_name, sizes):
    """At logits of 0, and of 2^k examples, all that the products multiply is exact."""
    _, inputs, _ = operands(loss_name, examples=8, classes=4, dtype=jnp.bfloat16)
    ids = np.arange(8) % 4
    hot = np.eye(4, dtype=np.float32)[ids]
    labels = {"sparse_softmax": ids, "sparse_sigmoid": ids[:, None]}.get(loss_name, hot)
    kernel = jnp.zeros((3, 4))
    got = jax.grad(scalar(loss_name), 2)(labels, inputs, kernel, **sizes)
    p, count = (1 / 4, 8) if "softmax" in loss_name else (1 / 2, 8 * 4)
    expected = np.asarray(inputs, np.float64).T @ (p - hot) / count
    np.testing.assert_allclose(got, expected, atol=1e-6 * np.max(np.abs(expected)), rtol=0)


@pytest.mark.parametrize("form", [scalar, per_example])
@pytest.mark.parametrize(("loss_name", "sizes"), IMPLEMENTATIONS)
@pytest.mark.one_in(18)
def test_second_order_of_a_float32_kernel(form, loss_name, sizes):
    """As that of float32 inputs, to the roundings of bfloat16 products."""
    labels, inputs, kernel = operands(loss_name, dtype=jnp.bfloat16)
    kernel = kernel.astype(jnp.float32)
    line = jnp.asarray(np.random.default_rng(4).integers(-2, 3, kernel.shape), jnp.float32)

    @partial(quick, static_argnums=2)
    def program(inputs, kernel, reverse):
        def slope(kernel):
            return jax.grad(lambda w: jnp.sum(form(loss_name)(labels, inputs, w, **sizes)))(kernel)

        if reverse:
            return jax.vjp(slope, kernel)[1](line)[0]
        return jax.jvp(slope, (kernel,), (line,))[1]

    expected = program(inputs.astype(jnp.float32), kernel, False)
    for reverse in (False, True):
        got = program(inputs, kernel, reverse)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, atol=0.02 * float(np.max(np.abs(expected))))


# Half precision.


@pytest.mark.parametrize("form", [scalar, per_example])
@pytest.mark.parametrize("dtype", [jnp.float16, pytest.param(jnp.bfloat16, marks=pytest.mark.long)])
@pytest.mark.one_in(2)
def test_half_precision_keeps_the_gradient_of_many_examples(form, dtype):
    """A probability over the number of examples is below float16's range."""
    rng = np.random.default_rng(0)
    examples, features, classes = 2048, 16, 4096
    inputs = jnp.asarray(rng.standard_normal((examples, features)) * 0.5 + 1, dtype)
    kernel = jnp.asarray(rng.standard_normal((features, classes)) * 0.1, dtype)
    labels = rng.integers(10, size=examples)

    def fused(kernel):
        return jnp.mean(form("sparse_softmax")(labels, inputs, kernel))

    def stored(kernel):
        logits = jnp.matmul(inputs, kernel, preferred_element_type=jnp.float32)
        return losses.sparse_softmax_cross_entropy(labels, logits)

    wide = np.asarray(inputs, np.float64)
    odds = np.exp(wide @ np.asarray(kernel, np.float64))
    slope = odds / odds.sum(1, keepdims=True)
    slope[np.arange(examples), labels] -= 1
    expected = wide.T @ slope / examples

    def error(gradient):
        return np.linalg.norm(np.float64(gradient) - expected) / np.linalg.norm(expected)

    got = jax.grad(fused)(kernel)
    assert error(got) <= 2 * error(jax.grad(stored)(kernel))
    if dtype == jnp.float16:
        assert np.all(got != 0)


@pytest.mark.parametrize("nonfinite", [0.0, inf, nan, 1e-45, 3e38])
def test_scaling_a_float16_gradient_loses_nothing(nonfinite):
    slope = jnp.asarray([[1e-9, 2.0**-30, -1e-6], [nonfinite, 0, 0]], jnp.float32)
    narrow = matmuls.scaled_cast(slope, jnp.float16)
    assert narrow.low.dtype == jnp.float16
    assert narrow.down is not None
    restored = narrow.low.astype(jnp.float32) * narrow.down
    if nonfinite in (0.0, 1e-45):
        np.testing.assert_allclose(restored[0], slope[0], rtol=2**-11, atol=0)
    elif nonfinite == 3e38:  # the others are below what it leaves room for
        np.testing.assert_allclose(restored[1, 0], nonfinite, rtol=2**-11)
    else:
        assert not np.isfinite(restored[1, 0])
