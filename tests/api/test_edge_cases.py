"""Infinities, masked classes, bad ids, nothing at all: the README's table, row by row."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from jxent import losses
from tests.compile_options import quick

pytestmark = pytest.mark.optimized

inf, nan = np.inf, np.nan


def dense(labels, logits, **options):
    return jxent.softmax_cross_entropy_with_logits(
        labels=jnp.asarray(labels, jnp.float32), logits=jnp.asarray(logits, jnp.float32), **options
    )


def ids(labels, logits, **options):
    return jxent.sparse_softmax_cross_entropy_with_logits(
        labels=jnp.asarray(labels), logits=jnp.asarray(logits, jnp.float32), **options
    )


def sigmoid(labels, logits, **options):
    return jxent.sigmoid_cross_entropy_with_logits(
        labels=jnp.asarray(labels, jnp.float32), logits=jnp.asarray(logits, jnp.float32), **options
    )


def weighted(labels, logits, q, **options):
    return jxent.weighted_cross_entropy_with_logits(
        labels=jnp.asarray(labels, jnp.float32),
        logits=jnp.asarray(logits, jnp.float32),
        pos_weight=q,
        **options,
    )


def derivatives(f, *args, fixed=()):
    """Gradients, the same by forward mode with zero tangents elsewhere, and second derivatives.

    `fixed` come before the other arguments; with them, calls of one function share a program.
    """
    return all_derivatives(
        f, tuple(jnp.asarray(a) for a in fixed), *(jnp.asarray(a, jnp.float32) for a in args)
    )


@partial(quick, static_argnums=0)
def all_derivatives(function, fixed, *args):
    places = tuple(range(len(args)))
    f = partial(function, *fixed)
    forward = []
    for k in places:
        for element in np.eye(args[k].size, dtype=np.float32):
            tangents = [jnp.zeros_like(a) for a in args]
            tangents[k] = jnp.asarray(element.reshape(args[k].shape))
            forward.append(jax.jvp(f, args, tuple(tangents))[1])
    hessians = [jax.hessian(f, places)(*args), jax.jacrev(jax.grad(f, places), places)(*args)]
    return jax.grad(f, places)(*args), forward, hessians


def all_finite(tree):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("label", "logit", "loss"), [(1, inf, 0), (0, -inf, 0), (1, -inf, inf), (0, inf, inf)]
)
@pytest.mark.parametrize("q", [None, 2.0])
@pytest.mark.one_in(2)
def test_sigmoid_at_infinity_is_the_limit(label, logit, loss, q):
    def f(z, x):
        return sigmoid(z, x) if q is None else weighted(z, x, q)

    assert f(label, logit) == loss
    slope = (logit > 0) * (1 - label) - (logit < 0) * label * (q or 1)
    assert jax.grad(f, 1)(float(label), float(logit)) == slope
    assert all_finite(derivatives(f, label, logit))


def test_pos_weight_has_a_finite_gradient_at_infinity():
    gradients, forward, hessians = derivatives(lambda x, q: weighted(1.0, x, q), -inf, 2.0)
    assert all_finite((gradients, forward, hessians))


def test_sigmoid_of_labels_outside_0_1_is_the_formula():
    for z in (-1.0, 2.0):
        np.testing.assert_allclose(sigmoid(z, 0.5), np.log1p(np.exp(0.5)) - z * 0.5, rtol=1e-6)
        slope = jax.grad(lambda x, z=z: sigmoid(z, x))(0.5)
        np.testing.assert_allclose(slope, 1 / (1 + np.exp(-0.5)) - z, rtol=1e-6)


def test_negative_pos_weight_is_the_formula():
    expected = -2 * np.log1p(np.exp(-0.5))
    np.testing.assert_allclose(weighted(1.0, 0.5, -2.0), expected, rtol=1e-6)


@pytest.mark.xdist_group("at infinity")
@pytest.mark.parametrize(
    ("labels", "logits", "loss"),
    [
        (0, [inf, 1, 2], 0),
        (1, [inf, 1, 2], inf),
        (0, [inf, inf, 2], np.log(2)),
        (2, [inf, inf, 2], inf),
        (0, [1, -inf, 1], np.log(2)),
        (1, [1, -inf, 1], inf),
        (0, [1, -inf, -inf], 0),
        (0, [inf, -inf, 0], 0),
    ],
)
@pytest.mark.one_in(8)
def test_softmax_at_infinity_is_the_limit(labels, logits, loss):
    np.testing.assert_allclose(ids(labels, logits), loss, rtol=1e-6)
    onehot = np.eye(3)[labels]
    np.testing.assert_allclose(dense(onehot, logits), loss, rtol=1e-6)
    for f, fixed in ((ids, labels), (dense, onehot)):
        (gradient,), forward, hessians = derivatives(f, logits, fixed=(fixed,))
        np.testing.assert_allclose(gradient, forward, rtol=1e-6)
        assert all_finite((gradient, hessians))
    assert all_finite(derivatives(dense, onehot, logits))


def test_infinite_logits_share_the_probability():
    gradient = jax.grad(lambda x: ids(0, x))(jnp.array([inf, inf, 2.0]))
    np.testing.assert_allclose(gradient, [-0.5, 0.5, 0], rtol=1e-6)


@pytest.mark.parametrize("options", [{"z_loss": 0.1}, {"label_smoothing": 0.1}])
@pytest.mark.one_in(2)
def test_options_at_infinity_have_finite_gradients(options):
    assert ids(0, [inf, 1.0, 2.0], **options) == inf
    assert all_finite(derivatives(lambda x: ids(0, x, **options), [inf, 1.0, 2.0]))
    masked = [1.0, -inf, 2.0]
    assert np.isfinite(ids(0, masked, **options))
    assert all_finite(derivatives(lambda x: ids(0, x, **options), masked))


@pytest.mark.parametrize("f", [lambda x: ids(0, x), lambda x: dense([1, 0], x)])
@pytest.mark.one_in(2)
def test_a_row_with_no_class_left_is_nan(f):
    for row in ([-inf, -inf], [nan, 1.0], [1.0, nan]):
        assert np.isnan(f(row))
        assert np.isnan(jax.grad(f)(jnp.array(row))).all()


def test_smoothing_spreads_over_the_classes_left():
    x = np.array([1.0, -inf, 2.0, 0.5])
    left = x[[0, 2, 3]]
    expected = ids(1, left, label_smoothing=0.3)
    np.testing.assert_allclose(ids(2, x, label_smoothing=0.3), expected, rtol=1e-6)
    gradient = jax.grad(lambda x: ids(2, x, label_smoothing=0.3))(jnp.asarray(x, jnp.float32))
    assert gradient[1] == 0
    scalar = losses.softmax_cross_entropy([[0, 0, 1, 0]], x[None], label_smoothing=0.3)
    np.testing.assert_allclose(scalar, expected, rtol=1e-6)
    assert ids(1, x, label_smoothing=0.3) == inf


def test_a_masked_class_stays_masked_under_softcap():
    x = jnp.array([1.0, -inf, 2.0])
    capped = 3 * np.tanh(np.array([1.0, 2.0]) / 3)
    np.testing.assert_allclose(ids(0, x, logit_softcap=3.0), ids(0, capped), rtol=1e-6)
    assert jax.grad(lambda x: ids(0, x, logit_softcap=3.0))(x)[1] == 0
    assert sigmoid(0.0, -inf, logit_softcap=3.0) == 0
    # +inf is not masked: it is the cap.
    np.testing.assert_allclose(
        ids(0, [1, inf], logit_softcap=3.0), ids(0, [3 * np.tanh(1 / 3), 3.0]), rtol=1e-6
    )


@jax.jit
def of_ids(labels, logits):
    """Losses, gradient of their sum, and tangent along the logits."""
    gradient = jax.grad(lambda x: ids(labels, x).sum())(logits)
    return *jax.jvp(lambda x: ids(labels, x), (logits,), (logits,)), gradient


@pytest.mark.xdist_group("out of range")
@pytest.mark.parametrize(
    "dtype",
    [np.int32, np.uint8, np.int64,
     *(pytest.param(t, marks=pytest.mark.long) for t in (np.int8, np.int16, np.uint32))],
)  # fmt: skip
@pytest.mark.parametrize("invalid", [-1, 3, 100, 2**32, 2**32 + 1])
@pytest.mark.one_in(4)
def test_an_id_out_of_range_is_nan_for_its_example_alone(dtype, invalid):
    if not np.iinfo(dtype).min <= invalid <= np.iinfo(dtype).max:
        pytest.skip("not an id of this dtype")
    logits = jnp.zeros((3, 3))
    with jax.enable_x64(True):
        labels = jnp.asarray(np.array([0, invalid, 2], dtype))
        loss, tangent, gradient = of_ids(labels, logits)
    np.testing.assert_array_equal(np.isnan(loss), [False, True, False])
    np.testing.assert_array_equal(np.isnan(gradient), [[False] * 3, [True] * 3, [False] * 3])
    np.testing.assert_array_equal(np.isnan(tangent), [False, True, False])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_ties_for_the_maximum(scale):
    """Exactly one of them is left out of the sum; the others count 1 each."""
    for tied in range(1, 6):
        x = np.full(7, -3 * scale, np.float32)
        x[:tied] = 0.5 * scale
        expected = np.log(tied + (7 - tied) * np.exp(-3.5 * scale))
        np.testing.assert_allclose(ids(0, x), expected, rtol=2e-6, atol=1e-38)


@pytest.mark.parametrize(
    "classes", [2**14 + 2**11, pytest.param(2**14 + 1, marks=pytest.mark.long)]
)
@pytest.mark.long
def test_long_rows(classes):
    """Rows that are summed in pieces on CPU, and rows that no piece divides."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, classes)).astype(np.float32)
    x[1] = 0  # all tied
    x[2, 7] = 60  # confident
    x[3, ::2] = -inf  # masked
    x[4, [1, classes - 1]] = inf  # two share the probability, in different pieces
    labels = np.array([3, 5, 7, 9, 1])
    wide = x[:4].astype(np.float64)
    rest = np.exp(wide - wide[np.arange(4), labels[:4], None])
    rest[np.arange(4), labels[:4]] = 0
    expected = [*np.log1p(rest.sum(1)), np.log(2)]
    np.testing.assert_allclose(ids(labels, x), expected, rtol=2e-5)
    gradient = jax.grad(lambda x: ids(labels, x).sum())(jnp.asarray(x))
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(np.sum(gradient, 1), 0, atol=1e-5)
    np.testing.assert_allclose(gradient[2, 7], -np.expm1(expected[2]), rtol=1e-4)


