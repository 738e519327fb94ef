"""Weights, smoothing and reductions of `jxent.losses`."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from jxent import losses
from jxent.losses import Reduction
from tests.compile_options import quick

inf, nan = np.inf, np.nan
X = np.array([[0.3, -1.2, 2.0], [1.0, 0.1, -0.4], [-2.0, 0.7, 0.9], [0.0, 0.2, 0.5]], np.float32)
Z = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 1], [1, 1, 0]], np.float32)
Y = np.array([2, 0, 1, 1])


def sigmoid(x, w=1.0, **options):
    return losses.sigmoid_cross_entropy(Z, x, w, **options)


def softmax(x, w=1.0, **options):
    return losses.softmax_cross_entropy(Z, x, w, **options)


def sparse(x, w=1.0, **options):
    return losses.sparse_softmax_cross_entropy(Y, x, w, **options)


EACH = pytest.mark.parametrize("f", [sigmoid, softmax, sparse])


def weights_like(f, rng=0):
    """One weight an element of the losses, the first of them 0."""
    shape = f(X, reduction="none").shape
    w = np.random.default_rng(rng).uniform(0.5, 2, shape).astype(np.float32)
    w[0] = 0
    return w


@EACH
@pytest.mark.parametrize("reduction", Reduction)
@pytest.mark.one_in(8)
def test_reductions(f, reduction):
    each = np.float64(f(X, reduction="none"))
    w = weights_like(f)
    expected = {
        "none": w * each,
        "weighted_sum": np.sum(w * each),
        "weighted_mean": np.sum(w * each) / np.sum(w),
        "weighted_sum_over_batch_size": np.sum(w * each) / each.size,
        "weighted_sum_by_nonzero_weights": np.sum(w * each) / np.count_nonzero(w),
    }[reduction.value]
    for spelled in (reduction, reduction.value):
        np.testing.assert_allclose(f(X, w, reduction=spelled), expected, rtol=1e-6)
    again = losses.compute_weighted_loss(each.astype(np.float32), w, reduction=reduction)
    np.testing.assert_allclose(again, expected, rtol=1e-6)


def test_the_older_name_of_the_default():
    assert Reduction.SUM_OVER_NONZERO_WEIGHTS is Reduction.SUM_BY_NONZERO_WEIGHTS
    assert float(sigmoid(X)) == float(sigmoid(X, reduction="weighted_sum_by_nonzero_weights"))


@EACH
@pytest.mark.parametrize("reduction", Reduction)
@pytest.mark.one_in(21)
def test_a_weight_broadcasts_as_its_copies_would(f, reduction):
    shape = f(X, reduction="none").shape
    candidates: list[Any] = [np.float32(0.7), np.full((1,) * len(shape), 0.7, np.float32)]
    column = np.array([0, 1, 2, 0.5], np.float32).reshape(4, *[1] * (len(shape) - 1))
    candidates.append(column)
    if len(shape) == 2:
        candidates.append(np.array([[0, 2, 0.5]], np.float32))
    for w in candidates:
        full = np.broadcast_to(w, shape)
        np.testing.assert_allclose(
            f(X, w, reduction=reduction), f(X, full, reduction=reduction), rtol=1e-6
        )


@pytest.mark.parametrize("f", [softmax, sparse])
def test_a_trailing_one_weighs_examples(f):
    w = np.array([0, 1, 2, 0.5], np.float32)
    assert float(f(X, w[:, None])) == float(f(X, w))
    each = f(X, reduction="none")
    assert float(losses.compute_weighted_loss(each, w[:, None])) == float(
        losses.compute_weighted_loss(each, w)
    )


@EACH
@pytest.mark.parametrize("number", [2.5, 1, -0.5, np.float32(3.0), 0, 0.0])
@pytest.mark.one_in(24)
def test_a_python_number_is_an_array_of_it(f, number):
    array = jnp.full((1, 1) if f is sigmoid else (1,), number, jnp.float32)
    np.testing.assert_allclose(f(X, number), f(X, array), rtol=1e-6)
    np.testing.assert_allclose(
        jax.grad(lambda x: f(x, number))(X), jax.grad(lambda x: f(x, array))(X), rtol=1e-5
    )


@EACH
@pytest.mark.parametrize(
    ("invalid", "reduction"),
    [(nan, reduction) for reduction in Reduction] + [(inf, "weighted_mean"), (-inf, "none")],
)
@pytest.mark.one_in(21)
def test_weight_0_takes_the_element_out(f, reduction, invalid):
    """Loss and every derivative are those of the other elements, whatever the dropped one holds."""
    w = weights_like(f)
    nonfinite = X.copy()
    nonfinite[0] = invalid

    def total(x, w):
        return jnp.sum(f(x, w, reduction=reduction))

    @quick
    def everything(x):
        by_logits = (total, jax.grad(total), jax.hessian(total), jax.jacrev(jax.grad(total)))
        by_weights = (jax.grad(total, 1), jax.jacfwd(jax.grad(total, 1)))
        return [g(x, w) for g in by_logits], [g(x, w) for g in by_weights]

    (by_logits, by_weights), (expected, _) = everything(nonfinite), everything(X)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), by_logits, expected)
    assert np.all(by_logits[1][0] == 0)
    assert all(np.isfinite(leaf).all() for leaf in by_weights)
    if np.isnan(invalid):  # A broken tangent of a dropped element does not matter either.
        tangent = np.ones_like(X)
        tangent[0] = nan
        assert np.isfinite(jax.jvp(lambda x: total(x, w), (nonfinite,), (tangent,))[1])


@EACH
@pytest.mark.one_in(3)
def test_weight_0_has_the_loss_as_its_gradient(f):
    """Learned weights start at 0; the slope of their slope is the gradient of the loss."""
    w = weights_like(f)
    each = f(X, reduction="none")
    slope = jax.grad(lambda w: f(X, w, reduction="weighted_sum"))(w)
    np.testing.assert_allclose(slope, each, rtol=1e-6)
    mixed = jax.jacfwd(jax.grad(lambda x, w: f(x, w, reduction="weighted_sum")), 1)(X, w)
    mixed = np.sum(mixed, axis=tuple(range(2, mixed.ndim)))  # all weights raised together
    expected = jax.grad(lambda x: f(x, reduction="weighted_sum"))(X)
    np.testing.assert_allclose(mixed, expected, rtol=1e-5)


@EACH
@pytest.mark.one_in(2)
def test_a_weight_of_an_infinite_loss_has_gradient_0(f):
    nonfinite = X.copy()
    nonfinite[1] = [-inf, inf, 0] if f is sparse else [inf, -inf, 0]
    w = np.ones_like(weights_like(f))
    assert np.isinf(f(nonfinite, w))
    assert np.isfinite(jax.grad(lambda w: f(nonfinite, w, reduction="weighted_sum"))(w)).all()
    # Forward mode with a tangent of 0 for the weights: no 0 times inf.
    change = jax.jvp(f, (nonfinite, w), (np.ones_like(X), np.zeros_like(w)))[1]
    assert np.isfinite(change)


@EACH
@pytest.mark.parametrize("reduction", [r for r in Reduction if r is not Reduction.NONE])
@pytest.mark.one_in(15)
def test_nothing_left_is_0(f, reduction):
    w = np.zeros_like(weights_like(f))
    assert float(f(X, w, reduction=reduction)) == 0
    assert not np.any(jax.grad(lambda x: f(x, w, reduction=reduction))(X))
    assert np.isfinite(jax.grad(lambda w: f(X, w, reduction=reduction))(w)).all()
    assert float(losses.compute_weighted_loss(np.zeros((0,), np.float32), reduction=reduction)) == 0
    empty = np.zeros((0, 3), np.float32)
    assert float(losses.sigmoid_cross_entropy(empty, empty, reduction=reduction)) == 0
    ids = np.zeros(0, int)
    assert float(losses.sparse_softmax_cross_entropy(ids, empty, reduction=reduction)) == 0


def test_padding_is_ignored_through_weights():
    labels = np.array([2, 0, -1, 100])
    full = losses.sparse_softmax_cross_entropy(labels[:2], X[:2])

    def loss(x):
        return losses.sparse_softmax_cross_entropy(labels, x, weights=(labels >= 0) & (labels < 3))

    np.testing.assert_allclose(loss(X), full, rtol=1e-6)
    gradient = jax.grad(loss)(X)
    assert np.isfinite(gradient).all()
    assert not np.any(gradient[2:])


def test_binary_smoothing():
    z = Z * 0.8 + 0.1
    expected = jxent.sigmoid_cross_entropy_with_logits(labels=z, logits=X)
    np.testing.assert_allclose(
        sigmoid(X, label_smoothing=0.2, reduction="none"), expected, rtol=1e-6
    )


def test_multi_class_smoothing_of_ids_is_that_of_one_hot_labels():
    onehot = np.eye(3, dtype=np.float32)[Y]
    expected = jxent.softmax_cross_entropy_with_logits(labels=onehot * 0.7 + 0.1, logits=X)
    options = {"label_smoothing": 0.3, "reduction": "none"}
    np.testing.assert_allclose(sparse(X, **options), expected, rtol=1e-6)
    np.testing.assert_allclose(
        losses.softmax_cross_entropy(onehot, X, **options), expected, rtol=1e-6
    )
    np.testing.assert_allclose(
        jxent.sparse_softmax_cross_entropy_with_logits(labels=Y, logits=X, label_smoothing=0.3),
        expected,
        rtol=1e-6,
    )


def test_smoothing_ids_builds_no_one_hot_array():
    """Neither in the program's inputs and constants nor as a buffer that reverse mode keeps."""
    x = jnp.zeros((64, 4096))
    y = jnp.zeros(64, jnp.int32)
    f = jax.jit(lambda x: losses.sparse_softmax_cross_entropy(y, x, label_smoothing=0.1))
    _, pullback = jax.vjp(f, x)
    assert sum(np.size(leaf) == x.size for leaf in jax.tree.leaves(pullback)) == 1


