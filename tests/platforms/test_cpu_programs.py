"""What XLA:CPU makes of programs: decisions, products, many directions at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from jxent import losses

pytestmark = pytest.mark.optimized


@pytest.mark.usefixtures("narrow_rows")
@pytest.mark.parametrize(("examples", "many"), [(128, False), (4096, True)])
def test_only_many_narrow_rows_are_worth_a_condition(examples, many):
    def loss(z, x):
        return jxent.softmax_cross_entropy_with_logits(labels=z, logits=x)

    shape = jax.ShapeDtypeStruct((examples, 10), jnp.float32)
    text = jax.jit(loss).lower(shape, shape).compile().as_text()
    assert text is not None
    assert (" conditional(" in text) == many


@pytest.mark.parametrize("loss_name", ["sparse softmax", "sigmoid"])
def test_vmap_decides_once_for_all_examples(loss_name):
    """With one decision an example, both ways would be computed for all of them."""
    decisions = 1
    if loss_name == "sigmoid":
        arguments = (jnp.zeros((4, 9)), jnp.zeros((4, 9)))

        def loss(z, x):
            return losses.sigmoid_cross_entropy(z, x)
    else:
        arguments = (jnp.zeros(4, jnp.int32), jnp.zeros((4, 9)))
        decisions += 2  # the exact way has two of its own

        def loss(y, x):
            return jxent.sparse_softmax_cross_entropy_with_logits(labels=y, logits=x)

    text = jax.jit(jax.vmap(loss)).lower(*arguments).compile().as_text()
    assert text is not None
    assert text.count(" conditional(") == decisions


def projected(kernel):
    inputs = jax.random.normal(jax.random.key(3), (32, len(kernel)))
    return jxent.linear_sparse_softmax_cross_entropy(
        labels=jnp.arange(32) % 8, inputs=inputs, kernel=kernel
    )


def focused(y, x):
    return losses.sparse_softmax_cross_entropy(y, x, focusing=2.0, reduction="none")


def with_entropy(x):
    found = jxent.sparse_softmax_statistics_with_logits(labels=jnp.arange(32) % 8, logits=x)
    return found.log_prob + found.entropy


@pytest.mark.parametrize(
    ("loss", "rows"),
    [
        (
            lambda x: losses.sparse_softmax_cross_entropy(jnp.arange(32) % 8, x, reduction="none"),
            32,
        ),
        (lambda x: losses.softmax_cross_entropy(jnp.flip(x) ** 2, x, reduction="none"), 32),
        (lambda x: losses.softmax_kl_divergence(jnp.flip(x), x, reduction="none"), 32),
        (lambda x: focused(jnp.arange(32) % 8, x), 32),
        (with_entropy, 32),
        (projected, 5),
    ],
    ids=["ids", "dense", "KL", "focused ids", "statistics", "projection"],
)
@pytest.mark.one_in(8)
def test_second_order_along_many_directions(loss, rows):
    """`jax.hessian` of a batch: XLA:CPU has had a fusion that went wrong from 2^15 numbers on."""
    x = jax.random.normal(jax.random.key(0), (rows, 8))
    along = jax.random.normal(jax.random.key(1), (256 * 32 // rows // 8 * 8, rows, 8))
    gradient = jax.grad(lambda x: jnp.sum(loss(x) * jnp.linspace(0.5, 2, 32)))
    products = jax.jit(jax.vmap(lambda t: jax.jvp(gradient, (x,), (t,))[1]))
    few = [products(part) for part in jnp.split(along, len(along) // 8)]
    np.testing.assert_allclose(products(along), jnp.concatenate(few), rtol=1e-4, atol=1e-5)


def test_no_product_reads_the_inputs_across():
    """XLA:CPU takes twice as long for a product whose left operand is summed over its rows."""
    shapes = ((16, 8), (8, 640), (16,))
    dtypes = (jnp.float32, jnp.float32, jnp.int32)
    arguments = [jax.ShapeDtypeStruct(s, d) for s, d in zip(shapes, dtypes, strict=True)]

    def mean(inputs, kernel, labels):
        return losses.linear_sparse_softmax_cross_entropy(labels, inputs, kernel, block_size=8)

    def per_example(inputs, kernel, labels):
        return jxent.linear_sparse_softmax_cross_entropy(
            labels=labels, inputs=inputs, kernel=kernel, block_size=8
        ).sum()

    for loss in (mean, per_example):
        text = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arguments).compile().as_text()
        assert text is not None
        products = [line for line in text.splitlines() if " dot(" in line]
        assert products
        assert not any("lhs_contracting_dims={0}" in line for line in products)
