"""How often a program is traced, and that it gives the same under `jit` and without."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from jxent import losses
from jxent._src.loss_fns import sigmoid, softmax
from jxent._src.numerics import softmax_rows
from tests.catalog import CASES
from tests.reference import tolerance

SHAPE = (4, 7)


def drawn(seed):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal(SHAPE).astype(np.float32)
    return logits, rng.integers(SHAPE[1], size=SHAPE[0]), rng.uniform(size=4).astype(np.float32)


@pytest.fixture
def _traced_once(monkeypatch):
    """The mathematics of a loss may be traced once from here on."""
    jax.clear_caches()
    chex.clear_trace_counter()
    for loss in (softmax.SparseSoftmax, sigmoid.Sigmoid):
        counted = chex.assert_max_traces(loss.losses, n=1)
        monkeypatch.setattr(loss, "losses", lambda self, *data, f=counted: f(self, *data))
    yield
    jax.clear_caches()


def test_a_gradient_traces_no_statistics_again(monkeypatch):
    """Whatever the value traced for a platform is there for its gradient."""
    statistics, traced = softmax_rows.dense_label_residuals, []
    plain = statistics.reference

    def counted(*arguments):
        traced.append(1)
        return plain(*arguments)

    monkeypatch.setattr(statistics, "reference", counted)

    def times(function):
        jax.clear_caches()
        traced.clear()
        jax.jit(function).trace(jnp.ones(SHAPE), jnp.ones(SHAPE))
        return len(traced)

    def loss(x, z):
        return losses.softmax_cross_entropy(z, x)

    assert times(jax.value_and_grad(loss)) == times(loss) > 0


@pytest.mark.usefixtures("_traced_once")
def test_other_values_are_not_traced_again():
    for seed in range(3):
        logits, ids, _ = drawn(seed)
        jxent.sparse_softmax_cross_entropy_with_logits(labels=ids, logits=logits)


@pytest.mark.usefixtures("_traced_once")
def test_other_weights_are_not_traced_again():
    for seed in range(3):
        logits, ids, weights = drawn(seed)
        losses.sparse_softmax_cross_entropy(ids, logits, weights)


@pytest.mark.usefixtures("_traced_once")
def test_weights_that_are_numbers_are_not_traced_again():
    for number in (1.0, 2.0, 0.5):
        losses.sigmoid_cross_entropy(np.ones(SHAPE, np.float32), drawn(0)[0], number)


@pytest.mark.usefixtures("_traced_once")
def test_another_option_is_traced():
    """So that the tests above can fail."""
    logits, ids, _ = drawn(0)
    loss = jxent.sparse_softmax_cross_entropy_with_logits
    loss(labels=ids, logits=logits, z_loss=0.1)
    with pytest.raises(AssertionError, match="traced"):
        loss(labels=ids, logits=logits, z_loss=0.2)


class TestVariants(chex.TestCase):
    """Under `jit`, and without."""

    @chex.variants(with_jit=True, without_jit=True)
    def test_each_loss_gives_the_same(self):
        for case in CASES[::7]:
            arrays = case.arrays(jnp.dtype("float32"))
            got = self.variant(case.loss)(**arrays)
            wanted = jax.tree.map(jnp.float32, case.plain(**arrays))
            allowed = tolerance("float32", case.terms)
            chex.assert_trees_all_close(got, wanted, rtol=allowed, atol=allowed)
