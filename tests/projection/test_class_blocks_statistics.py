"""Statistics of a projection whose derivatives are taken by blocks of classes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from jxent._src.loss_fns.statistics import FIELDS
from tests.compile_options import quick
from tests.projection.derivatives import nested
from tests.projection.members import operands, products

STATISTICS = jxent.linear_sparse_softmax_statistics


@pytest.mark.parametrize("fields", [FIELDS, ("entropy",)], ids="-".join)
@pytest.mark.parametrize("width", [4, 13])
@pytest.mark.usefixtures("lowered_for")
@pytest.mark.long
def test_every_width_has_the_derivatives_of_blocks_of_examples(width, fields):
    """In float64, to rounding, up to the third, in both modes, to all that moves."""
    with jax.enable_x64(True):
        labels, inputs, kernel = operands(
            "sparse_softmax", examples=5, classes=13, dtype=np.float64
        )
        inputs = inputs.at[1].multiply(30)  # one class leads by far
        rng = np.random.default_rng(1)
        bias, shares = rng.standard_normal(13), rng.standard_normal((len(FIELDS), 5))
        differentiated = {
            "inputs": inputs,
            "kernel": kernel,
            "bias": bias,
            "temperature": np.array(1.3),
        }
        along = jax.tree.map(lambda x: rng.standard_normal(x.shape), differentiated)

        @partial(quick, static_argnums=1)
        def both(differentiated, sizes):
            def total(differentiated):
                found = STATISTICS(
                    labels=labels, **differentiated, logit_softcap=6.0, **dict(sizes)
                )
                values = jnp.stack([getattr(found, name) for name in fields])
                return jnp.sum(shares[: len(fields)] * jnp.sin(values))

            def gradient(differentiated):
                return jax.jvp(total, (differentiated,), (along,))[1]

            return nested(total, differentiated, along), jax.jvp(
                gradient, (differentiated,), (along,)
            )[1]

        wanted = both(differentiated, (("block_size", 5),))
        got = both(differentiated, (("class_block_size", width),))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-11), got, wanted)


@pytest.mark.usefixtures("lowered_for")
@pytest.mark.one_in(3)
def test_second_derivatives_of_a_dominant_class_keep_their_digits():
    """Of a softmax of two numbers, to 1e-25 from certainty, in closed form."""
    ahead = np.concatenate([np.linspace(-1, 4, 60), np.linspace(5, 57, 56)]).astype(np.float32)
    inputs, kernel = ahead[:, None], np.array([[0.0, 1.0]], np.float32)
    labels, along = np.ones(len(ahead), int), jnp.array([0.0, 1.0])

    def each(bias):
        found = STATISTICS(
            labels=labels, inputs=inputs, kernel=kernel, bias=bias, class_block_size=1
        )
        return found.log_prob, found.entropy

    def gradient(bias):
        return jax.jvp(each, (bias,), (along,))[1]

    zero = jnp.zeros(2)
    log_prob, entropy = jax.jvp(gradient, (zero,), (along,))[1]
    a = ahead.astype(np.longdouble)
    p, q = 1 / (1 + np.exp(-a)), 1 / (1 + np.exp(a))
    np.testing.assert_allclose(gradient(zero)[1], np.float64(-a * p * q), rtol=2e-6, atol=1e-12)
    np.testing.assert_allclose(log_prob, np.float64(-p * q), rtol=2e-6)
    # d/da of -a p q, which crosses 0: of the size of its terms.
    exact, size = -p * q * (1 + a * (q - p)), p * q * (1 + np.abs(a))
    np.testing.assert_array_less(np.abs(np.asarray(entropy) - exact), 4e-6 * size)


@pytest.mark.usefixtures("lowered_for")
@pytest.mark.one_in(3)
def test_an_id_out_of_range_is_of_the_log_probability_alone():
    labels, inputs, kernel = operands("sparse_softmax", examples=4, classes=7)

    def f(name, labels, inputs):
        found = STATISTICS(labels=labels, inputs=inputs, kernel=kernel, class_block_size=3)
        return jnp.sum(getattr(found, name))

    for nonfinite, dtype in ((7, np.int32), (-1, np.int32), (2**32 - 1, np.uint32)):
        invalid = labels.astype(dtype)
        invalid[2] = nonfinite
        for name in FIELDS:
            value, gradient = jax.value_and_grad(partial(f, name), 1)(invalid, inputs)
            is_nan = [0, 0, name == "log_prob", 0]
            assert np.isnan(value) == (name == "log_prob")
            np.testing.assert_array_equal(np.isnan(gradient).any(1), is_nan)


@pytest.mark.usefixtures("lowered_for")
@pytest.mark.long
def test_masked_classes_and_equal_maxima():
    """As by blocks of examples: -inf, a large finite mask, ties, +inf, a row of NaN."""
    labels, inputs, kernel = operands("sparse_softmax", examples=3, classes=7)
    for masks in ([0, 0, -np.inf, 0, 0, 0, 0], [0, -1e30, 0, 0, 0, 0, 0], [50, 0, 0, 50, 0, 0, 0],
                  [0, 0, 0, 0, 0, np.inf, 0], [0, np.nan, 0, 0, 0, 0, 0]):  # fmt: skip
        bias = np.array(masks, np.float32)

        @partial(quick, static_argnums=1)
        def both(temperature, sizes, bias=bias):
            def total(inputs, kernel, temperature):
                found = STATISTICS(
                    labels=labels, inputs=inputs, kernel=kernel, bias=bias,
                    temperature=temperature, **dict(sizes),
                )  # fmt: skip
                return jnp.sum(found.log_prob + 0.3 * found.entropy - 0.1 * found.log_normalizer)

            def gradient(*differentiated):
                return jax.grad(total, (0, 1, 2))(*differentiated)

            differentiated = (inputs, kernel, temperature)
            return gradient(*differentiated), jax.jvp(gradient, differentiated, differentiated)[1]

        wanted = both(jnp.float32(1.3), (("block_size", 3),))
        got = both(jnp.float32(1.3), (("class_block_size", 2),))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), got, wanted)


def test_as_many_products_as_by_blocks_of_examples():
    labels, inputs, kernel = operands("sparse_softmax", classes=12)

    def f(labels, inputs, kernel, **sizes):
        found = STATISTICS(labels=labels, inputs=inputs, kernel=kernel, **sizes)
        return jnp.sum(found.log_prob + found.entropy)

    for sizes in ({"block_size": 6}, {"class_block_size": 4}):
        of = jax.value_and_grad(partial(f, **sizes), (1, 2))
        assert len(products(of, labels, inputs, kernel)) == 4


@pytest.mark.long
@pytest.mark.optimized
@pytest.mark.since("0.10.0")
def test_a_block_is_alive_at_a_time():
    examples, features, classes = 4096, 256, 65536
    f32 = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)

    def total(inputs, kernel, labels):
        found = STATISTICS(labels=labels, inputs=inputs, kernel=kernel, class_block_size=1024)
        return jnp.mean(found.log_prob + 0.01 * found.entropy)

    def held(function):
        arrays = (f32((examples, features)), f32((features, classes)))
        ids = jax.ShapeDtypeStruct((examples,), jnp.int32)
        sizes = jax.jit(function).lower(*arrays, ids).compile().memory_analysis()
        assert sizes is not None
        return sizes.temp_size_in_bytes

    gradient = jax.grad(total, (0, 1))
    assert held(gradient) <= 250e6  # stored logits: 1.07 GB

    def product(inputs, kernel, labels):
        differentiated = (inputs, kernel)
        return jax.jvp(
            lambda *differentiated: gradient(*differentiated, labels),
            differentiated,
            differentiated,
        )[1]

    assert held(product) <= 500e6


@pytest.mark.parametrize(("examples", "classes"), [(0, 3), (2, 1)])
def test_no_examples_and_one_class(examples, classes):
    labels, inputs, kernel = (
        np.zeros(examples, int),
        jnp.ones((examples, 2)),
        jnp.ones((2, classes)),
    )

    def total(inputs, kernel):
        found = STATISTICS(labels=labels, inputs=inputs, kernel=kernel, class_block_size=2)
        return jnp.sum(found.log_prob + found.entropy)

    value, gradients = jax.value_and_grad(total, (0, 1))(inputs, kernel)
    assert value == 0
    for gradient, x in zip(gradients, (inputs, kernel), strict=True):
        np.testing.assert_array_equal(gradient, jnp.zeros_like(x))
