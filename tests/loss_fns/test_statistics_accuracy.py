"""What a softmax predicts: its digits, and its derivatives to a temperature."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from tests.loss_fns.softmax_statistics import FIELDS, IDENTITY, LINEAR, WITH_LOGITS
from tests.reference import ulps, wide_entropy

inf, nan = np.inf, np.nan


# Digits, against long double.


def confident_rows(spread, rows=64, classes=33, seed=0):
    """One class ahead of others by 0 to `spread`."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, classes))
    x[np.arange(rows), rng.integers(classes, size=rows)] += np.linspace(0, spread, rows)
    return np.asarray(x, np.float32), rng.standard_normal((rows, classes)).astype(np.float32)


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda", "reference"])
@pytest.mark.parametrize("spread", [5.0, 80.0])
@pytest.mark.one_in(9)
def test_the_entropy_keeps_its_digits(platform, spread):
    """Down to 1e-20; from log-softmax none are left where a class leads by 20."""
    x, t = confident_rows(spread)

    def entropy(x):
        return WITH_LOGITS(labels=np.zeros(len(x), int), logits=x).entropy

    def program(x, t):
        gradient = jax.grad(lambda x: entropy(x).sum())
        return entropy(x), *jax.jvp(gradient, (x,), (t,))

    with jxent.assume_platform(platform):
        value, gradient, curve = jax.jit(program)(x, t)
    right = wide_entropy(x, t)
    # A difference of logits is rounded: an error of |gap| units in each term.
    assert np.max(ulps(value, right[0], np.float32)) <= 8 + spread / 2
    for got, wanted, size in ((gradient, right[1], right[1]), (curve, right[2], right[3])):
        largest = np.abs(size).max(-1, keepdims=True)
        assert np.max(ulps(got, wanted, np.float32, largest)) <= 8 + spread / 2
    lost = -(jax.nn.softmax(x) * jax.nn.log_softmax(x)).sum(-1)
    assert np.max(ulps(lost, right[0], np.float32)) > 1e5 or spread < 20


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.one_in(2)
def test_low_precision_is_computed_and_returned_in_float32(dtype):
    x = jnp.asarray(confident_rows(8.0)[0], dtype)
    labels = np.arange(len(x)) % 33
    found = WITH_LOGITS(labels=labels, logits=x)
    wide = WITH_LOGITS(labels=labels, logits=x.astype(jnp.float32))
    for got, wanted in zip(found, wide, strict=True):
        assert got.dtype == wanted.dtype
        np.testing.assert_allclose(got, wanted, rtol=1e-6)
    logits = jax.grad(lambda x: WITH_LOGITS(labels=labels, logits=x).entropy.sum())(x)
    assert logits.dtype == dtype


def test_log_prob_is_minus_the_loss():
    x, _ = confident_rows(60.0)
    labels = np.arange(len(x)) % 33
    found = WITH_LOGITS(labels=labels, logits=x)
    loss = jxent.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=x)
    np.testing.assert_allclose(found.log_prob, -loss, rtol=2e-6)


# Temperature.


@pytest.mark.parametrize("form", ["", "linear"])
@pytest.mark.one_in(2)
def test_a_temperature_may_be_traced_and_differentiated(form):
    """A constant one gives the same, whose row maximum is found again among the quotients."""
    x, _ = confident_rows(20.0, rows=5, classes=5)
    labels = np.arange(5)

    def entropy(temperature):
        if form:
            found = LINEAR(labels=labels, inputs=x, kernel=IDENTITY, temperature=temperature)
        else:
            found = WITH_LOGITS(labels=labels, logits=x, temperature=temperature)
        return found.entropy

    traced, gradient = jax.jvp(entropy, (jnp.float32(3.7),), (jnp.float32(1),))
    np.testing.assert_allclose(entropy(3.7), traced, rtol=3e-6)
    scaled = np.asarray(x, np.float64) / 3.7
    right = wide_entropy(scaled, 0 * scaled)
    np.testing.assert_allclose(traced, right[0].astype(float), rtol=2e-5)
    by_temperature = (right[1] * -scaled / 3.7).sum(-1).astype(float)
    np.testing.assert_allclose(gradient, by_temperature, rtol=2e-5)
    for wrong in (0.0, -1.0, nan):
        assert np.isnan(entropy(jnp.float32(wrong))).all()


