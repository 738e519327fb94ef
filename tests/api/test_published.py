"""Numbers that others have published for these losses."""

import jax
import numpy as np
import pytest

import jxent


@pytest.mark.parametrize(
    ("pos_weight", "tensorflow"),
    [
        # TensorFlow's documentation of tf.nn.weighted_cross_entropy_with_logits, float32.
        (1.5, [0.30211994, 0.88049585, 4.5776367e-05]),
        (0.5, [0.100706644, 0.508297503, 4.57763672e-05]),
    ],
)
def test_tensorflow_weighted(pos_weight, tensorflow):
    loss = jxent.weighted_cross_entropy_with_logits(
        labels=[1.0, 0.5, 0.0], logits=[1.5, -0.1, -10.0], pos_weight=pos_weight
    )
    np.testing.assert_allclose(loss[:2], tensorflow[:2], rtol=3e-7)
    # log(1 + e^-10) is 4.5398899e-05. TensorFlow's 4.5776367e-05 has lost its digits to
    # max(x, 0) - x z + ..., by 0.8 %.
    np.testing.assert_allclose(loss[2], np.log1p(np.exp(-10.0)), rtol=3e-7)
    assert abs(float(loss[2]) - tensorflow[2]) > 3e-7


def test_large_logits_overflow_nothing():
    """The example by which TensorFlow's unprotected formula is known to overflow to inf."""
    logits = [[1.0, -810.0, 20.0], [11.0, 12.0, 14.0], [12.0, 21.0, 23.0]]
    published = [
        [3.13261688e-01, 0, 20],
        [1.10000167e01, 6.14419348e-06, 1.40000008e01],
        [1.20000061e01, 21, 1.02618802e-10],
    ]
    with jax.enable_x64(True):
        loss = jxent.sigmoid_cross_entropy_with_logits(labels=np.eye(3), logits=np.array(logits))
        assert loss.dtype == np.float64
        # As far as nine printed digits go, and TensorFlow's own: the last number is
        # log1p(e^-23) = 1.026187963e-10, and the published one is log(1 + tiny).
        np.testing.assert_allclose(loss, published, rtol=6e-8)
        np.testing.assert_allclose(loss[2, 2], np.log1p(np.exp(-23.0)), rtol=1e-15)


LOGITS = [[12.0, 3, 2], [3, 10, 1], [1, 2, 5], [4, 6.5, 1.2], [3, 6, 1]]
IDS = [0, 1, 2, 0, 1]


def test_dense_and_ids_agree_with_log_softmax_written_out():
    x = np.array(LOGITS)
    written_out = -np.log(np.exp(x) / np.exp(x).sum(1, keepdims=True))[np.arange(5), IDS]
    ids = jxent.sparse_softmax_cross_entropy_with_logits(labels=IDS, logits=LOGITS)
    dense = jxent.softmax_cross_entropy_with_logits(labels=np.eye(3)[IDS].tolist(), logits=LOGITS)
    np.testing.assert_allclose(ids, written_out, rtol=1e-5)
    np.testing.assert_allclose(dense, ids, rtol=1e-6)
    scalar = jxent.losses.sparse_softmax_cross_entropy(IDS, LOGITS)
    np.testing.assert_allclose(scalar, written_out.mean(), rtol=1e-6)
