"""What a softmax predicts: what an unused field costs, matrix products, memory."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.loss_fns.softmax_statistics import FIELDS, LINEAR, WITH_LOGITS
from tests.projection.members import products


def operations(function, *arguments):
    """The exponentials and logarithms of a compiled program's text, fused computations too."""
    text = jax.jit(function).lower(*arguments).compile().as_text() or ""
    return len(re.findall(r"= \S+ (?:exponential|log-plus-one|log|tanh)\(", text))


def test_a_field_that_is_not_used_costs_nothing():
    x, labels = jnp.ones((8, 64)), np.zeros(8, int)

    def field(name, x):
        return jnp.sum(getattr(WITH_LOGITS(labels=labels, logits=x), name))

    def every(x):
        return sum(field(name, x) for name in FIELDS)

    for wrap in (lambda f: f, jax.grad):
        alone = [operations(wrap(partial(field, name)), x) for name in FIELDS]
        assert max(alone) <= operations(wrap(every), x)
        assert alone[2] < operations(wrap(every), x)


def test_products():
    """All fields and both gradients take the four products of one loss per example, no more."""
    labels, x, kernel = np.zeros(7, int), jnp.ones((7, 3)), jnp.ones((3, 5))

    def total(names, x, kernel):
        found = LINEAR(labels=labels, inputs=x, kernel=kernel)
        return sum(jnp.sum(getattr(found, name)) for name in names)

    for names in (FIELDS, ("entropy",), ("log_prob", "log_normalizer")):
        f = partial(total, names)
        assert len(products(f, x, kernel)) == 1
        assert len(products(jax.value_and_grad(f, (0, 1)), x, kernel)) == 4
        assert len(products(jax.grad(f, 0), x, kernel)) == 3


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.one_in(2)
def test_no_product_mixes_dtypes(dtype):
    labels, x, kernel = np.zeros(7, int), jnp.ones((7, 3), dtype), jnp.ones((3, 5), dtype)

    def total(x, kernel, **sizes):
        return jnp.sum(LINEAR(labels=labels, inputs=x, kernel=kernel, **sizes).entropy)

    for kernel_ in (kernel, kernel.astype(jnp.float32)):
        for sizes in ({}, {"class_block_size": 2}):
            f = partial(total, **sizes)
            found = products(jax.value_and_grad(f, (0, 1)), x, kernel_)
            assert all(a == b for a, b in found), found


@pytest.mark.parametrize("shape", [(512, 32768), (2048, 1000)], ids=str)
@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.one_in(4)
@pytest.mark.optimized
@pytest.mark.since("0.10.2")
def test_values_store_no_array_of_the_logits_size(shape, name):
    logits = jax.ShapeDtypeStruct(shape, jnp.float32)
    labels = jax.ShapeDtypeStruct(shape[:1], jnp.int32)

    def value(logits, labels):
        found = WITH_LOGITS(labels=labels, logits=logits)
        return getattr(found, name), found.prediction

    analysis = jax.jit(value).lower(logits, labels).compile().memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes <= 0.3 * 4 * shape[0] * shape[1]


@pytest.mark.optimized
def test_gradients_of_a_projection_take_a_sixth_of_stored_logits():
    examples, features, classes = 4096, 256, 65536
    f32 = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    labels = jax.ShapeDtypeStruct((examples,), jnp.int32)

    def total(inputs, kernel, labels):
        found = LINEAR(labels=labels, inputs=inputs, kernel=kernel)
        return jnp.sum(found.log_prob + 0.01 * found.entropy), found.prediction

    program = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
    lowered = program.lower(f32((examples, features)), f32((features, classes)), labels)
    analysis = lowered.compile().memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes <= 2 * 4 * examples * classes / 6