def test_confident_rows_keep_their_loss_and_gradient():
    x = jnp.array([50.0, 0.0, 0.0])
    p = 2 * np.exp(-50.0)
    for f in (lambda x: ids(0, x), lambda x: dense([1, 0, 0], x)):
        programs = (f, jax.grad(f), jax.hessian(f), jax.jacrev(jax.grad(f)))
        value, gradient, hessian, again = jax.jit(lambda x, fs=programs: [g(x) for g in fs])(x)
        np.testing.assert_allclose(value, p, rtol=1e-5)
        np.testing.assert_allclose(gradient[0], -p, rtol=1e-5)
        np.testing.assert_allclose(np.diag(hessian), [p, p / 2, p / 2], rtol=1e-5)
        np.testing.assert_allclose(hessian, again, rtol=1e-5)
        np.testing.assert_allclose(hessian[1, 2], -np.exp(-100.0), rtol=1e-4, atol=1e-38)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (2, 0, 3)])
def test_zero_examples_or_classes(shape):
    x = jnp.zeros(shape)
    assert sigmoid(x, x).shape == shape
    if shape[-1]:
        assert dense(x, x).shape == ids(jnp.zeros(shape[:-1], int), x).shape == shape[:-1]
        assert jax.grad(lambda x: dense(x, x).sum())(x).shape == shape