def test_pos_weight_reaches_the_scalar():
    for q in (2.0, np.array([0.5, 1, 4], np.float32)):
        expected = jxent.weighted_cross_entropy_with_logits(labels=Z, logits=X, pos_weight=q).mean()
        np.testing.assert_allclose(sigmoid(X, pos_weight=q), expected, rtol=1e-6)


def test_labels_are_cast():
    for dtype in (np.int8, np.int32, bool, np.float32, jnp.bfloat16):
        z = jnp.asarray(Z, dtype)
        np.testing.assert_allclose(losses.sigmoid_cross_entropy(z, X), sigmoid(X), rtol=1e-6)
        np.testing.assert_allclose(losses.softmax_cross_entropy(z, X), softmax(X), rtol=1e-6)
    ids = losses.sparse_softmax_cross_entropy(Y[:, None], X)
    assert float(ids) == float(sparse(X))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_losses_of_half_precision_are_float32(dtype):
    x = jnp.full((1000, 3), 0.25, dtype)
    z = jnp.zeros((1000, 3), dtype)
    total = losses.sigmoid_cross_entropy(z, x, reduction="weighted_sum")
    expected = 3000 * np.log1p(np.exp(0.25))
    assert total.dtype == jnp.float32
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    each = losses.sigmoid_cross_entropy(z, x, reduction="none")
    assert each.dtype == jnp.float32
    np.testing.assert_allclose(each, np.log1p(np.exp(0.25)), rtol=1e-6)
    each = jnp.full(1000, 0.1, dtype)
    mean = losses.compute_weighted_loss(each)
    assert mean.dtype == jnp.float32
    np.testing.assert_allclose(mean, np.float32(each[0]), rtol=1e-6)


