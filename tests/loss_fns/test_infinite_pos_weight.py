"""A class that never occurs, balanced by n_negative / n_positive, has an infinite `pos_weight`."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from jxent import losses
from tests.compile_options import quick

inf = np.inf
X = np.array([[0.5, -2.0, 0.0, 3.0], [1.0, 0.3, -40.0, 90.0], [-1.0, 2.0, 0.7, -0.2]], np.float32)
IDS = np.array([[1, -1], [2, 1], [3, 3]])
Z = np.array([[0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]], np.float32)
Q = np.array([inf, 1.5, inf, 2.0], np.float32)  # of classes 0 and 2; example 1 has the latter
EYE = np.eye(4, dtype=np.float32)

FORMS: dict[str, Any] = {
    "weighted": lambda x, z, q, **o: jxent.weighted_cross_entropy_with_logits(
        labels=z, logits=x, pos_weight=q, **o
    ).sum(-1),
    "ids": lambda x, _, q, **o: jxent.sparse_sigmoid_cross_entropy_with_logits(
        labels=IDS, logits=x, pos_weight=q, **o
    ),
    **{
        f"dense projection {sizes}": lambda x, z, q, sizes=sizes, **o: (
            jxent.linear_sigmoid_cross_entropy(
                labels=z, inputs=x, kernel=EYE, pos_weight=q, **sizes, **o
            )
        )
        for sizes in ({"block_size": 2}, {"class_block_size": 2})
    },
    **{
        f"projection of ids {sizes}": lambda x, _, q, sizes=sizes, **o: (
            jxent.linear_sparse_sigmoid_cross_entropy(
                labels=IDS, inputs=x, kernel=EYE, pos_weight=q, **sizes, **o
            )
        )
        for sizes in ({"block_size": 2}, {"class_block_size": 2})
    },
}  # fmt: skip
REDUCED: dict[str, Any] = {
    "dense": lambda x, z, w, **o: losses.sigmoid_cross_entropy(z, x, w, **o),
    "ids": lambda x, _, w, **o: losses.sparse_sigmoid_cross_entropy(IDS, x, w, **o),
    "dense projection": lambda x, z, w, **o: losses.linear_sigmoid_cross_entropy(
        z, x, EYE, weights=w, block_size=2, **o
    ),
    "dense projection by classes": lambda x, z, w, **o: losses.linear_sigmoid_cross_entropy(
        z, x, EYE, weights=w, class_block_size=2, **o
    ),
    "projection of ids": lambda x, _, w, **o: losses.linear_sparse_sigmoid_cross_entropy(
        IDS, x, EYE, weights=w, block_size=2, **o
    ),
    "projection of ids by classes": lambda x, _, w, **o: losses.linear_sparse_sigmoid_cross_entropy(
        IDS, x, EYE, weights=w, class_block_size=2, **o
    ),
}
OPTIONS: list[dict] = [
    {},
    {"label_smoothing": 0.1},
    {"focusing": 2.0},
    {"focusing": 1.5, "negative_focusing": 0.0, "label_smoothing": 0.1},
    {"logit_softcap": 5.0},
]


# TensorFlow's function has no smoothing and no focusing.
CASES = [
    (form, options) for form in FORMS for options in OPTIONS
    if form != "weighted" or not {"label_smoothing", "focusing"} & set(options)
]  # fmt: skip


def of_classes(x, z, q, label_smoothing=0.0, focusing=0.0, negative_focusing=None, logit_softcap=0):
    """Losses of all classes and their derivative to the logits, where these are finite."""
    x = np.asarray(x, np.longdouble)
    z = z * (1 - label_smoothing) + label_smoothing / 2
    cap = 1
    if logit_softcap:
        x, cap = logit_softcap * np.tanh(x / logit_softcap), np.cosh(x / logit_softcap) ** -2.0
    absent_power = focusing if negative_focusing is None else negative_focusing

    def term(g, x):
        p = 1 / (1 + np.exp(-x))
        soft = np.logaddexp(0, x)
        return p**g * soft, p**g * (g * (1 - p) * soft + p)

    absent, absent_gradient = term(absent_power, x)
    present, present_gradient = term(focusing, -x)
    loss = (1 - z) * absent + np.where(z == 0, 0, np.where(z == 0, 0, q) * z * present)
    gradient = (1 - z) * absent_gradient - np.where(np.isinf(q), 0, q) * z * present_gradient
    return loss.astype(np.float64), (gradient * cap).astype(np.float64)


def close(got, wanted):
    np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=1e-37)


@pytest.mark.parametrize(("form", "options"), CASES, ids=str)
@pytest.mark.one_in(30)
def test_a_class_without_its_label_has_its_negative_term_alone(form, options, lowered_for):
    f = partial(FORMS[form], **options)
    each, gradients = of_classes(X, Z, Q, **options)
    wanted = each.sum(-1)
    assert np.isinf(wanted[1])
    assert np.isfinite(wanted[[0, 2]]).all() or "label_smoothing" in options
    loss, pull = jax.vjp(f, X, Z, Q)
    close(loss, wanted)
    dx, dz, dq = pull(jnp.ones(3))
    close(dx, gradients)
    assert np.isfinite(dz).all()
    assert np.isfinite(dq).all()


@pytest.mark.parametrize("options", OPTIONS[:4], ids=str)
@pytest.mark.parametrize("form", REDUCED)
@pytest.mark.one_in(30)
def test_reduced_losses_are_those_without_the_class(form, options, lowered_for):
    """Of example 1, which has the class, the loss is infinite; a weight of 0 takes it out."""
    f = partial(REDUCED[form], pos_weight=Q, reduction="weighted_sum", **options)
    each, gradients = of_classes(X, Z, Q, **options)
    weights = np.array([1.0, 0.0, 2.0], np.float32)
    per_class = form == "dense"
    loss, pull = jax.vjp(lambda x: f(x, Z, weights[:, None] if per_class else weights), X)
    close(loss, (each[[0, 2]].sum(-1) * weights[[0, 2]]).sum())
    close(pull(jnp.ones_like(loss))[0], gradients * weights[:, None])
    assert f(X, Z, 1.0) == inf


@pytest.mark.parametrize(("form", "options"), CASES, ids=str)
@pytest.mark.one_in(30)
def test_every_derivative_is_finite(form, options):
    """Tangents of 0 too, whatever they are multiplied by."""

    @quick
    def derivatives(*args):
        f = partial(FORMS[form], **options)
        zeros = tuple(map(jnp.zeros_like, args))
        every = tuple(range(3))

        def total(*args):
            return f(*args).sum()

        return (
            jax.jvp(f, args, zeros)[1],
            jax.jacfwd(f, every)(*args),
            jax.hessian(total, every)(*args),
            jax.jacrev(jax.grad(total, every), every)(*args),
        )

    zero, *every = derivatives(X, Z, Q)
    assert not np.any(zero)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(every))
    forward, backward = every[1:]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), forward, backward)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("form", ["dense", "ids"])
@pytest.mark.parametrize(
    ("label", "logit", "q", "loss"),
    [
        (1, inf, inf, 0), (0, inf, inf, inf), (0, -inf, inf, 0), (1, -inf, inf, inf),
        (1, 80.0, inf, inf), (1, -80.0, inf, inf), (0, 80.0, inf, 80), (1, 0.0, -inf, -inf),
        (0, 0.0, -inf, np.log(2)), (1, inf, -inf, 0), (0, 1.0, np.nan, None),
    ],
)  # fmt: skip
@pytest.mark.one_in(13)
def test_infinite_logits_beside_it(form, label, logit, q, loss, dtype, lowered_for):
    x = jnp.asarray([[logit]], dtype)
    if form == "dense":
        z = jnp.asarray([[label]], dtype)
        got = jxent.weighted_cross_entropy_with_logits(labels=z, logits=x, pos_weight=q)
    else:
        ids = jnp.asarray([[0 if label else -1]])
        got = jxent.sparse_sigmoid_cross_entropy_with_logits(labels=ids, logits=x, pos_weight=q)
    if loss is None:
        assert form == "ids" or np.isnan(got).all()
    else:
        wanted = np.asarray(jnp.asarray(loss, dtype), np.float32)
        np.testing.assert_allclose(np.asarray(got, np.float32).squeeze(), wanted, rtol=1e-2)
