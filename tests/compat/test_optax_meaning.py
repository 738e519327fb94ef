"""Broadcasting, axes, masks and dtypes mean what they mean in optax, but for what is listed."""

import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from jxent.compat import optax as compat
from tests.compile_options import quick

theirs = pytest.importorskip("optax").losses

RNG = np.random.default_rng(5)
X = RNG.normal(size=(4, 5), scale=2).astype(np.float32)
Z = RNG.dirichlet(np.ones(5), size=4).astype(np.float32)
IDS = np.array([4, 0, 2, 2])
ELEMENTS = np.array([[1, 1, 0, 1, 1], [1] * 5, [0, 0, 1, 0, 1], [0] * 5], bool)
ROWS = np.array([True, False, True, True])
BLOCK = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
WEIGHTS = RNG.uniform(size=(2, 3, 4, 5)).astype(np.float32)
DENSE = ("softmax_cross_entropy", "poly_loss_cross_entropy")
DIVERGENCES = [name for name in compat.__all__ if "kl_divergence" in name and "convex" not in name]
SUMS = (*DENSE, *DIVERGENCES)


TOLERANCE = {"float32": 5e-6, "float16": 4e-3, "bfloat16": 3e-2}  # of optax's roundings


def of_optax(function, *arguments, **options):
    """As its users call it: with JAX's defaults."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        return function(*arguments, **options)


def same(name, *arguments, **options):
    """The result of optax, of its shape and dtype."""
    wanted = of_optax(getattr(theirs, name), *map(jnp.asarray, arguments), **options)
    got = getattr(compat, name)(*arguments, **options)
    assert got.shape == wanted.shape
    assert got.dtype == wanted.dtype
    given = jax.tree.leaves((arguments, options))
    dtypes = {str(x.dtype) for x in (got, *given) if hasattr(x, "dtype")}
    tolerance = max(TOLERANCE.get(dtype, 0) for dtype in dtypes)
    np.testing.assert_allclose(
        np.float32(got), np.float32(wanted), rtol=tolerance, atol=tolerance * 2
    )


# Broadcasting.


@pytest.mark.parametrize("name", ["sigmoid_binary_cross_entropy", "sigmoid_focal_loss"])
@pytest.mark.parametrize(
    ("logits", "labels"),
    [(X, Z[0]), (X[0], Z), (X[:, :1], Z), (X, Z[:, :1]), (X[0, 0], Z), (X, 1), (X, Z > 0.2)],
)
@pytest.mark.one_in(9)
def test_independent_classes_broadcast(name, logits, labels):
    same(name, logits, labels)


@pytest.mark.parametrize("name", [*DENSE, "safe_softmax_cross_entropy"])
@pytest.mark.parametrize(
    ("logits", "labels"),
    [(X, Z[0]), (X[0], Z), (X[:1], Z), (X, Z[:, :1]), (X, np.float32(0.2)), (X[:1], Z[0])],
)
@pytest.mark.one_in(9)
def test_exclusive_classes_broadcast(name, logits, labels):
    same(name, logits, labels)


@pytest.mark.parametrize("ids", [IDS, IDS[:1], np.uint8(IDS), -1 - IDS, np.int8(-1 - IDS)])
@pytest.mark.one_in(3)
def test_ids(ids):
    same("softmax_cross_entropy_with_integer_labels", X, ids)


def test_ids_of_one_row_of_logits():
    same("softmax_cross_entropy_with_integer_labels", X[:1], IDS)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.one_in(4)
def test_divergences_broadcast(name):
    for arguments in ((X, Z[0]), (X[0], Z), (X[:, :1], Z)):
        same(name, *arguments)


def test_a_broadcast_argument_has_the_sum_of_the_derivatives():
    """In float32, also where the argument is bfloat16."""
    x = jnp.ones(1, jnp.bfloat16)
    z = jnp.zeros((4096, 1), jnp.bfloat16)
    got = jax.grad(lambda x: compat.sigmoid_binary_cross_entropy(x, z).sum())(x)
    np.testing.assert_allclose(np.float32(got), 4096 * 0.7310586, rtol=2**-8)


# Axes.


@pytest.mark.parametrize("axis", [0, 1, -1, (1, 3), (3, 2), (-1, 0), (0, 1, 2, 3), None, (2,), ()])
@pytest.mark.parametrize("name", SUMS)
@pytest.mark.one_in(12)
def test_axes(name, axis):
    same(name, BLOCK, WEIGHTS, axis=axis)


@pytest.mark.parametrize("axis", [0, 2, -1, (1, 3), (3, 2), (-1, -2), (0, 1, 3), (2,)])
@pytest.mark.one_in(9)
def test_axes_of_ids(axis):
    axes = axis if isinstance(axis, tuple) else (axis,)
    shape = np.sum(BLOCK, axes).shape
    classes = BLOCK.size // np.prod(shape)
    ids = RNG.integers(classes, size=shape)
    same("softmax_cross_entropy_with_integer_labels", BLOCK, ids, axis=axis)
    where = RNG.uniform(size=BLOCK.shape) < 0.7
    same("softmax_cross_entropy_with_integer_labels", BLOCK, ids, axis=axis, where=where)


# Masks.


@pytest.mark.parametrize("where", [ELEMENTS, ROWS, ROWS[:, None], ELEMENTS[:1]])
@pytest.mark.one_in(4)
def test_masks(where):
    same("softmax_cross_entropy", X, Z, where=where)
    same("softmax_cross_entropy_with_integer_labels", X, IDS, where=where)
    if where.ndim == 2:
        for name in ("poly_loss_cross_entropy", *DIVERGENCES):
            same(name, X, Z, where=where)


@pytest.mark.parametrize("axis", [0, (0, 1), None, (1, 0)])
@pytest.mark.one_in(6)
def test_masks_of_axes(axis):
    where = ELEMENTS
    for name in SUMS:
        same(name, X, Z, axis=axis, where=where)
        same(name, X, Z, axis=axis, where=where[:1])
    if axis == 0:
        same("softmax_cross_entropy", X, Z, axis=0, where=where[0])


@pytest.mark.long
def test_a_mask_that_leaves_the_label_out():
    """From dense labels its term is out; from ids the label's logit is still subtracted."""
    where = np.ones_like(ELEMENTS)
    where[:, 2:] = False
    same("softmax_cross_entropy", X, np.eye(5, dtype=np.float32)[IDS], where=where)
    same("softmax_cross_entropy_with_integer_labels", X, IDS, where=where)
    name = "softmax_cross_entropy_with_integer_labels"

    def gradient(module):
        function = getattr(module, name)
        return of_optax(jax.jacobian(lambda x: function(x, jnp.asarray(IDS), where=where)), X)

    np.testing.assert_allclose(gradient(compat), gradient(theirs), atol=2e-6)


