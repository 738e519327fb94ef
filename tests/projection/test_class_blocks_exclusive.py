"""Blocks of exclusive classes: four matrix products, for softmax losses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compile_options import quick
from tests.projection.derivatives import nested
from tests.projection.members import SOFTMAX, operands, per_example, products

inf, nan = np.inf, np.nan
ALL = {"label_smoothing": 0.1, "z_loss": 0.3, "logit_softcap": 4.0}


@pytest.mark.parametrize("width", [1, 4, 13, 50])
@pytest.mark.usefixtures("lowered_for")
@pytest.mark.one_in(12)
def test_exclusive_classes_of_every_width(width):
    """In float64, to rounding: value, every gradient, and their derivatives."""
    with jax.enable_x64(True):
        labels, inputs, kernel = operands(
            "sparse_softmax", examples=5, classes=13, dtype=np.float64
        )
        rng = np.random.default_rng(1)
        differentiated = (inputs, kernel, rng.standard_normal(13), np.array([1, 0.5, 0, 2, 3]))

        @partial(quick, static_argnums=1)
        def both(differentiated, sizes):
            def total(differentiated):
                inputs, kernel, bias, weights = differentiated
                return SOFTMAX(
                    labels, inputs, kernel, bias=bias, weights=weights, **ALL, **dict(sizes)
                )

            gradient = jax.grad(total)
            return jax.value_and_grad(total)(differentiated), jax.jvp(
                gradient, (differentiated,), (differentiated,)
            )[1]

        wanted = both(differentiated, (("block_size", 5),))
        got = both(differentiated, (("class_block_size", width),))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-13), got, wanted)


@pytest.mark.parametrize("options", [{}, ALL], ids=["plain", "all"])
@pytest.mark.parametrize("width", [1, 4, 13])
@pytest.mark.usefixtures("lowered_for")
@pytest.mark.one_in(18)
def test_one_loss_an_example_of_exclusive_classes(width, options):
    """In float64, to rounding: value, every gradient, and their derivatives up to the third."""
    with jax.enable_x64(True):
        labels, inputs, kernel = operands(
            "sparse_softmax", examples=5, classes=13, dtype=np.float64
        )
        inputs = inputs.at[1].multiply(30)  # one class leads by far
        rng = np.random.default_rng(1)
        differentiated = {"inputs": inputs, "kernel": kernel, "bias": rng.standard_normal(13)}
        differentiated["weights"] = np.array([1, 0.5, 0, 2, 3])
        along = jax.tree.map(lambda x: rng.standard_normal(x.shape), differentiated)

        @partial(quick, static_argnums=1)
        def both(differentiated, sizes):
            def total(differentiated):
                each = SOFTMAX(labels, **differentiated, **options, **dict(sizes), reduction="none")
                return jnp.sum(each * jnp.sin(each))

            return nested(total, differentiated, along)

        wanted = both(differentiated, (("block_size", 5),))
        got = both(differentiated, (("class_block_size", width),))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-11), got, wanted)


@pytest.mark.usefixtures("lowered_for")
@pytest.mark.one_in(3)
def test_second_derivatives_of_a_dominant_class_keep_their_digits():
    """p (1 - p), for p across both ends of the moment's guard, 0.6 and 0.9, to 1 - 1e-25."""
    ahead = np.concatenate([np.linspace(-1, 4, 60), np.linspace(5, 60, 56)]).astype(np.float32)
    inputs = np.stack([ahead, np.ones_like(ahead)], 1)
    kernel = np.array([[0, 0, 0, 1, 0], [0, -1, 0.5, 0, -0.3]], np.float32)
    labels, along = np.full(len(ahead), 3), jnp.zeros(5).at[3].set(1)

    def each(bias):
        return SOFTMAX(labels, inputs, kernel, bias=bias, class_block_size=2, reduction="none")

    def gradient(bias):
        return jax.jvp(each, (bias,), (along,))[1]

    got = jax.jvp(gradient, (jnp.zeros(5),), (along,))[1]
    logits = inputs.astype(np.float64) @ kernel.astype(np.float64)
    rest = np.exp(np.delete(logits, 3, 1) - logits[:, 3:4]).sum(1)
    p = 1 / (1 + rest)
    assert (np.abs(p - 0.6) < 0.02).any()
    assert (np.abs(p - 0.9) < 0.02).any()
    np.testing.assert_allclose(got, p * rest / (1 + rest), rtol=2e-6)


