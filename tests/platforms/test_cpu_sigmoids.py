"""Sums of sigmoid losses on CPU: infinite logits, lists of ids, any label."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from jxent import losses
from tests import reference
from tests.platforms.common import value_and_gradient

pytestmark = pytest.mark.optimized


def test_sums_of_sigmoid_losses_with_infinite_logits():
    z = jnp.array([[1.0, 0.0, 0.5], [0.3, 0.2, 1.0]])
    agree = jnp.array([[np.inf, -np.inf, 0.5], [3.0, -2.0, 80.0]])
    each = jxent.sigmoid_cross_entropy_with_logits(labels=z, logits=agree)
    for reduction in ("weighted_sum", "weighted_mean"):
        total = losses.sigmoid_cross_entropy(z, agree, reduction=reduction)
        wanted = each.sum() if reduction == "weighted_sum" else each.mean()
        np.testing.assert_allclose(total, wanted, rtol=1e-6)
    assert losses.sigmoid_cross_entropy(z, -agree) == np.inf
    assert np.isnan(losses.sigmoid_cross_entropy(z, agree.at[0, 0].set(np.nan)))


@pytest.mark.parametrize("count", [2, 5])  # of ids: compared, and scattered
@pytest.mark.parametrize(
    "options",
    [{}, {"pos_weight": 3.0}, {"pos_weight": 0.0}, {"label_smoothing": 1e-5, "pos_weight": 2.0},
     {"focusing": 0.7, "negative_focusing": 2.0}],
    ids=str,
)  # fmt: skip
@pytest.mark.one_in(8)
def test_losses_of_lists_are_those_of_dense_labels(options, count):
    """Finite rows, and one with infinite logits, which goes the exact way; ids out of range."""
    rng = np.random.default_rng(2)
    x = rng.uniform(-60, 60, (6, 70)).astype(np.float32)
    x[1, :3] = np.inf, -np.inf, np.inf
    ids = rng.integers(-1, 70, (6, count))
    ids[2] = -1
    ids[3] = 5  # once, however often
    ids[1, :2] = 0, 2  # agrees
    labels = (ids[..., None] == np.arange(70)).any(1).astype(np.float32)

    def of_lists(x, ids=ids):
        return losses.sparse_sigmoid_cross_entropy(ids, x, reduction="none", **options)

    def of_labels(x):
        smoothing = options.get("label_smoothing", 0)
        other = {k: v for k, v in options.items() if k != "label_smoothing"}
        with jax.enable_x64(True):  # 1 - s / 2 is no float32
            z = jnp.float64(labels) * (1 - smoothing) + smoothing / 2
            each = losses.sigmoid_cross_entropy(z, jnp.float64(x), reduction="none", **other)
            return each.sum(-1).astype(jnp.float32)

    value, slope = value_and_gradient(of_lists, x)
    wanted, wanted_slope = value_and_gradient(of_labels, x)
    np.testing.assert_allclose(value, wanted, rtol=3e-6)
    np.testing.assert_allclose(slope, wanted_slope, rtol=1e-5, atol=1e-37)
    ids[4, 0] = 70
    invalid = np.arange(6) == 4
    np.testing.assert_array_equal(np.isnan(of_lists(x, ids)), invalid)


@pytest.mark.parametrize("pos_weight", [1.0, np.float32(3)])
def test_sums_of_sigmoid_losses_of_any_label(pos_weight):
    """Labels outside [0, 1] follow the formula too, in the form of few operations."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((6, 7)).astype(np.float32) * 20
    z = rng.uniform(-1, 2, (6, 7)).astype(np.float32)
    value, slope, _, _ = reference.wide_sigmoid(z, x, pos_weight)
    got, gradient = jax.value_and_grad(losses.sigmoid_cross_entropy, 1)(
        z, x, reduction="weighted_sum", pos_weight=pos_weight
    )
    np.testing.assert_allclose(got, np.float64(value.sum()), rtol=1e-5)
    np.testing.assert_allclose(gradient, np.float64(slope), rtol=1e-5, atol=1e-6)
