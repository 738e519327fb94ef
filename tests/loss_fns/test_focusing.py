"""Focal and asymmetric losses: their digits, limits and peers."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jxent
from jxent import losses
from tests.compile_options import quick
from tests.projection.members import products
from tests.reference import WIDE, ulps, wide_focal_term

inf, nan = np.inf, np.nan
POWERS = (0.5, 0.7, 1.0, 1.5, 2.0, 5.0)


@pytest.mark.parametrize("g", POWERS)
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.one_in(6)
def test_sigmoid_terms_keep_their_digits(g, platform):
    """Both labels, over the whole range; what is left of a power above its whole part costs x/2."""
    x = np.linspace(-80, 80, 1601, dtype=np.float32)

    def loss(label, x):
        labels = jnp.full_like(x, label)
        return jxent.sigmoid_cross_entropy_with_logits(labels=labels, logits=x, focusing=g)

    def program(label, x):
        slope = jax.grad(lambda x: jnp.sum(loss(label, x)))
        return loss(label, x), *jax.jvp(slope, (x,), (jnp.ones_like(x),))

    with jxent.assume_platform(platform):
        results = [jax.jit(partial(program, label))(jnp.asarray(x)) for label in (0.0, 1.0)]
    for (value, slope, curve), sign in zip(results, (1, -1), strict=True):
        expected = wide_focal_term(g, sign * x)
        allowed = 6 + 2 * g + (g % 1) * np.maximum(-sign * x, 0)
        for got, wanted, size, more in (
            (value, expected[0], expected[0], 0),
            (slope, sign * expected[1], expected[1], 0),
            (curve, expected[2], expected[3], 4),
        ):
            # Of a sum, each addend is flushed to 0 below the smallest normal number.
            least = 4 * (1 + g) * float(np.finfo(np.float32).tiny)
            normal = size > least
            errors = ulps(got, wanted, np.float32, size)
            assert (errors <= allowed + more)[normal].all(), np.max(errors[normal])
            assert (np.abs(got)[~normal] <= least).all()


@pytest.mark.parametrize("g", POWERS)
@pytest.mark.one_in(4)
def test_limits_of_sigmoid_to_third_order(g):
    x = jnp.array([-inf, inf, 90.0, -90.0])

    def loss(label, x):
        return jxent.sigmoid_cross_entropy_with_logits(labels=label, logits=x, focusing=g)

    @partial(quick, static_argnums=0)
    def orders(label, x):
        f: Callable[..., jax.Array] = partial(loss, jnp.asarray(label, x.dtype))
        found = []
        for _ in range(4):
            found.append(jax.vmap(f)(x))
            f = jax.grad(f)
        return found

    value, *gradients = orders(1.0, x)
    np.testing.assert_array_equal(value[:2], [inf, 0])
    np.testing.assert_array_equal(gradients[0][:2], [-1, 0])
    for slope in gradients[1:]:
        np.testing.assert_array_equal(slope[:2], 0)
    assert np.isfinite(gradients).all()
    value, *gradients = orders(0.0, x)
    np.testing.assert_array_equal(value[:2], [0, inf])
    np.testing.assert_array_equal(gradients[0][:2], [0, 1])
    assert np.isfinite(gradients).all()


def test_hard_labels_are_those_of_optax():
    """Its alpha is `pos_weight` and a factor; soft labels it mixes before the power is taken."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((4, 5)), jnp.float32)
    z = jnp.asarray(rng.integers(2, size=(4, 5)), jnp.float32)
    ours = partial(jxent.weighted_cross_entropy_with_logits, labels=z, logits=x)
    for g in (1.0, 2.0, 3.5):
        theirs = optax.sigmoid_focal_loss(x, z, gamma=g)
        np.testing.assert_allclose(ours(pos_weight=1.0, focusing=g), theirs, rtol=2e-5)
        theirs = optax.sigmoid_focal_loss(x, z, alpha=0.25, gamma=g)
        mine = 0.75 * ours(pos_weight=1 / 3, focusing=g)
        np.testing.assert_allclose(mine, theirs, rtol=2e-5)
    soft = {"labels": jnp.float32(0.3), "logits": jnp.float32(1.2), "focusing": 2.0}
    np.testing.assert_allclose(jxent.sigmoid_cross_entropy_with_logits(**soft), 0.609, atol=5e-4)
    np.testing.assert_allclose(
        optax.sigmoid_focal_loss(jnp.float32(1.2), jnp.float32(0.3), gamma=2.0), 0.407, atol=5e-4
    )


def test_the_negative_power_is_of_the_negative_term():
    """As the asymmetric loss has it: positives as they are, easy negatives all but gone."""
    x = jnp.array([2.0, -3.0])
    f = partial(jxent.sigmoid_cross_entropy_with_logits, logits=x, negative_focusing=4.0)
    plain = partial(jxent.sigmoid_cross_entropy_with_logits, logits=x)
    np.testing.assert_allclose(f(labels=jnp.ones(2)), plain(labels=jnp.ones(2)), rtol=1e-6)
    p = 1 / (1 + np.exp(-np.asarray(x)))
    wanted = p**4 * plain(labels=jnp.zeros(2))
    np.testing.assert_allclose(f(labels=jnp.zeros(2)), wanted, rtol=1e-5)
    lists = losses.sparse_sigmoid_cross_entropy(
        [[0]], x[None], negative_focusing=4.0, mean_over="examples"
    )
    np.testing.assert_allclose(lists, plain(labels=jnp.ones(2))[0] + wanted[1], rtol=1e-5)


def rows(spread, classes=33):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((64, classes))
    x[:, 0] += np.linspace(-spread, spread, 64)
    return np.asarray(x, np.float32)