@pytest.mark.optimized
@pytest.mark.parametrize("reduction", [r for r in Reduction if r not in ("none", "weighted_sum")])
def test_the_mean_of_ones_is_1(reduction):
    """The rounded inverse of their number, multiplied by it, would not be."""
    mean = jax.jit(partial(losses.compute_weighted_loss, reduction=reduction))
    assert [mean(jnp.ones(n)) for n in (41, 47, 55)] == [1, 1, 1]


def test_compute_weighted_loss_drops_values():
    values = jnp.array([1.0, nan, inf, 3.0])
    w = jnp.array([1.0, 0.0, 0.0, 2.0])
    assert float(losses.compute_weighted_loss(values, w)) == 3.5
    gradient = jax.grad(losses.compute_weighted_loss, (0, 1))(values, w)
    np.testing.assert_array_equal(gradient[0], [0.5, 0, 0, 1])
    assert np.isfinite(gradient[1]).all()


def test_scope_is_in_the_program():
    text = jax.jit(lambda x: sigmoid(x, scope="my_loss")).lower(X).as_text(debug_info=True)
    assert "my_loss" in text


@pytest.mark.parametrize("reduction", [r.value for r in losses.Reduction if r.value != "none"])
def test_more_elements_than_int32_counts(reduction):
    logits = jax.ShapeDtypeStruct((2**16, 2**16), jnp.float32)
    loss = partial(losses.sigmoid_cross_entropy, reduction=reduction)
    assert jax.eval_shape(loss, logits, logits).shape == ()
    assert jax.eval_shape(loss, logits, logits, jnp.ones((2**16, 1))).shape == ()