def with_broken(where):
    """Logits that are NaN or infinite where they are masked."""
    return np.where(where, X, np.resize([np.nan, np.inf, -np.inf], X.shape)).astype(np.float32)


@pytest.mark.parametrize("where", [ELEMENTS, ROWS])
@pytest.mark.parametrize(
    "name", [*SUMS, "softmax_cross_entropy_with_integer_labels"], ids=lambda name: name[:30]
)
@pytest.mark.one_in(6)
def test_masked_elements_reach_no_derivative(name, where):
    if where.ndim == 1:
        where = np.broadcast_to(where[:, None], X.shape)
    labels = IDS if "integer" in name else Z
    if "integer" in name:  # a label that is left out is read
        where = where | (np.arange(5) == IDS[:, None]) & where.any(-1, keepdims=True)
    broken = with_broken(where)
    function = getattr(compat, name)

    def total(x):
        return function(x, labels, where=where).sum()

    (value, gradient), hessian = (
        quick(jax.value_and_grad(total))(broken),
        quick(jax.hessian(total))(broken),
    )
    clean = np.where(where, X, np.float32(0))
    np.testing.assert_allclose(value, total(clean), rtol=1e-6)
    assert (np.asarray(gradient)[~where] == 0).all()
    assert np.isfinite(gradient).all()
    assert np.isfinite(hessian).all()
    tangents = jax.jvp(total, (broken,), (jnp.ones_like(X),))[1]
    assert np.isfinite(tangents)


