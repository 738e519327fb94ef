"""Values and derivatives to second order of the losses under optax's names, against float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jxent.compat import optax as compat
from tests.compat import formulas
from tests.compile_options import quick

RNG = np.random.default_rng(3)
SHAPE = (3, 5)
X = RNG.normal(size=SHAPE, scale=2.0)
Z = RNG.dirichlet(np.ones(5), size=3)
WHERE = np.array([[True, True, False, True, True], [True] * 5, [True, False, True, True, False]])
LOG_P = np.log(RNG.dirichlet(np.ones(5), size=3))

# A function, what it is differentiated by, and its options.
DENSE = {
    "sigmoid_binary_cross_entropy": ({},),
    "sigmoid_focal_loss": (
        {}, {"gamma": 0.5}, {"gamma": 0.0}, {"gamma": 3, "alpha": 0.3}, {"gamma": 1.5},
        {"gamma": np.array([[0.5], [2.0], [0.0]]), "alpha": np.linspace(0.1, 0.8, 5)},
    ),
    "softmax_cross_entropy": ({}, {"where": WHERE}, {"axis": 0}),
    "safe_softmax_cross_entropy": ({},),
    "poly_loss_cross_entropy": ({}, {"where": WHERE, "epsilon": -1.0}, {"axis": 0}),
    "kl_divergence": ({}, {"where": WHERE}, {"axis": 0}),
    "kl_divergence_with_log_targets": ({}, {"where": WHERE}),
    "generalized_kl_divergence": ({}, {"where": WHERE}, {"axis": 0}),
}  # fmt: skip
CASES = [(name, options) for name, every in DENSE.items() for options in every]


def arguments(name):
    if "kl" not in name:
        return X, Z
    return LOG_P, np.log(Z) if "log_targets" in name else Z


def in_float32(tree):
    """Arrays as float32; numbers, masks and ids as they are."""
    return jax.tree.map(
        lambda x: np.float32(x) if isinstance(x, np.ndarray) and x.dtype == float else x, tree
    )


def total(function, options, *data):
    """A weighted sum, whose cotangents are not all alike."""
    losses = function(*data, **options)
    weights = np.linspace(0.5, 1.5, losses.size).reshape(losses.shape)
    return jnp.sum(losses * weights.astype(losses.dtype))


def expected(transform, name, options, data):
    """The formula's, in float64, of the numbers as float32 has them."""
    formula = getattr(formulas, name)
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        rounded = jax.tree.map(
            lambda x: np.asarray(x, float) if np.asarray(x).dtype == np.float32 else x,
            in_float32((options, data)),
        )
        return transform(partial(total, formula, rounded[0]))(*rounded[1])