@pytest.mark.long
def test_a_finite_mask_may_overflow_at_a_low_temperature():
    """As -inf does: no derivative is NaN."""
    lowest = float(np.finfo(np.float32).min)

    def log_prob(x, temperature):
        return WITH_LOGITS(labels=0, logits=x, temperature=temperature).log_prob

    for mask in (lowest, -inf):
        x = jnp.array([1.0, 2.0, mask])
        np.testing.assert_allclose(jax.grad(log_prob, 1)(x, 0.5), 3.5231879, rtol=1e-6)
        hessian = jax.hessian(log_prob)(x, 0.5)
        np.testing.assert_allclose(hessian[0, 0], -0.41997434, rtol=1e-6)
        assert np.isfinite(hessian).all()


def nested_of(x, warmth, name, nested):
    """A derivative to the temperature of one field, by this order of the two modes."""

    def field(warmth):
        return getattr(WITH_LOGITS(labels=0, logits=x, temperature=warmth), name)

    def along(f):
        return lambda warmth: jax.jvp(f, (warmth,), (jnp.ones_like(warmth),))[1]

    modes = {"r": jax.grad, "f": along}
    for mode in reversed(nested):
        field = modes[mode](field)
    return field(jnp.float32(warmth))


ORDERS = ("rr", "rf", "fr", "ff")
# 1.745e12 is where a distance counts as a mask's, at a temperature of 1: both sides of it.
MASKS = (-1e9, -1.74e12, -1.75e12, -1e30, -1e38, np.finfo(np.float32).min, -inf)


@pytest.mark.one_in(224)
@pytest.mark.parametrize("nested", ["r", "f", *ORDERS, "fff", "rff", "ffr", "rrr"])
@pytest.mark.parametrize("masked", MASKS)
@pytest.mark.parametrize("warmth", [0.5, 1.0, 2.0])
def test_derivatives_to_a_temperature_beside_a_masked_class(masked, nested, warmth):
    """However it is ruled out: its tangents overflow where its probability is 0."""
    x = jnp.array([0.0, 1.0, masked])
    for name in FIELDS:
        wanted = nested_of(x[:2], warmth, name, "f" * len(nested))
        np.testing.assert_allclose(nested_of(x, warmth, name, nested), wanted, rtol=2e-5)


@pytest.mark.parametrize("masked", [-1e38, np.finfo(np.float32).min, -inf])
@pytest.mark.long
def test_a_product_with_the_hessian_of_a_masked_class(masked):
    x, t = jnp.array([0.0, 1.0, masked]), jnp.array([4.0, 2.0, 4.0])

    def entropy(x):
        return WITH_LOGITS(labels=0, logits=x).entropy

    forward = jax.jvp(jax.grad(entropy), (x,), (t,))[1]
    backward = jax.grad(lambda x: jnp.vdot(jax.grad(entropy)(x), t))(x)
    alone = jax.jvp(jax.grad(entropy), (x[:2],), (t[:2],))[1]
    for found in (forward, backward):
        np.testing.assert_allclose(found, [*alone, 0.0], rtol=1e-5)


# With T = 2 the division is exact; a constant moves the normaliser, and nothing else.
@pytest.mark.parametrize("nested", ORDERS)
@pytest.mark.parametrize("shift", [0.0, 1024.0, 131072.0])
@pytest.mark.long
def test_a_constant_costs_no_digits_of_the_derivatives_to_a_temperature(shift, nested):
    x = jnp.array([0.0, 1.0, -1.0])
    for name in FIELDS:
        right = nested_of(x, 2.0, name, "ff")
        if name == "log_normalizer":
            right += 2 * shift / 2.0**3
        np.testing.assert_allclose(nested_of(x + shift, 2.0, name, nested), right, rtol=1e-5)


def test_wrong_temperatures():
    f = partial(WITH_LOGITS, labels=[0], logits=IDENTITY[:1])
    for wrong in (0, -1.0, inf, nan):
        with pytest.raises(ValueError, match=r"temperature must be in \(0, inf\), got"):
            f(temperature=wrong)
    with pytest.raises(ValueError, match="temperature must be one positive number, got shape"):
        f(temperature=np.ones(3))
    strange: tuple[Any, ...] = ("1", None, True, 1j, np.array(1j), np.array(True))
    for value in strange:
        with pytest.raises((TypeError, ValueError), match="temperature must be"):
            f(temperature=value)