@pytest.mark.long
def test_a_mask_may_have_the_labels_of_its_rows_out_of_range():
    for bad in (-100, 5, 100):
        ids = np.where(ROWS, IDS, bad)
        same("softmax_cross_entropy_with_integer_labels", X, ids, where=ROWS)


# dtypes.

LOW = jnp.bfloat16


@pytest.mark.parametrize(
    "labels", [Z, Z.astype(LOW), Z.astype(np.float16), Z > 0.2, np.eye(4, 5, dtype=int)]
)
@pytest.mark.parametrize("logits", [X.astype(LOW), X.astype(np.float16), X])
@pytest.mark.one_in(12)
def test_dtypes(logits, labels):
    for name in ("sigmoid_binary_cross_entropy", "sigmoid_focal_loss", "softmax_cross_entropy"):
        same(name, logits, labels)
    if jnp.issubdtype(labels.dtype, jnp.floating):
        for name in (*DIVERGENCES, "poly_loss_cross_entropy"):
            same(name, logits, labels)


@pytest.mark.parametrize(
    "number", [0.5, 2, np.float32(2), jnp.bfloat16(0.5), np.ones(5, np.float32)]
)
@pytest.mark.one_in(6)
def test_dtypes_of_factors(number):
    x, z = X.astype(LOW), Z.astype(LOW)
    same("sigmoid_focal_loss", x, z, gamma=number)
    same("sigmoid_focal_loss", x, z, alpha=number)
    same("smooth_labels", z, number)
    one = number[:4] if np.ndim(number) else number
    same("poly_loss_cross_entropy", x, z, epsilon=one)


@pytest.mark.long
def test_low_precision_is_rounded_once():
    x, z = X.astype(LOW), Z.astype(LOW)
    for name in (
        "sigmoid_binary_cross_entropy",
        "softmax_cross_entropy",
        "poly_loss_cross_entropy",
    ):
        function = getattr(compat, name)
        wide = function(x.astype(np.float32), z.astype(np.float32))
        np.testing.assert_array_equal(function(x, z), wide.astype(LOW))
        mixed = function(x, z.astype(np.float32))
        wanted = wide if "sigmoid" not in name else wide.astype(LOW)
        np.testing.assert_array_equal(mixed, wanted)


@pytest.mark.long
def test_float64():
    with jax.enable_x64(True):
        x, z = X.astype(np.float64), Z.astype(np.float64)
        for name in ("sigmoid_focal_loss", *SUMS):
            for logits in (x, X):
                wanted = of_optax(getattr(theirs, name), jnp.asarray(logits), jnp.asarray(z))
                got = getattr(compat, name)(logits, z)
                assert got.dtype == wanted.dtype
                np.testing.assert_allclose(got, wanted, rtol=2e-5 if logits is X else 1e-12)


# Smoothing.


def test_smoothing():
    for options in ({}, {"axis": 0}, {"axis": None}, {"axis": (0, 1)}, {"where": ELEMENTS[:3]}):
        same("smooth_labels", Z[:3], 0.1, **options)
    same("smooth_labels", Z[0], np.float32([[0.1], [0.3]]))
    for where in (ELEMENTS, ELEMENTS[3]):  # optax: inf where nothing is left
        assert np.isfinite(compat.smooth_labels(Z, 0.1, where=where)).all()
    counted = compat.smooth_labels(Z, 0.1, where=ROWS[:, None])  # optax counts one class
    np.testing.assert_allclose(counted[0], 0.9 * Z[0] + 0.1 / 5, rtol=1e-6)


# What is different, on purpose.