def check(transform, name, options, data, tolerance):
    ours = partial(total, getattr(compat, name), in_float32(options))
    got = quick(transform(ours))(*in_float32(data))
    wanted = expected(transform, name, options, data)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        scale = np.abs(other).max() + 1e-30
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.one_in(6)
def test_value_and_gradients(name, options):
    check(
        lambda f: jax.value_and_grad(f, (0, 1)), name, options, arguments(name), 4e-6,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.one_in(9)
def test_second_order(name, options):
    check(lambda f: jax.hessian(f, (0, 1)), name, options, arguments(name), 2e-5)


@pytest.mark.parametrize("options", [{}, {"where": WHERE}])
@pytest.mark.parametrize(
    "transform", [jax.value_and_grad, jax.hessian, lambda f: jax.jacrev(jax.jacfwd(f))]
)
@pytest.mark.one_in(6)
def test_ids(transform, options):
    name = "softmax_cross_entropy_with_integer_labels"
    ids = np.array([4, 0, 2])

    def of_logits(f):
        return transform(lambda x: f(x, ids))

    check(lambda f: lambda x, _: of_logits(f)(x), name, options, (X, ids), 4e-6)


def test_smoothing():
    for alpha in (0.0, 0.1, 1.0):
        got = compat.smooth_labels(np.float32(Z), alpha)
        np.testing.assert_allclose(got, formulas.smooth_labels(Z, alpha), rtol=1e-6)


# A power and a weight of focal loss, and epsilon, are differentiable.


@pytest.mark.parametrize("gamma", [0.5, 2.0, 0.0])
@pytest.mark.one_in(9)
def test_parameters_of_focal_loss(gamma):
    z = np.array([[0.0, 1.0, 0.3, 0.9, 0.5]] * 3)

    def of_parameters(function):
        def f(x, gamma, alpha):
            return total(function, {"gamma": gamma, "alpha": alpha}, x, z.astype(x.dtype))

        return jax.value_and_grad(f, (0, 1, 2))

    got = quick(of_parameters(compat.sigmoid_focal_loss))(
        np.float32(X), jnp.float32(gamma), jnp.float32(0.25)
    )
    with jax.enable_x64(True):
        x = np.float32(X).astype(float)
        wanted = of_parameters(formulas.sigmoid_focal_loss)(x, np.float64(gamma), np.float64(0.25))
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_epsilon():
    x, z = np.float32(X), np.float32(Z)
    epsilon = jnp.array([0.5, -1.0, 2.0])

    def first(function, x, z):
        return jax.grad(lambda e: function(x, z, epsilon=e).sum())(epsilon.astype(x.dtype))

    got = first(compat.poly_loss_cross_entropy, x, z)
    with jax.enable_x64(True):
        wanted = first(formulas.poly_loss_cross_entropy, x.astype(float), z.astype(float))
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


# Digits, where the formula in float32 has none.
MARGINS = np.arange(2.0, 18.0)


def of_confident_rows(function, name):
    """The gradient to the right class, or of the right label, by the margin."""

    def gradient(margin):
        if "sigmoid" in name:
            arrays: tuple = (margin, jnp.ones_like(margin))
        else:
            x = jnp.stack([margin, jnp.zeros_like(margin), -jnp.ones_like(margin)])
            arrays = (x, 0 if "integer" in name else jnp.eye(3, dtype=margin.dtype)[0])
        return jax.grad(lambda x: jnp.sum(function(x, *arrays[1:])))(arrays[0]).reshape(-1)[0]

    return jax.vmap(gradient)


@pytest.mark.parametrize("name", [name for name in compat.__all__ if "cross" in name])
@pytest.mark.optimized
@pytest.mark.one_in(3)
def test_confident_gradients_keep_their_digits(name):
    """Where optax's lose them, but for the sigmoid, whose are right in optax."""
    margins = np.float32(MARGINS)
    ours = jax.jit(of_confident_rows(getattr(compat, name), name))(margins)
    formula = getattr(formulas, name)
    if "integer" in name:
        formula = formulas.softmax_cross_entropy
        wide = of_confident_rows(formula, "softmax")
    else:
        wide = of_confident_rows(formula, name)
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        wanted = np.asarray(wide(MARGINS))
    np.testing.assert_allclose(ours, wanted, rtol=3e-6)
    optax = pytest.importorskip("optax")
    theirs = getattr(optax.losses, name)
    if name.startswith("sigmoid"):
        return
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        lost = np.abs(np.asarray(of_confident_rows(theirs, name)(margins)) / wanted - 1)
    assert lost.max() > 0.01


@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 2.5])
@pytest.mark.one_in(9)
@pytest.mark.optimized
def test_focal_loss_keeps_its_digits(label, gamma):
    x = np.float32(np.linspace(-30, 30, 61))

    def derivatives(function, x, z):
        def f(x):
            return function(x, z, gamma=gamma)

        return tuple(jax.vmap(g)(x) for g in (f, jax.grad(f), jax.grad(jax.grad(f))))

    got = jax.jit(partial(derivatives, compat.sigmoid_focal_loss))(x, jnp.float32(label))
    with jax.enable_x64(True):
        wanted = derivatives(formulas.sigmoid_focal_loss, x.astype(float), label)
    for order, (one, other) in enumerate(zip(got, map(np.asarray, wanted), strict=True)):
        near = np.abs(other) > 1e-30
        bound = (1 + abs(gamma % 1) * 30) * 1.2e-6 * 4**order
        # The second derivative has a zero of its own, about which nothing is promised.
        allowed = np.abs(other) * bound + (1e-6 if order == 2 else 0)
        assert (np.abs(one - other)[near] <= allowed[near]).all(), order


@pytest.mark.optimized
@pytest.mark.long
def test_generalized_divergence_keeps_its_digits():
    """Between near distributions optax's has none."""
    rng = np.random.default_rng(0)
    log_t = np.log(rng.dirichlet(np.ones(64), size=4))
    t = np.float32(np.exp(log_t))
    log_p = np.float32(np.log(t.astype(float)) + 1e-3 * rng.normal(size=t.shape))
    ours = jax.jit(compat.generalized_kl_divergence)(log_p, t)
    p64, t64 = log_p.astype(float), t.astype(float)
    d = p64 - np.log(t64)
    wanted = np.sum(t64 * (d**2 / 2 + d**3 / 6 + d**4 / 24 + d**5 / 120), -1)
    np.testing.assert_allclose(ours, wanted, rtol=1e-3)
    gradient = jax.grad(lambda p: compat.generalized_kl_divergence(p, t).sum())(log_p)
    np.testing.assert_allclose(gradient, t64 * np.expm1(d), rtol=1e-3, atol=1e-8)
    optax = pytest.importorskip("optax")
    with jax.numpy_rank_promotion("allow"):
        theirs = np.asarray(optax.losses.generalized_kl_divergence(log_p, t))
    assert np.abs(theirs / wanted - 1).max() > 0.01