@pytest.mark.parametrize("nonfinite", [nan, inf, -inf, 3e38])
@pytest.mark.usefixtures("lowered_for")
@pytest.mark.one_in(12)
def test_an_example_of_weight_0_has_no_part_in_exclusive_classes(nonfinite):
    labels, inputs, kernel = operands("sparse_softmax", examples=4, classes=7)
    weights = jnp.array([1.0, 0.0, 2.0, 0.0])

    def f(labels, inputs, kernel, weights):
        return SOFTMAX(labels, inputs, kernel, weights=weights, class_block_size=3)

    of = jax.value_and_grad(f, (1, 2, 3))
    wanted = of(labels, inputs, kernel, weights)
    invalid = np.array([labels[0], labels[1], labels[2], 7])
    got = of(invalid, inputs.at[1, 0].set(nonfinite), kernel, weights)
    np.testing.assert_array_equal(got[0], wanted[0])
    jax.tree.map(np.testing.assert_array_equal, got[1][:2], wanted[1][:2])
    assert np.isfinite(got[1][2]).all()


@pytest.mark.usefixtures("lowered_for")
@pytest.mark.one_in(3)
def test_an_id_out_of_range_is_nan_in_blocks_of_classes():
    labels, inputs, kernel = operands("sparse_softmax", examples=4, classes=7)
    f = jax.value_and_grad(partial(SOFTMAX, class_block_size=3), 1)
    for nonfinite, dtype in (
        (7, np.int32),
        (-1, np.int32),
        (2**31 - 1, np.int32),
        (2**32 - 1, np.uint32),
    ):
        invalid = labels.astype(dtype)
        invalid[2] = nonfinite
        value, gradient = f(invalid, inputs, kernel)
        assert np.isnan(value)
        np.testing.assert_array_equal(np.isnan(gradient).any(1), [0, 0, 1, 0])


@pytest.mark.usefixtures("lowered_for")
@pytest.mark.one_in(2)
def test_a_confident_example_keeps_its_digits():
    """1 - p far below the last digit of p; a class that is ruled out has no slope."""
    inputs, labels = jnp.array([[40.0], [60.0]]), np.array([4, 4])
    kernel = jnp.array([[0.0, -1.0, 0.7, 0.5, 1.0]])
    bias = jnp.array([0.0, 0.0, -jnp.inf, 0.0, 0.0])
    f = jax.value_and_grad(partial(SOFTMAX, bias=bias, class_block_size=2), (1, 2))
    value, (dx, dkernel) = f(labels, inputs, kernel)
    x, k = np.asarray(inputs, np.float64), np.asarray(kernel, np.float64)
    logits = x @ k + np.asarray(bias, np.float64)
    rest = np.exp(logits - logits[:, 4:])
    rest[:, 4] = 0
    gradient = rest / (1 + rest.sum(1, keepdims=True))
    gradient[:, 4] = -gradient.sum(1)
    np.testing.assert_allclose(value, np.log1p(rest.sum(1)).mean(), rtol=1e-5)
    np.testing.assert_allclose(dkernel, x.T @ gradient / 2, rtol=1e-5)
    np.testing.assert_allclose(dx, gradient @ k.T / 2, rtol=1e-5)


def test_four_products_of_exclusive_classes():
    labels, inputs, kernel = operands("sparse_softmax", classes=12)
    f = partial(SOFTMAX, class_block_size=4)
    for differentiated, count in {None: 1, 1: 3, 2: 3, (1, 2): 4}.items():
        g = f if differentiated is None else jax.value_and_grad(f, differentiated)
        assert len(products(g, labels, inputs, kernel)) == count

    def each(*arguments):
        return per_example("sparse_softmax")(*arguments, class_block_size=4).sum()

    assert len(products(each, labels, inputs, kernel)) == 1
    assert len(products(jax.value_and_grad(each, (1, 2)), labels, inputs, kernel)) == 4