def test_one_class():
    assert ids([0, 0], [[3.0], [-1.0]]).tolist() == [0, 0]
    assert jax.grad(lambda x: ids(0, x))(jnp.array([3.0])).tolist() == [0]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.one_in(2)
def test_half_precision_sums_in_float32(dtype):
    """4096 equal classes: a running sum in the dtype itself stops long before 4096."""
    x = jnp.zeros((1, 4096), dtype)
    np.testing.assert_allclose(np.float32(ids([0], x.astype(jnp.float32))), np.log(4096), rtol=1e-6)
    loss = jxent.sparse_softmax_cross_entropy_with_logits(labels=jnp.array([0]), logits=x)
    assert loss.dtype == dtype
    np.testing.assert_array_equal(loss, jnp.asarray([np.log(4096)], dtype))


def test_array_likes():
    for kind in (list, np.array, jnp.array):
        x = kind([0.0, 2.0])
        np.testing.assert_allclose(jxent.sigmoid_cross_entropy_with_logits(labels=x, logits=x),
                                   [np.log(2), np.log1p(np.exp(2.0)) - 4], rtol=1e-6)  # fmt: skip
    assert jxent.sigmoid_cross_entropy_with_logits(labels=1, logits=0.0).shape == ()
    assert jxent.sparse_softmax_cross_entropy_with_logits(labels=0, logits=(0.0, 0.0)).shape == ()


