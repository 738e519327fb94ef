"""Blocks of examples of a projection: of every size, ragged, empty, with dropped examples."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jxent import losses
from jxent._src.projection import plan
from tests.compile_options import quick
from tests.projection.members import LOSSES, operands, per_example, scalar

inf, nan = np.inf, np.nan


# Blocks.


@pytest.mark.parametrize("loss_name", LOSSES)
@pytest.mark.one_in(5)
def test_every_block_size_gives_the_same(loss_name):
    """On small logits: a padded class or example would show."""
    labels, inputs, kernel = operands(loss_name)
    kernel = 0.01 * kernel
    weights = np.array([1, 0.5, 0, 2, 1, 3, 0.25], np.float32)

    def f(inputs, kernel, block_size):
        return scalar(loss_name)(labels, inputs, kernel, weights=weights, block_size=block_size)

    @partial(quick, static_argnums=2)
    def both(inputs, kernel, block_size):
        each = per_example(loss_name)(labels, inputs, kernel, block_size=block_size)
        return jax.value_and_grad(f, (0, 1))(inputs, kernel, block_size), each

    expected, each = both(inputs, kernel, 7)
    for block_size in (None, 1, 3, 6, 8):
        got, by_example = both(inputs, kernel, block_size)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected
        )
        np.testing.assert_allclose(by_example, each, rtol=1e-6)


def test_the_default_block():
    def size(examples, features, classes):
        return plan.cut(examples, (features, classes), None).size

    assert size(4096, 256, 65536) == 512
    assert size(8192, 4096, 128256) == 2048  # half the features: the kernel's gradient is large
    assert size(100, 64, 1000) == 100
    assert size(2048, 128, 10_000_000) == 64
    assert plan.cut(0, (3, 5), None) == (1, 0)


@pytest.mark.parametrize("loss_name", LOSSES)
def test_no_examples(loss_name):
    labels, inputs, kernel = operands(loss_name, examples=0)
    value, gradients = jax.value_and_grad(scalar(loss_name), (1, 2))(labels, inputs, kernel)
    assert float(value) == 0
    assert not any(np.any(g) for g in gradients)
    assert per_example(loss_name)(labels, inputs, kernel).shape == (0,)


@pytest.mark.parametrize("loss_name", LOSSES)
@pytest.mark.one_in(2)
def test_a_masked_class_and_ragged_blocks(loss_name):
    """A bias of -inf rules class 0 out; examples that fill up the last block meet it as well."""
    labels, inputs, kernel = operands(loss_name, classes=4)
    if labels.dtype.kind == "i":
        labels = np.where(labels == 0, 1, labels)
    else:
        labels[:, 0] = 0
    bias = np.array([-inf, 0.1, 0.2, 0.3], np.float32)

    def f(inputs, kernel, block_size):
        return scalar(loss_name)(labels, inputs, kernel, bias=bias, block_size=block_size)

    gradients = quick(jax.value_and_grad(f, (0, 1)), static_argnums=2)
    expected, got = gradients(inputs, kernel, 7), gradients(inputs, kernel, 3)
    assert np.isfinite(expected[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected)
    assert not np.any(got[1][1][:, 0])


@pytest.mark.parametrize("form", [scalar, per_example])
@pytest.mark.parametrize("loss_name", ["sparse_softmax", "softmax"])
@pytest.mark.one_in(5)
def test_a_kernel_that_rules_a_class_out_and_ragged_blocks(loss_name, form):
    """Places that fill up the last block are 0 @ kernel, which is NaN: none reaches a sum."""
    inputs = np.float32([[1, 1], [2, 1], [1, 3]])
    kernel = np.float32([[1, 2, -inf], [0, 1, -inf]])
    labels = np.array([0, 1, 0])
    if loss_name == "softmax":
        labels = np.eye(3, dtype=np.float32)[labels]

    def total(kernel, bias, block_size):
        each = form(loss_name)(labels, inputs, kernel, bias=bias, block_size=block_size)
        return jnp.sum(each)

    def stored(kernel, bias):
        logits = inputs @ kernel + bias[None]
        return getattr(losses, f"{loss_name}_cross_entropy")(
            labels, logits, reduction="weighted_mean" if form is scalar else "weighted_sum"
        )

    bias = np.zeros(3, np.float32)
    expected = jax.value_and_grad(stored, (0, 1))(kernel, bias)
    for block_size in (1, 2, 3, 5):
        gradients = quick(jax.value_and_grad(total, (0, 1)), static_argnums=2)
        got = gradients(kernel, bias, block_size)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected
        )


@pytest.mark.parametrize("form", [scalar, per_example])
@pytest.mark.one_in(2)
def test_no_ids_and_no_features(form):
    none = np.zeros((2, 0), int)
    value = form("sparse_sigmoid")(none, np.ones((2, 3), np.float32), np.eye(3, dtype=np.float32))
    np.testing.assert_allclose(value, (1 if form is scalar else 3) * np.log1p(np.e), rtol=1e-6)
    inputs, kernel = np.ones((2, 0), np.float32), np.ones((0, 3), np.float32)
    for loss_name in LOSSES:
        labels, *_ = operands(loss_name, examples=2, classes=3)
        f = form(loss_name)
        total = jax.value_and_grad(
            lambda *a, f=f, y=labels: jnp.sum(f(y, *a[:2], bias=a[2])), (0, 1, 2)
        )
        value, slopes = quick(total)(inputs, kernel, np.zeros(3, np.float32))
        assert np.isfinite(value)
        assert [s.shape for s in slopes] == [(2, 0), (0, 3), (3,)]
        assert np.any(slopes[2])


# Dropped examples.


@pytest.mark.parametrize("loss_name", LOSSES)
@pytest.mark.parametrize(
    "reduction", [*(pytest.param(r, marks=pytest.mark.long) for r in ("none", "weighted_sum")),
                  "weighted_mean"],
)  # fmt: skip
@pytest.mark.one_in(5)
def test_weight_0_takes_a_nonfinite_example_out(loss_name, reduction):
    labels, inputs, kernel = operands(loss_name)
    weights = np.array([1, 0.5, 0, 2, 1, 3, 0], np.float32)
    nonfinite_inputs = inputs.at[2].set(nan).at[6, 0].set(inf)
    nonfinite_labels = labels.copy()
    nonfinite_labels[2] = 99 if labels.dtype.kind == "i" else nan

    def total(labels, inputs, kernel, weights):
        each = scalar(loss_name)(
            labels, inputs, kernel, weights=weights, reduction=reduction, block_size=3
        )
        return jnp.sum(each)

    @partial(quick, static_argnums=0)
    def everything(labels_are_nonfinite, inputs):
        labels_now = nonfinite_labels if labels_are_nonfinite else labels
        f = partial(total, labels_now)
        return [
            jax.value_and_grad(f, (0, 1))(inputs, kernel, weights),
            jax.jvp(jax.grad(f, (0, 1)), (inputs, kernel, weights),
                    (jnp.ones_like(inputs), kernel, weights))[1],
            jax.vjp(lambda a, b: jax.grad(f, (0, 1))(a, b, weights), inputs, kernel)[1](
                (jnp.ones_like(inputs), kernel)),
        ], jax.grad(f, 2)(inputs, kernel, weights)  # fmt: skip

    got, by_weight = everything(True, nonfinite_inputs)
    expected, _ = everything(False, inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, expected)
    assert not np.any(got[0][1][0][jnp.array([2, 6])])
    assert np.isfinite(by_weight).all()


@pytest.mark.parametrize("loss_name", ["sparse_softmax", "sparse_sigmoid"])
@pytest.mark.one_in(2)
def test_an_id_out_of_range_is_loud_and_local(loss_name):
    labels, inputs, kernel = operands(loss_name)
    labels[3] = 5
    each = per_example(loss_name)(labels, inputs, kernel, block_size=2)
    gradient = jax.grad(
        lambda x: per_example(loss_name)(labels, x, kernel, block_size=2).sum()
    )(inputs)  # fmt: skip
    invalid = np.arange(7) == 3
    np.testing.assert_array_equal(np.isnan(each), invalid)
    np.testing.assert_array_equal(np.isnan(gradient).all(1), invalid)
    np.testing.assert_array_equal(np.isnan(gradient).any(1), invalid)
    assert np.isnan(scalar(loss_name)(labels, inputs, kernel))
