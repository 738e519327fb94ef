"""Log-probabilities of lists of ids: as of each id by itself, with its digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from tests.loss_fns.softmax_statistics import LINEAR, WITH_LOGITS
from tests.reference import WIDE, ulps

RNG = np.random.default_rng(0)
LOGITS = (3 * RNG.standard_normal((5, 7))).astype(np.float32)
IDS = RNG.integers(0, 7, (5, 4))


def log_probs(logits, ids, **options):
    return WITH_LOGITS(labels=ids, logits=logits, **options).log_prob


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda", "reference"])
@pytest.mark.parametrize("number", [1, 5, 20, 70])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.one_in(8)
def test_each_id_of_a_list_is_as_by_itself(platform, number, dtype):
    logits, ids = jnp.asarray(LOGITS, dtype), RNG.integers(0, 7, (5, number))
    cotangent = RNG.standard_normal(number)
    options = {"temperature": 1.3}
    with jxent.assume_platform(platform):
        found, pull = jax.vjp(lambda x: log_probs(x, ids, **options), logits)
        each = [
            jax.vjp(lambda x, k=k: log_probs(x, ids[:, k], **options), logits)
            for k in range(number)
        ]
        (gradient,) = pull(jnp.broadcast_to(cotangent, found.shape).astype(found.dtype))
        alone = sum(
            np.asarray(pull(jnp.full(5, c, found.dtype))[0], np.float64)
            for c, (_, pull) in zip(cotangent, each, strict=True)
        )
    assert found.shape == (5, number)
    np.testing.assert_allclose(found, np.stack([value for value, _ in each], -1), rtol=1e-6)
    tolerance = {"float32": 1e-5, "bfloat16": 0.02}[dtype] * number
    np.testing.assert_allclose(np.asarray(gradient, np.float64), alone, atol=tolerance)


def test_an_id_that_is_too_large_is_nan_in_its_place_alone():
    ids = np.array([[0, 7, -1], [1, 2, -5]] + [[0, 1, 2]] * 3)
    found = np.asarray(log_probs(LOGITS, ids))
    expected = np.zeros((5, 3), bool)
    expected[0, 1] = True
    assert (np.isnan(found) == expected).all()
    assert found[0, 2] == found[1, 2] == 0
    gradient = jax.grad(lambda x: log_probs(x, ids).sum())(jnp.asarray(LOGITS))
    assert np.isnan(gradient[0]).all()
    assert np.isfinite(gradient[1:]).all()
    narrow = np.array([[255, 3]] * 5, np.uint8)
    assert np.isnan(log_probs(LOGITS, narrow)).tolist() == [[True, False]] * 5


def test_padding_has_no_derivative():
    gradient = jax.grad(lambda x: log_probs(x, np.full((5, 3), -1)).sum())(jnp.asarray(LOGITS))
    assert not gradient.any()
    assert log_probs(LOGITS, np.zeros((5, 0), int)).shape == (5, 0)


def test_lists_come_last_whatever_the_axis_of_the_classes():
    logits = np.moveaxis(LOGITS, -1, 0)
    np.testing.assert_array_equal(log_probs(logits, IDS, axis=0), log_probs(LOGITS, IDS))


@pytest.mark.parametrize("sizes", [{}, {"block_size": 2}, {"class_block_size": 3}], ids=str)
def test_of_a_projection(sizes):
    kernel = np.eye(7, dtype=np.float32)
    mask = np.array([True, False, True, True, True])

    def of_projection(x):
        found = LINEAR(labels=IDS, inputs=x, kernel=kernel, mask=mask, **sizes)
        return found.log_prob

    found, pull = jax.vjp(of_projection, jnp.asarray(LOGITS))
    wanted, its_pull = jax.vjp(lambda x: log_probs(x, IDS, mask=mask), jnp.asarray(LOGITS))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert not found[1].any()
    cotangent = RNG.standard_normal(IDS.shape).astype(np.float32)
    np.testing.assert_allclose(pull(cotangent)[0], its_pull(cotangent)[0], atol=1e-6)


@pytest.mark.parametrize("lead", [1, 5, 10, 20, 40])
def test_a_confident_class_keeps_its_digits(lead):
    """Its log-probability is -exp(-lead), and its derivative to its own logit exp(-lead).

    Both with the error of the rounded differences, half an ulp of the lead.
    """
    rest = RNG.standard_normal((60, 6)).astype(np.float32)
    logits = np.concatenate([np.full((60, 1), lead, np.float32), rest], -1)
    ids = np.tile(np.array([0, 3]), (60, 1))
    x = logits.astype(WIDE)
    sums = np.exp(x[:, 1:] - x[:, :1]).sum(-1)
    found, pull = jax.vjp(lambda x: log_probs(x, ids), jnp.asarray(logits))
    assert ulps(found[:, 0], -np.log1p(sums), np.float32).max() <= 4 + lead / 3
    (gradient,) = pull(jnp.asarray(np.tile(np.float32([1, 0]), (60, 1))))
    assert ulps(gradient[:, 0], sums / (1 + sums), np.float32).max() <= 8 + lead / 3


@pytest.mark.parametrize("labels", [IDS[:4], IDS[None], np.zeros((5, 7, 2), int)])
def test_other_shapes_are_refused(labels):
    with pytest.raises(ValueError, match="labels must"):
        log_probs(LOGITS, labels)
