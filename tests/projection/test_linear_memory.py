"""Memory of losses of a projection, as the compiler counts it."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
import pytest

from benchmarks.lib import programs as projection
from jxent import losses

SHAPE = (4096, 256, 65536)
KERNEL, BLOCK_OF_64 = 256 * 65536 * 4, 64 * 65536 * 4


def abstract(examples, features, classes):
    f32 = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    return (
        f32((examples, features)),
        f32((features, classes)),
        jax.ShapeDtypeStruct((examples,), jnp.int32),
    )


def temporaries(wrap, loss):
    return projection.temporaries(wrap(loss), *abstract(*SHAPE))


def value(loss):
    return loss


@pytest.fixture(scope="module")
def default():
    return partial(projection.scalar, None)


@pytest.mark.optimized
def test_gradients_take_a_sixth_of_the_memory_of_stored_logits(default):
    theirs = temporaries(projection.value_and_gradients, projection.of_optax)
    assert 6 * temporaries(projection.value_and_gradients, default) <= theirs
    assert 4 * temporaries(projection.value_and_gradients, projection.per_example) <= theirs
    small = temporaries(projection.value_and_gradients, partial(projection.scalar, 64))
    assert small <= 2.2 * KERNEL + 6 * BLOCK_OF_64


@pytest.mark.parametrize(
    "wrap",
    [
        value,
        partial(projection.hessian_vector, forward=True),
        pytest.param(partial(projection.hessian_vector, forward=False), marks=pytest.mark.long),
    ],
    ids=["value", "forward over reverse", "reverse over reverse"],
)
@pytest.mark.one_in(2)
@pytest.mark.optimized
def test_value_and_second_order_take_a_third(wrap, default):
    theirs = temporaries(wrap, projection.of_optax)
    assert 3 * temporaries(wrap, default) <= theirs
    if wrap is not value:
        assert 3 * temporaries(wrap, projection.per_example) <= theirs


@pytest.mark.optimized
def test_label_ids_take_a_quarter_of_the_dense_form():
    examples, features, classes = 512, 64, 262144
    inputs, kernel, _ = abstract(examples, features, classes)
    lists = jax.ShapeDtypeStruct((examples, 8), jnp.int32)
    dense = jax.ShapeDtypeStruct((examples, classes), jnp.float32)

    def by_ids(inputs, kernel, labels):
        return losses.linear_sparse_sigmoid_cross_entropy(labels, inputs, kernel)

    def by_dense(inputs, kernel, labels):
        return optax.sigmoid_binary_cross_entropy(inputs @ kernel, labels).sum(-1).mean()

    gradients = projection.value_and_gradients
    ours = projection.temporaries(gradients(by_ids), inputs, kernel, lists)
    assert 4 * ours <= projection.temporaries(gradients(by_dense), inputs, kernel, dense)
