"""Lists of the ids of positive classes: of every length and dtype, at infinite logits."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent

inf, nan = np.inf, np.nan


def dense_of(lists, classes):
    return (lists[..., None] == np.arange(classes)).any(-2).astype(np.float32)


@pytest.mark.parametrize("count", [0, 1, 5, 64, 65, 130])
@pytest.mark.one_in(8)
def test_lists_of_every_length(count):
    """Short ones are compared id by id, long ones in a loop."""
    rng = np.random.default_rng(count)
    lists = rng.integers(-3, 11, size=(4, count))
    x = rng.standard_normal((4, 11)).astype(np.float32)
    q = rng.uniform(0.5, 2, 11).astype(np.float32)

    def ids(x, q):
        return jxent.sparse_sigmoid_cross_entropy_with_logits(
            labels=lists, logits=x, pos_weight=q
        ).sum()

    def dense(x, q):
        return jxent.weighted_cross_entropy_with_logits(
            labels=dense_of(lists, 11), logits=x, pos_weight=q
        ).sum()

    got, truth = (jax.value_and_grad(f, (0, 1))(x, q) for f in (ids, dense))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, truth)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint32, np.int64])
def test_lists_of_every_integer_dtype(dtype):
    with jax.enable_x64(True):
        top = min(int(np.iinfo(dtype).max), 2**32 + 1)
        lists = np.array([[1, 0], [2, top]], dtype)
        loss = jxent.sparse_sigmoid_cross_entropy_with_logits(labels=lists, logits=np.zeros((2, 3)))
        np.testing.assert_array_equal(np.isnan(loss), [False, True])


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.one_in(2)
def test_lists_at_infinite_logits(label):
    """The limit, and a finite gradient."""
    lists = np.array([[0]] if label else [[-1]])
    for x, expected in ((inf, 0 if label else inf), (-inf, inf if label else 0)):
        logits = jnp.array([[x]])
        for q in (1.0, 2.0, jnp.array(2.0)):
            f = partial(jxent.sparse_sigmoid_cross_entropy_with_logits, labels=lists, pos_weight=q)
            assert f(logits=logits)[0] == expected
            assert np.isfinite(jax.grad(lambda x, f=f: f(logits=x)[0])(logits)).all()


def test_a_positive_class_keeps_its_digits():
    """softplus(-x), not softplus(x) - x: that is 0 from x = 17 on in float32."""
    loss = jxent.sparse_sigmoid_cross_entropy_with_logits(labels=[[0]], logits=jnp.array([[30.0]]))
    np.testing.assert_allclose(loss, np.exp(-30.0), rtol=1e-6)
