"""A kernel that lies the other way round: the same results, and nothing of the table's size."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jxent
from jxent import losses

N, D, C = 1024, 64, 65536
SOFTMAX, SIGMOID = (
    losses.linear_sparse_softmax_cross_entropy,
    losses.linear_sparse_sigmoid_cross_entropy,
)


def operands(dtype=jnp.float32, examples=12, features=4, classes=10):
    keys = jax.random.split(jax.random.key(0), 3)
    inputs = jax.random.normal(keys[0], (examples, features), dtype)
    table = jax.random.normal(keys[1], (classes, features), dtype)
    return jax.random.randint(keys[2], (examples,), 0, classes), inputs, table


def test_it_is_a_kernel():
    table = jnp.ones((10, 4), jnp.bfloat16)
    kernel = jxent.Transposed(table)
    assert (kernel.shape, kernel.ndim, kernel.size) == ((4, 10), 2, 40)
    assert kernel.dtype == jnp.bfloat16
    assert kernel.astype(jnp.float32).dtype == jnp.float32
    chex.assert_trees_all_equal(jax.tree.leaves(kernel), [table])


def test_a_gradient_lies_as_the_table_does():
    labels, inputs, table = operands()
    loss = partial(SOFTMAX, labels, inputs)
    expected = jax.grad(loss)(table.T)
    found = jax.grad(loss)(jxent.Transposed(table))
    assert isinstance(found, jxent.Transposed)
    chex.assert_trees_all_close(found.table, expected.T, rtol=1e-5, atol=1e-7)
    by_table = jax.grad(lambda table: loss(jxent.Transposed(table)))(table)
    chex.assert_trees_all_equal(by_table, found.table)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.one_in(2)
def test_narrow_inputs_and_a_wide_table(dtype):
    labels, inputs, table = operands()
    inputs = inputs.astype(dtype)
    expected = jax.value_and_grad(SOFTMAX, (1, 2))(labels, inputs, table.T)
    loss, (for_inputs, for_table) = jax.value_and_grad(
        lambda x, table: SOFTMAX(labels, x, jxent.Transposed(table)), (0, 1)
    )(inputs, table)
    assert (for_inputs.dtype, for_table.dtype) == (dtype, jnp.float32)
    chex.assert_trees_all_close(
        (loss, for_table), (expected[0], expected[1][1].T), rtol=1e-5, atol=1e-7
    )


def test_logits_and_their_derivatives():
    _, inputs, table = operands()

    def total(inputs, kernel):
        return jnp.sin(jxent.linear_logits(inputs=inputs, kernel=kernel)).sum()

    value, expected = jax.value_and_grad(total, (0, 1))(inputs, table.T)
    again, found = jax.value_and_grad(total, (0, 1))(inputs, jxent.Transposed(table))
    chex.assert_trees_all_close(
        (again, found[0], found[1].table), (value, expected[0], expected[1].T), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("loss", [SOFTMAX, SIGMOID])
def test_no_examples(loss):
    _, _, table = operands()
    labels = jnp.zeros((0,) if loss is SOFTMAX else (0, 3), jnp.int32)
    value, (for_inputs, for_table) = jax.value_and_grad(
        lambda x, table: loss(labels, x, jxent.Transposed(table)), (0, 1)
    )(jnp.zeros((0, 4)), table)
    assert value == 0
    assert for_inputs.shape == (0, 4)
    assert not np.any(for_table)


@pytest.mark.parametrize("sizes", [{"block_size": 5}, {"class_block_size": 3}])
@pytest.mark.parametrize("loss", [SOFTMAX, SIGMOID])
@pytest.mark.one_in(4)
def test_strict_promotion_and_uneven_cotangents(loss, sizes):
    """Of bfloat16 inputs and a float32 table, blocks that leave a rest, one loss per example."""
    labels, inputs, table = operands()
    labels = labels if loss is SOFTMAX else labels[:, None]
    inputs, cotangent = inputs.astype(jnp.bfloat16), jnp.linspace(-1, 2, 12)

    def losses_of(kernel):
        return loss(labels, inputs, kernel, reduction="none", **sizes)

    with jax.numpy_dtype_promotion("strict"):
        each, pull = jax.vjp(lambda table: losses_of(jxent.Transposed(table)), table)
        expected, pull_expected = jax.vjp(losses_of, table.T)
        (gradient,), (right,) = pull(cotangent), pull_expected(cotangent)
    chex.assert_trees_all_close(each, expected, rtol=1e-5)
    # One loss per example: the gradient is rounded to the inputs' dtype once per block.
    np.testing.assert_allclose(gradient, right.T, atol=2**-7 * np.abs(right).max())


@pytest.mark.parametrize(
    ("table", "error", "words"),
    [
        (
            np.ones((10, 4, 1), np.float32),
            ValueError,
            r"kernel.table must be \[classes, features\]",
        ),
        (np.ones((4, 10), np.float32), ValueError, r"\(10, 4\), of a table \(4, 10\)"),
        (np.ones((0, 4), np.float32), ValueError, "kernel must have at least one class"),
        (np.ones((10, 4), int), TypeError, "kernel.table must be floating"),
        (np.ones((10, 4), np.float16), TypeError, "kernel must have the dtype of inputs"),
        ("words", TypeError, "kernel.table"),
        (None, ValueError, "kernel.table must be .* got None"),
    ],
)
def test_what_is_no_table(table, error, words):
    labels, inputs, _ = operands()
    with pytest.raises(error, match=words):
        SOFTMAX(labels, inputs, jxent.Transposed(table))


# Of a kernel that is transposed before, the compiler keeps a copy, of 16 MB here.
@pytest.mark.parametrize("is_softmax", [True, False])
@pytest.mark.parametrize("differentiated", [True, False])
@pytest.mark.one_in(6)
@pytest.mark.optimized
def test_no_copy_of_the_table(is_softmax, differentiated):
    loss = SOFTMAX if is_softmax else SIGMOID
    labels = jnp.zeros((N,) if is_softmax else (N, 3), jnp.int32)

    def held(of_kernel, shape):
        def mean(inputs, kernel):
            return loss(labels, inputs, of_kernel(kernel))

        function = jax.value_and_grad(mean, (0, 1)) if differentiated else mean
        arrays = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((N, D), shape))
        memory = jax.jit(function).lower(*arrays).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    size = 4 * C * D
    plain = held(lambda kernel: kernel, (D, C))
    assert held(lambda table: table.T, (C, D)) > plain + size / 2
    assert held(jxent.Transposed, (C, D)) < plain + size / 8


@pytest.mark.eight_devices
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("split", [("data", None), (None, "model"), ("data", "model")])
@pytest.mark.parametrize("loss", [SOFTMAX, SIGMOID])
@pytest.mark.one_in(12)
def test_a_table_that_is_split(kind, split, loss):
    labels, inputs, table = operands(examples=8, classes=12)
    labels = labels if loss is SOFTMAX else labels[:, None]

    def total(inputs, table):
        return loss(labels, inputs, jxent.Transposed(table))

    expected = jax.jit(jax.value_and_grad(total, (0, 1)))(inputs, table)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
    rows, classes = split
    with jax.set_mesh(mesh):
        inputs = jax.device_put(inputs, NamedSharding(mesh, PartitionSpec(rows)))
        table = jax.device_put(table, NamedSharding(mesh, PartitionSpec(classes)))
        found = jax.jit(jax.value_and_grad(total, (0, 1)))(inputs, table)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.eight_devices
def test_classes_of_a_shard_map():
    labels, inputs, table = operands(examples=8, classes=12)
    mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,))

    def local(inputs, table):
        return SOFTMAX(labels, inputs, jxent.Transposed(table), axis_name="model")

    split = jax.shard_map(
        local, mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec("model")),
        out_specs=PartitionSpec(),
    )  # fmt: skip
    found = jax.jit(jax.value_and_grad(split, (0, 1)))(inputs, table)
    expected = jax.value_and_grad(
        lambda x, table: SOFTMAX(labels, x, jxent.Transposed(table)), (0, 1)
    )(inputs, table)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)