def test_the_name_is_in_the_program():
    def f(x, **name):
        return jxent.sigmoid_cross_entropy_with_logits(labels=x, logits=x, **name)

    def scopes(**name):
        return jax.jit(lambda x: f(x, **name)).lower(jnp.ones(3)).as_text(debug_info=True)

    assert "sigmoid_cross_entropy_with_logits" in scopes()
    assert "my_head" in scopes(name="my_head")


def test_debug_nans_finds_the_place():
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        ids([5], [[0.0, 1.0]])


@pytest.mark.parametrize(
    "reduction",
    [
        pytest.param(r, marks=[pytest.mark.long] * (r is not losses.Reduction.MEAN))
        for r in losses.Reduction
    ],
)
@pytest.mark.long
def test_debug_nans_takes_padding_for_what_it_is(reduction):
    """Outside `jit` too, where whatever a function saves for its gradient is looked at."""
    weights = jnp.array([1.0, 0.0])
    x, w = jnp.ones((2, 3)), jnp.ones((3, 3))
    with jax.debug_nans(True):
        for f in (
            lambda x: losses.sparse_softmax_cross_entropy(
                jnp.array([0, -1]), x, weights, reduction=reduction),
            lambda x: losses.sparse_sigmoid_cross_entropy(
                jnp.array([[0], [7]]), x, weights, reduction=reduction),
            lambda x: losses.linear_sparse_softmax_cross_entropy(
                jnp.array([0, -1]), x, w, weights=weights, reduction=reduction),
            lambda x: losses.linear_sparse_sigmoid_cross_entropy(
                jnp.array([[0], [7]]), x, w, weights=weights, reduction=reduction),
        ):  # fmt: skip
            gradient = jax.grad(lambda x, f=f: jnp.sum(f(x)))(x)
            assert np.all(gradient[0] != 0)
            assert np.all(gradient[1] == 0)


@pytest.mark.parametrize("shape", [(2, 2), (70, 2), (70, 640)])
@pytest.mark.one_in(3)
def test_opposing_infinities_in_a_sum_are_nan(shape):
    """Labels outside [0, 1] and a negative pos_weight, which the formula allows."""
    z, x = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    z[:, 0], x[:, :2] = 2, inf
    assert np.isnan(losses.sigmoid_cross_entropy(z, x, reduction="weighted_sum"))
    z[:, 0], x[:, 0] = 1, -inf
    for w in (1.0, np.ones((shape[0], 1))):
        assert np.isnan(losses.sigmoid_cross_entropy(z, x, w, pos_weight=-1.0))
    lists = np.zeros((shape[0], 1), int)
    each = jxent.sparse_sigmoid_cross_entropy_with_logits(labels=lists, logits=x, pos_weight=-1.0)
    assert np.isnan(each).all()
    z[:, :2] = [1, -1]
    x[:, :2] = -inf
    if shape[1] > 2:
        assert np.isnan(dense(z, x)).all()
