"""Blocks of examples of a projection: of every size, ragged, empty, with dropped examples."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jxent import losses
from jxent._src.core import blocking
from tests.compile_options import quick
from tests.projection.members import MEMBERS, operands, per_example, scalar

inf, nan = np.inf, np.nan


# Blocks.


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.one_in(5)
def test_every_block_size_gives_the_same(member):
    """On small logits: a padded class or example would show."""
    labels, inputs, kernel = operands(member)
    kernel = 0.01 * kernel
    weights = np.array([1, 0.5, 0, 2, 1, 3, 0.25], np.float32)

    def f(inputs, kernel, block_size):
        return scalar(member)(labels, inputs, kernel, weights=weights, block_size=block_size)

    @partial(quick, static_argnums=2)
    def both(inputs, kernel, block_size):
        each = per_example(member)(labels, inputs, kernel, block_size=block_size)
        return jax.value_and_grad(f, (0, 1))(inputs, kernel, block_size), each

    truth, each = both(inputs, kernel, 7)
    for block_size in (None, 1, 3, 6, 8):
        got, by_example = both(inputs, kernel, block_size)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, truth
        )
        np.testing.assert_allclose(by_example, each, rtol=1e-6)


def test_the_default_block():
    def size(examples, features, classes):
        return blocking.cut(examples, (features, classes), None).size

    assert size(4096, 256, 65536) == 512
    assert size(8192, 4096, 128256) == 2048  # half the features: the kernel's gradient is large
    assert size(100, 64, 1000) == 100
    assert size(2048, 128, 10_000_000) == 64
    assert blocking.cut(0, (3, 5), None) == (1, 0)


@pytest.mark.parametrize("member", MEMBERS)
def test_no_examples(member):
    labels, inputs, kernel = operands(member, examples=0)
    value, gradients = jax.value_and_grad(scalar(member), (1, 2))(labels, inputs, kernel)
    assert float(value) == 0
    assert not any(np.any(g) for g in gradients)
    assert per_example(member)(labels, inputs, kernel).shape == (0,)


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.one_in(2)
def test_a_masked_class_and_ragged_blocks(member):
    """A bias of -inf rules class 0 out; examples that fill up the last block meet it as well."""
    labels, inputs, kernel = operands(member, classes=4)
    if labels.dtype.kind == "i":
        labels = np.where(labels == 0, 1, labels)
    else:
        labels[:, 0] = 0
    bias = np.array([-inf, 0.1, 0.2, 0.3], np.float32)

    def f(inputs, kernel, block_size):
        return scalar(member)(labels, inputs, kernel, bias=bias, block_size=block_size)

    gradients = quick(jax.value_and_grad(f, (0, 1)), static_argnums=2)
    truth, got = gradients(inputs, kernel, 7), gradients(inputs, kernel, 3)
    assert np.isfinite(truth[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, truth)
    assert not np.any(got[1][1][:, 0])


@pytest.mark.parametrize("form", [scalar, per_example])
@pytest.mark.parametrize("member", ["sparse_softmax", "softmax"])
@pytest.mark.one_in(5)
def test_a_kernel_that_rules_a_class_out_and_ragged_blocks(member, form):
    """Places that fill up the last block are 0 @ kernel, which is NaN: none reaches a sum."""
    inputs = np.float32([[1, 1], [2, 1], [1, 3]])
    kernel = np.float32([[1, 2, -inf], [0, 1, -inf]])
    labels = np.array([0, 1, 0])
    if member == "softmax":
        labels = np.eye(3, dtype=np.float32)[labels]

    def total(kernel, bias, block_size):
        each = form(member)(labels, inputs, kernel, bias=bias, block_size=block_size)
        return jnp.sum(each)

    def stored(kernel, bias):
        logits = inputs @ kernel + bias[None]
        return getattr(losses, f"{member}_cross_entropy")(
            labels, logits, reduction="weighted_mean" if form is scalar else "weighted_sum"
        )

    bias = np.zeros(3, np.float32)
    truth = jax.value_and_grad(stored, (0, 1))(kernel, bias)
    for block_size in (1, 2, 3, 5):
        gradients = quick(jax.value_and_grad(total, (0, 1)), static_argnums=2)
        got = gradients(kernel, bias, block_size)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, truth
        )


@pytest.mark.parametrize("form", [scalar, per_example])
@pytest.mark.one_in(2)
def test_no_ids_and_no_features(form):
    none = np.zeros((2, 0), int)
    value = form("sparse_sigmoid")(none, np.ones((2, 3), np.float32), np.eye(3, dtype=np.float32))
    np.testing.assert_allclose(value, np.log1p(np.e) + 2 * np.log1p(np.e), rtol=1e-6)
    inputs, kernel = np.ones((2, 0), np.float32), np.ones((0, 3), np.float32)
    for member in MEMBERS:
        labels, *_ = operands(member, examples=2, classes=3)
        f = form(member)
        total = jax.value_and_grad(
            lambda *a, f=f, y=labels: jnp.sum(f(y, *a[:2], bias=a[2])), (0, 1, 2)
        )
        value, slopes = quick(total)(inputs, kernel, np.zeros(3, np.float32))
        assert np.isfinite(value)
        assert [s.shape for s in slopes] == [(2, 0), (0, 3), (3,)]
        assert np.any(slopes[2])


# Dropped examples.


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize(
    "reduction", [*(pytest.param(r, marks=pytest.mark.long) for r in ("none", "weighted_sum")),
                  "weighted_mean"],
)  # fmt: skip
@pytest.mark.one_in(5)
def test_weight_0_takes_a_nonfinite_example_out(member, reduction):
    labels, inputs, kernel = operands(member)
    weights = np.array([1, 0.5, 0, 2, 1, 3, 0], np.float32)
    broken_inputs = inputs.at[2].set(nan).at[6, 0].set(inf)
    broken_labels = labels.copy()
    broken_labels[2] = 99 if labels.dtype.kind == "i" else nan

    def total(labels, inputs, kernel, weights):
        each = scalar(member)(
            labels, inputs, kernel, weights=weights, reduction=reduction, block_size=3
        )
        return jnp.sum(each)

    @partial(quick, static_argnums=0)
    def everything(labels_are_broken, inputs):
        labels_now = broken_labels if labels_are_broken else labels
        f = partial(total, labels_now)
        return [
            jax.value_and_grad(f, (0, 1))(inputs, kernel, weights),
            jax.jvp(jax.grad(f, (0, 1)), (inputs, kernel, weights),
                    (jnp.ones_like(inputs), kernel, weights))[1],
            jax.vjp(lambda a, b: jax.grad(f, (0, 1))(a, b, weights), inputs, kernel)[1](
                (jnp.ones_like(inputs), kernel)),
        ], jax.grad(f, 2)(inputs, kernel, weights)  # fmt: skip

    got, by_weight = everything(True, broken_inputs)
    truth, _ = everything(False, inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, truth)
    assert not np.any(got[0][1][0][jnp.array([2, 6])])
    assert np.isfinite(by_weight).all()


@pytest.mark.parametrize("member", ["sparse_softmax", "sparse_sigmoid"])
@pytest.mark.one_in(2)
def test_an_id_out_of_range_is_loud_and_local(member):
    labels, inputs, kernel = operands(member)
    labels[3] = 5
    each = per_example(member)(labels, inputs, kernel, block_size=2)
    gradient = jax.grad(
        lambda x: per_example(member)(labels, x, kernel, block_size=2).sum()
    )(inputs)  # fmt: skip
    bad = np.arange(7) == 3
    np.testing.assert_array_equal(np.isnan(each), bad)
    np.testing.assert_array_equal(np.isnan(gradient).all(1), bad)
    np.testing.assert_array_equal(np.isnan(gradient).any(1), bad)
    assert np.isnan(scalar(member)(labels, inputs, kernel))