@pytest.mark.parametrize("g", POWERS)
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.one_in(12)
def test_softmax_keeps_its_digits(g, platform):
    """At any confidence: 1 - p is -expm1(-l), which has all digits that l has."""
    x = rows(60.0)
    wide = np.asarray(x, WIDE)
    odds = np.exp(wide - wide[:, :1])
    rest = odds[:, 1:].sum(-1)
    loss = np.log1p(rest)
    c = rest / (1 + rest)
    value = c ** WIDE(g) * loss
    slope = -c * c ** WIDE(g) * (1 + g * loss / np.expm1(loss))  # to the label's logit
    labels = np.zeros(64, int)

    def each(x):
        return jxent.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=x, focusing=g)

    with jxent.assume_platform(platform):
        got = jax.jit(each)(x)
        gradient = jax.jit(jax.grad(lambda x: each(x).sum()))(x)
    # Relative errors add up: |ln l| of the loss, and g times as many of the power.
    condition = (1 + g) * (10 + np.abs(np.log(loss)).astype(float))
    normal = value > float(np.finfo(np.float32).tiny)
    assert (ulps(got, value, np.float32)[normal] <= condition[normal]).all()
    normal = np.abs(slope) > float(np.finfo(np.float32).tiny)
    assert (ulps(gradient[:, 0], slope, np.float32)[normal] <= condition[normal]).all()


@pytest.mark.parametrize("g", [0.5, 1.0, 2.0])
@pytest.mark.one_in(4)
def test_softmax_at_its_ends(g):
    """A loss of 0 and of inf: values and derivatives are limits, or 0 where these are infinite."""
    x = jnp.array([[200.0, 0.0], [0.0, -inf], [-inf, 0.0], [nan, 0.0]])
    labels = jnp.zeros(4, int)

    def each(x, labels):
        return jxent.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=x, focusing=g)

    @quick
    def program(x):
        f: Callable[..., jax.Array] = each
        found = [jax.vmap(each)(x, labels)]
        for _ in range(3):
            f = jax.jacfwd(f)
            found.append(jax.vmap(f)(x, labels))
        return found

    value, *gradients = program(x)
    np.testing.assert_array_equal(value[:3], [0, 0, inf])
    np.testing.assert_array_equal(gradients[0][:2], 0)
    np.testing.assert_allclose(gradients[0][2], [-1, 1])
    for slope in gradients:
        assert np.isfinite(slope[:3]).all()
        assert np.isnan(slope[3]).all()


def test_z_loss_is_not_focused_and_parts_add_up():
    x, labels = rows(5.0), np.zeros(64, int)
    loss, aux = losses.sparse_softmax_cross_entropy(
        labels, x, focusing=2.0, z_loss=0.1, has_aux=True
    )
    plain = losses.sparse_softmax_cross_entropy(labels, x, z_loss=0.1, has_aux=True)[1]
    np.testing.assert_allclose(aux.z_loss, plain.z_loss, rtol=1e-6)
    np.testing.assert_allclose(aux.cross_entropy + aux.z_loss, loss, rtol=1e-6)
    assert aux.cross_entropy < plain.cross_entropy
    assert aux.accuracy == plain.accuracy


def test_products_and_blocks_of_classes():
    """Three products for the scalar; blocks of classes give the same."""
    rng = np.random.default_rng(0)
    labels = rng.integers(12, size=5)
    x, w = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((5, 3), (3, 12)))
    for form in (losses, jxent):
        function = form.linear_sparse_softmax_cross_entropy

        def total(x, w, function=function, **options):
            found = function(labels=labels, inputs=x, kernel=w, focusing=2.0, **options)
            return jnp.sum(found)

        count = 3 if form is losses else 4
        assert len(products(jax.value_and_grad(total, (0, 1)), x, w)) == count
        whole, blocks = (
            quick(jax.value_and_grad(partial(total, **options), (0, 1)))(x, w)
            for options in ({}, {"class_block_size": 5})
        )
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), blocks, whole)


@pytest.mark.optimized
@pytest.mark.since("0.10.2")
def test_a_step_of_a_sum_stores_no_array_of_the_logits_size():
    shape = (2048, 4096)
    logits = jax.ShapeDtypeStruct(shape, jnp.float32)

    def step(logits, labels):
        value, slope = jax.value_and_grad(
            lambda x: losses.sigmoid_cross_entropy(labels, x, focusing=2.0, negative_focusing=4.0)
        )(logits)
        return logits - 0.1 * slope, value

    compiled = jax.jit(step, donate_argnums=0).lower(logits, logits).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes <= 0.1 * 4 * shape[0] * shape[1]


@pytest.mark.parametrize("name", ["sparse_softmax", "linear_sparse_softmax"])
def test_smoothed_labels_are_refused(name):
    data = {"inputs": np.eye(3), "kernel": np.eye(3)} if "linear" in name else {"logits": np.eye(3)}
    f = getattr(losses, f"{name}_cross_entropy")
    with pytest.raises(ValueError, match="focusing must be 0 where labels are smoothed, got 2"):
        f(labels=np.arange(3), **data, focusing=2, label_smoothing=0.1)


def test_no_focusing_is_the_same_program():
    x, labels = rows(1.0), np.zeros(64, int)
    for f, z in ((losses.sparse_softmax_cross_entropy, labels), (losses.sigmoid_cross_entropy, x)):
        plain, zero = (
            jax.jit(jax.grad(lambda x, f=f, z=z, o=o: f(z, x, **o))).lower(x).as_text()
            for o in ({}, {"focusing": 0})
        )
        assert plain == zero