def test_focal_loss_mixes_a_soft_label_first():
    x = z = np.float32(0.3)
    same("sigmoid_focal_loss", x, z)
    np.testing.assert_allclose(compat.sigmoid_focal_loss(x, z), 0.2145, atol=5e-5)
    own = jxent.sigmoid_cross_entropy_with_logits(labels=z, logits=x, focusing=2.0)
    np.testing.assert_allclose(own, 0.2275, atol=5e-5)


@pytest.mark.long
def test_an_id_out_of_range_can_be_masked_after_the_loss():
    """The loss is NaN as in optax; its gradient is 0 there, and a softmax in optax."""
    ids = np.array([5, -6, 100, 2])

    def masked(x):
        losses = compat.softmax_cross_entropy_with_integer_labels(x, ids)
        return jnp.where(jnp.arange(4) == 3, losses, 0).sum()

    value, gradient = jax.value_and_grad(masked)(X)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert (np.asarray(gradient)[:3] == 0).all()
    losses = compat.softmax_cross_entropy_with_integer_labels(X, ids)
    np.testing.assert_array_equal(np.isnan(losses), [True, True, True, False])


@pytest.mark.long
def test_infinite_logits_have_the_limit():
    inf = np.float32(np.inf)
    x, z = np.array([inf, -inf, inf, -inf]), np.float32([1, 0, 0, 1])
    for name in ("sigmoid_binary_cross_entropy", "sigmoid_focal_loss"):
        function = getattr(compat, name)
        np.testing.assert_array_equal(function(x, z), [0, 0, inf, inf])
        gradient = jax.grad(lambda x, f=function: f(x, z).sum())(x)
        np.testing.assert_allclose(gradient, [0, 0, 1, -1])
    x = np.array([[0, -inf, 0], [inf, 0, 0]], np.float32)
    z = np.float32([[0.5, 0, 0.5], [1, 0, 0]])
    for name in ("softmax_cross_entropy", "safe_softmax_cross_entropy", "poly_loss_cross_entropy"):
        function = getattr(compat, name)
        more = 1.0 if "poly" in name else 0.0
        np.testing.assert_allclose(function(x, z), [np.log(2) + more, 0], rtol=1e-6)
        for argument in (0, 1):
            gradient = jax.grad(lambda *a, f=function: f(*a).sum(), argument)(x, z)
            assert np.isfinite(gradient).all()


def test_a_target_of_0_adds_0():
    inf = np.float32(np.inf)
    log_p, t = np.array([0, -inf, -2], np.float32), np.array([1, 0, 0], np.float32)
    for name in ("kl_divergence", "kl_divergence_with_log_targets", "generalized_kl_divergence"):
        targets = np.where(t > 0, np.float32(0), -inf) if "log_targets" in name else t
        function = getattr(compat, name)
        wanted = np.exp(-2) if "generalized" in name else 0
        np.testing.assert_allclose(function(log_p, targets), wanted, rtol=1e-6)
        gradients = jax.grad(function, (0, 1))(log_p, targets)
        assert np.isfinite(gradients).all()


@pytest.mark.long
def test_no_class_and_no_example():
    for name in DENSE:
        same(name, X[:, :0], Z[:, :0])
        same(name, X[:0], Z[:0])
    for name in DIVERGENCES:
        same(name, X[:, :0], Z[:, :0])
    same("softmax_cross_entropy_with_integer_labels", X[:0], IDS[:0])


def test_a_deprecated_name():
    with pytest.warns(DeprecationWarning, match="use generalized_kl_divergence"):
        got = compat.convex_kl_divergence(X, Z)
    np.testing.assert_array_equal(got, compat.generalized_kl_divergence(X, Z))
    with warnings.catch_warnings(action="ignore"):
        same("convex_kl_divergence", X, Z)


def test_it_is_imported_by_its_own_name():
    """`import jxent` brings none of it, and it needs no optax."""
    program = (
        "import sys, jxent; assert 'jxent.compat' not in sys.modules; import jxent.compat.optax; "
        "assert 'optax' not in sys.modules; assert not hasattr(jxent.compat.optax, 'adam')"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
